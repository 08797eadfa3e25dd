"""Keep a root in order: find what no archive owns, copy archives object by object."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from operators.errors import HilbertflowError
from storage import catalog, labels
from storage import manifest as manifests
from storage.fs import Location
from storage.fs_write import TEMPORARY
from storage.manifest import Object

Tick = Callable[[int, int], None]
BESIDE = ("indexes/", "log/", "generations/", labels.FOLDER)
"""What lies beside an archive's own objects: each names its files in a document of its own."""
_PIECE = 8 << 20


@dataclass(frozen=True)
class Orphan:
    """An object that nothing names."""

    key: str
    size: int


def orphans(place: Location, beside: Iterable[str], grace_s: float = 3600.0) -> list[Orphan]:
    """Objects under a finished archive that neither its manifest nor ``beside`` names, sorted by key.

    Parameters
    ----------
    place: the archive. One without a manifest owns whatever is there (its run goes on), but for temporary files.
    beside: keys under :data:`BESIDE` that are in use.
    grace_s: younger objects are left alone, in seconds: somebody may be about to publish them.
    """
    found = place.entries()
    if place.exists(manifests.NAME):
        owned = {item.key for item in manifests.load_objects(place, manifests.load(place))}
        owned |= {manifests.NAME, manifests.OBJECTS, *beside}
    else:
        owned = {key for key in found if not key.endswith(TEMPORARY)}
    before = time.time() - grace_s
    return [
        Orphan(key, entry.size)
        for key, entry in found.items()
        if key not in owned
        and not key.startswith(labels.FOLDER)
        and (entry.modified is None or entry.modified <= before)
    ]


def copy(source: Location, root: Location, tick: Tick | None = None) -> Location:
    """Copy a finished archive with its indexes and log under another root; returns the new place.

    Objects are streamed and compared with their SHA-256 on the way; the manifest goes last, so that an interrupted copy
    is a half-written archive. Objects that an earlier copy brought whole are not read again. ``tick(done, total)``
    counts objects. Raises when another archive has the name there, or when an object of the source is damaged.
    """
    manifest = manifests.load(source)
    target = root.join(f"{manifest.kind}s", manifest.name)
    if target.url == source.url:
        raise HilbertflowError("is its own copy", where=source.url, remedy="name another root")
    if target.exists(manifests.NAME) and manifests.load(target) != manifest:
        raise HilbertflowError(
            "another archive has this name", where=target.url,
            remedy=f"remove it with `hilbertflow rm {target.url}`, or copy to another root",
        )  # fmt: skip
    listed = manifests.load_objects(source, manifest)
    beside = [key for key in source.entries() if key.startswith(BESIDE)]
    # Documents that name files come after the files: a reader of the copy never sees a name without its file.
    beside.sort(key=lambda key: (key.endswith(".json"), key.count("/") == 1, key))
    there = target.entries()
    total = len(listed) + len(beside) + 2
    for done, item in enumerate(listed, 1):
        if item.key not in there or there[item.key].size != item.size:
            copy_object(source, target, item)
        if tick:
            tick(done, total)
    for done, key in enumerate((*beside, manifests.OBJECTS, manifests.NAME), len(listed) + 1):
        # Files beside an archive never change under their name; only the documents do.
        if key.endswith(".json") or key not in there or there[key].size != source.size(key):
            _copy_plain(source, target, key)
        if tick:
            tick(done, total)
    catalog.add(root, manifest)
    return target


def copy_object(source: Location, target: Location, item: Object) -> None:
    """Copy one object in a stream; it appears only if it has the checksum that was recorded."""
    digest = hashlib.sha256()
    with target.create(item.key, durable=False) as file:
        for start in range(0, item.size, _PIECE):
            piece = source.read(item.key, start, min(item.size, start + _PIECE))
            digest.update(piece)
            file.write(piece)
        if digest.hexdigest() != item.sha256:
            raise HilbertflowError(
                "does not have the checksum that was recorded", where=source.join(item.key).url,
                remedy="`hilbertflow verify` names all damaged objects",
            )  # fmt: skip


def _copy_plain(source: Location, target: Location, key: str) -> None:
    size = source.size(key)
    with target.create(key) as file:
        for start in range(0, size, _PIECE):
            file.write(source.read(key, start, min(size, start + _PIECE)))
