"""Generations of a collection: a compaction writes a new archive beside the old one, and one object makes it the
collection.

::

    ROOT/collections/NAME/generations/00000016-3fa9c1d2e4b5/     an archive that holds all up to version 16
    ROOT/collections/NAME/log/base-00000001.json                 from now on it is the collection

What was there before stays until `hilbertflow gc`: whoever reads it reads on.
"""

from __future__ import annotations

import dataclasses
import hashlib

from storage import manifest as manifests
from storage.batch_log import FOLDER, BatchLog
from storage.fs import Location
from storage.rowlog import GENERATIONS


def generation(home: Location, version: int, identity: str) -> Location:
    """Where the archive of this identity that holds all up to ``version`` lies."""
    return home.join(GENERATIONS, f"{version:08d}-{identity[:12]}")


def unfinished(home: Location) -> list[tuple[int, str]]:
    """Version and begin of the identity of generations that were begun and not published, newest first."""
    base, _ = BatchLog(home).look()
    names = [name for name in home.children(GENERATIONS) if name[:8].isdigit() and name[8:9] == "-"]
    found = [(int(name[:8]), name[9:]) for name in names if f"{GENERATIONS}/{name}" != base.place]
    return sorted((item for item in found if item[0] >= base.covers), reverse=True)


def publish(place: Location) -> bool:
    """Make a finished generation the collection, in one step; False when a newer one is.

    Batches of the generation before and older are taken out of the log; the collection's own manifest and list of
    objects tell of the new generation. Doing it again changes nothing.
    """
    home_url, _, name = place.url.rpartition(f"/{GENERATIONS}/")
    home, covers = Location(home_url), int(name[:8])
    log, path = BatchLog(home), f"{GENERATIONS}/{name}"
    while (base := log.look()[0]).place != path:
        if base.covers > covers:
            return False
        if log.rebase(log.next_base(path, covers)):
            log.forget(base.covers, base.number)
    _describe(home, place, path)
    return True


def in_use(home: Location, grace_s: float) -> set[str] | None:
    """Keys under a collection's home that belong to its log and its newest generation; None while an older one may
    still be read: until ``grace_s`` seconds after the compaction.
    """
    import time

    base, sizes = BatchLog(home).look()
    entries = home.entries(FOLDER)
    keys = {key for key in entries if not key.endswith(".arrow") or int(key[-14:-6]) in sizes}
    if not base.place:
        return keys
    made = entries[f"{FOLDER}/base-{base.number:08d}.json"].modified
    if made is None or time.time() - made < grace_s:
        return None
    return keys | set(home.entries(base.place)) | {"zarr.json"}


def _describe(home: Location, place: Location, path: str) -> None:
    manifest = manifests.load(place)
    listed = manifests.load_objects(place, manifest)
    own = [manifests.Object.of(name, place.read(name)) for name in (manifests.NAME, manifests.OBJECTS)]
    data = manifests.dump_objects([dataclasses.replace(item, key=f"{path}/{item.key}") for item in (*listed, *own)])
    # The recipe stays the one that the collection is made by: run again, it knows the collection as its own.
    before = manifests.load(home)
    told = dataclasses.replace(
        before, units=manifest.units, levels=manifest.levels, source_bytes=manifest.source_bytes,
        quality=manifest.quality, objects=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    if told == before:
        return
    home.write_atomic(manifests.OBJECTS, data)
    home.write_atomic(manifests.NAME, told.dump())
