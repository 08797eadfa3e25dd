"""Commands that keep a root in order: cp, gc, repair, verify, rm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands.options import GRACE_HOURS, Json, Root, Url

if TYPE_CHECKING:
    from pipelines.pending import Pending
    from pipelines.plan import Pass
    from storage.collection import CollectionArchive
    from storage.fs import Location
    from storage.handle import Archive
    from storage.upkeep import Tick
    from storage.verify import Damage, Verdict


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
        with console.progress(f"copying {place.name}", in_bytes=True) as tick:
            made = copy(place, target, tick)
        copied.append({"from": place.url, "to": made.place.url, "objects": made.objects, "bytes": made.bytes,
                       "found": made.found})  # fmt: skip
        if not as_json:
            found = f"; {made.found:,} of them were there already" if made.found else ""
            held = f"{console.count(made.objects, 'object')}, {console.size(made.bytes)}"
            console.say(f"{place.url} → {made.place.url}: {held}{found}")
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

    def run(step: Pass, pending: Pending) -> None:
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
    ] = GRACE_HOURS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what no archive owns: leftovers of killed runs, old indexes, old versions."""
    from cluster.index_store import files_in_use
    from storage.generations import in_use
    from storage.upkeep import orphans

    removed: list[dict[str, str | int]] = []
    young: list[str] = []
    total = 0
    for place in _archives(url, finished=False):
        used = {f"indexes/{path}" for path in files_in_use(place.join("indexes"))}
        if place.exists("log"):
            logged = in_use(place, grace * 3600)
            if logged is None:  # compacted a moment ago: the version before may still be read
                young.append(place.url)
                continue
            used |= logged
        with console.progress(f"cleaning {place.name}") as tick:
            found = orphans(place, used, grace * 3600)
            for done, orphan in enumerate(found, 1):
                if not dry_run:
                    place.delete(orphan.key)
                removed.append({"object": place.join(orphan.key).url, "bytes": orphan.size})
                total += orphan.size
                tick(done, len(found))
    if as_json:
        console.print_json({"removed": removed, "bytes": total, "dry_run": dry_run})
        return
    for item in removed:
        console.say(str(item["object"]))
    for name in young:
        console.say(f"{name}: compacted less than {grace:g} h ago, its old archive stays (--grace HOURS for sooner)")
    said = "would be removed" if dry_run else "removed"
    console.say(
        f"{console.count(len(removed), 'object')} {said} ({console.size(total)})" if removed else "nothing to remove"
    )


def verify(url: Root, as_json: Json = False) -> None:
    """Recompute every checksum of an archive, or of all under a root, of their indexes and logs.

    Exit code 1 when an object is not what was written; each such object is named.
    """
    from storage import archive

    verdicts: list[Verdict] = []
    for place in _archives(url, finished=True):
        with console.progress(f"verifying {place.name}", in_bytes=True) as tick:
            verdicts.append(_verdict(archive.open(place.url), tick))
        told = verdicts[-1]
        if told.sound and not as_json:
            console.say(f"{told.url}: all {told.objects:,} objects are sound ({console.size(told.bytes)} read)")
        for item in () if as_json else told.unused:
            console.note(f"{told.url}/{item.key}: {item.what}")
        for item in told.damaged:
            console.fail(f"{told.url}/{item.key}: {item.what}; `hilbertflow repair` makes it again")
    if as_json:
        each = [_as_json(verdict) for verdict in verdicts]
        whole = {"url": url, "sound": all(v.sound for v in verdicts), "objects": sum(v.objects for v in verdicts),
                 "bytes": sum(v.bytes for v in verdicts), "archives": each}  # fmt: skip
        console.print_json(each[0] if len(each) == 1 else whole)
    if not all(verdict.sound for verdict in verdicts):
        raise typer.Exit(1)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    damaged = [{"object": item.key, "what": item.what} for item in verdict.damaged]
    unused = [{"object": item.key, "what": item.what} for item in verdict.unused]
    return {"url": verdict.url, "sound": verdict.sound, "objects": verdict.objects, "bytes": verdict.bytes,
            "damaged": damaged, "unused": unused}  # fmt: skip


def _verdict(handle: Archive, tick: Tick) -> Verdict:
    import dataclasses

    from storage.collection import CollectionArchive
    from storage.verify import verify as check

    found = check(handle.place, tick)
    if not isinstance(handle, CollectionArchive):
        return found
    damaged = (*found.damaged, *_damaged_beside(handle))
    return dataclasses.replace(found, damaged=damaged, unused=tuple(_unused(handle)))


def _unused(handle: CollectionArchive) -> Iterator[Damage]:
    """Indexes beside a collection that were built over other rows: another collection's, or of rows that were."""
    from cluster.index_store import current_builds, indexes_of
    from cluster.planner import fresh
    from operators.errors import HilbertflowError
    from storage.verify import Damage

    try:
        builds = current_builds(indexes_of(handle))
    except HilbertflowError:
        return  # told as damage
    used = fresh(handle, builds)
    for kind, build in builds.items():
        if kind not in used:
            yield Damage(f"indexes/{build.build}", "is an index over other rows than these, which no search uses; "
                         f"`hilbertflow run` with index.kind={kind} builds one")  # fmt: skip


def _damaged_beside(handle: CollectionArchive) -> Iterator[Damage]:
    """What is damaged of a collection's indexes and of its log."""
    from cluster.index_store import current_builds, damaged_files, indexes_of
    from operators.errors import HilbertflowError
    from storage.batch_log import BatchLog
    from storage.rowlog import home_of
    from storage.verify import Damage

    def found() -> Iterator[HilbertflowError]:
        place, home = indexes_of(handle), home_of(handle)
        try:
            for build in current_builds(place).values():
                yield from damaged_files(place, build)
        except HilbertflowError as error:
            yield error
        if home.exists("log"):
            yield from BatchLog(home).damaged(handle.dim, handle.table(0, 0).schema)

    for error in found():
        yield Damage(error.where.removeprefix(handle.url).lstrip("/"), error.what)


def rm(
    url: Annotated[str, typer.Argument(help="The archive itself: ROOT/models/NAME or ROOT/collections/NAME.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove an archive, finished or half-written, with the pages of its runs.

    Refused while other models are coded as differences to it.
    """
    from operators.errors import HilbertflowError
    from storage import manifest
    from storage.archive import FOLDERS, RUNS
    from storage.fs import Location

    place = Location(url)
    folder, name = place.url.split("/")[-2:] if "/" in place.url else ("", "")
    if folder not in FOLDERS or not (place.exists(manifest.NAME) or place.exists("zarr.json")):
        raise HilbertflowError(
            "no archive here", where=place.url, remedy="name it: ROOT/models/NAME, as `ls` prints it"
        )
    root = Location(place.url.removesuffix(f"/{folder}/{name}"))
    if folder == "models":
        _refuse_parents(root, name)
    sizes = [entry.size for entry in place.entries().values()]
    held = f"{console.count(len(sizes), 'object')}, {console.size(sum(sizes))}"
    if not yes:
        console.confirm(f"remove {place.url} ({held})?", "not removed")
    # The manifest goes first: what is interrupted from here on is half-written, not damaged.
    for here, key in ((place, manifest.NAME), (root, f"catalog/{FOLDERS[folder]}-{name}.json")):
        if here.exists(key):
            here.delete(key)
    place.delete(recursive=True)
    root.delete(f"{RUNS}/{folder}/{name}", recursive=True)
    if as_json:
        console.print_json({"removed": place.url, "objects": len(sizes), "bytes": sum(sizes)})
    else:
        console.say(f"removed {place.url} ({held})")


def _refuse_parents(root: Location, name: str) -> None:
    """Raise while models hold only what differs from this one."""
    from operators.errors import HilbertflowError
    from storage import catalog

    children = [row["name"] for row in catalog.ls(root.url) if row.get("parent") == name]
    if children:
        raise HilbertflowError(
            f"{console.count(len(children), 'model')} {'is' if len(children) == 1 else 'are'} kept as differences"
            f" to it: {', '.join(children[:5])}", where=root.join("models", name).url, remedy="remove those first",
        )  # fmt: skip


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
