"""Commands that keep a root in order: cp, gc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.commands.options import Json, Root, Url

if TYPE_CHECKING:
    from pipelines.plan import Pass
    from storage.fs import Location


def cp(
    url: Root,
    root: Annotated[str, typer.Argument(help="The root to copy to; the archive keeps its name.")],
    as_json: Json = False,
) -> None:
    """Copy an archive, or all under a root, with their indexes.

    Streamed; every object is compared with its checksum on the way. An interrupted copy goes on where it stopped.
    """
    from storage.fs import Location
    from storage.upkeep import copy

    target, copied = Location(root), []
    for place in _archives(url, finished=True):
        with console.progress(f"copying {place.name}") as tick:
            made = copy(place, target, tick)
        copied.append({"from": place.url, "to": made.url})
        if not as_json:
            console.say(f"{place.url} → {made.url}")
    if as_json:
        console.print_json({"copied": copied, "bytes": target.traffic.bytes_written})


def repair(
    url: Url,
    source: Annotated[
        str,
        typer.Option("--from", metavar="SOURCE", help="What it was made of, or a copy of it; else as its recipe says."),
    ] = "",
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; left out, this machine.")] = None,
    as_json: Json = False,
) -> None:
    """Mend a damaged archive.

    Units that hold a broken object are made again from the source, or broken objects are fetched from a copy; only
    what is broken is written, and it must come out with the checksum that was recorded. Indexes are built again by
    `run`; a damaged log needs a copy.
    """
    import dataclasses

    from pipelines.recipe import Compute
    from pipelines.repair import repair as mend
    from pipelines.run import local_ray
    from storage import archive

    place = archive.place_of(url)

    def run(step: Pass, pending: list[range]) -> None:
        from pipelines.graph import execute

        with local_ray(address):
            execute(step, Compute(), pending)

    done = mend(place, source, run)
    if as_json:
        console.print_json(dataclasses.asdict(done))
        return
    for key in done.objects:
        console.say(f"{done.url}/{key}")
    made = f", {console.count(done.units, 'unit')} made again" if done.units else ""
    told = f"{console.count(len(done.objects), 'object')} mended{made}" if done.objects else "nothing is damaged"
    console.say(told)


def gc(
    url: Root,
    grace: Annotated[
        float, typer.Option(metavar="HOURS", min=0, help="Leave younger objects alone: a writer may be at work.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what no archive owns: leftovers of killed runs, old indexes, old versions."""
    from cluster.index_store import files_in_use
    from storage.generations import in_use
    from storage.upkeep import orphans

    removed: list[dict[str, str | int]] = []
    total = 0
    for place in _archives(url, finished=False):
        used = {f"indexes/{path}" for path in files_in_use(place.join("indexes"))}
        if place.exists("log"):
            logged = in_use(place, grace * 3600)
            if logged is None:  # compacted a moment ago: the version before may still be read
                continue
            used |= logged
        for orphan in orphans(place, used, grace * 3600):
            if not dry_run:
                place.delete(orphan.key)
            removed.append({"object": place.join(orphan.key).url, "bytes": orphan.size})
            total += orphan.size
    if as_json:
        console.print_json({"removed": removed, "bytes": total, "dry_run": dry_run})
        return
    for item in removed:
        console.say(str(item["object"]))
    said = "would be removed" if dry_run else "removed"
    console.say(f"{len(removed)} objects {said} ({console.size(total)})" if removed else "nothing to remove")


def _archives(url: str, finished: bool) -> Iterator[Location]:
    """The archive at ``url``, or those under it; with ``finished`` only whole ones. Raises when there is none."""
    from operators.errors import HilbertflowError
    from storage import manifest as manifests
    from storage.archive import FOLDERS
    from storage.fs import Location

    place, found = Location(url), 0
    sign = manifests.NAME if finished else "zarr.json"
    if place.exists(manifests.NAME) or place.exists("zarr.json"):
        if finished:
            manifests.load(place)  # says that it is half-written, or of a newer format
        yield place
        return
    for folder in FOLDERS:
        for name in place.children(folder):
            if place.exists(f"{folder}/{name}/{sign}"):
                found += 1
                yield place.join(folder, name)
    if not found:
        raise HilbertflowError("no archive here", where=place.url, remedy="`hilbertflow ls ROOT` lists what there is")
