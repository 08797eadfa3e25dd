"""Keep a root in order: find what no archive owns, copy archives object by object."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from operators.errors import HilbertflowError
from storage import catalog, labels
from storage import manifest as manifests
from storage.fs import Location
from storage.fs_write import TEMPORARY
from storage.manifest import Manifest, Object
from storage.spec import identity_at

Tick = Callable[[int, int], None]
Moved = Callable[[int], None]
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


@dataclass(frozen=True)
class Copied:
    """A copy: its place, how many objects and bytes it has, and how many objects an earlier copy had brought."""

    place: Location
    objects: int
    bytes: int
    found: int


def copy(source: Location, root: Location, tick: Tick | None = None) -> Copied:
    """Copy a finished archive with its indexes and log under another root.

    Objects are streamed and compared with their SHA-256 on the way. The document that tells whose name it is goes
    first and the manifest last, so that an interrupted copy is a half-written archive, which no other archive is copied
    into. Objects that an earlier copy brought whole are not read again. ``tick(done, total)`` counts bytes. Raises when
    another archive has the name there, or when an object of the source is damaged.
    """
    manifest = manifests.load(source)
    target = root.join(f"{manifest.kind}s", manifest.name)
    if target.url == source.url:
        raise HilbertflowError("is its own copy", where=source.url, remedy="name another root")
    _refuse_another(source, manifest, target)
    listed = sorted(manifests.load_objects(source, manifest), key=lambda item: item.key != "zarr.json")
    sizes = source.sizes()
    beside = [key for key in sizes if key.startswith(BESIDE)]
    # Documents that name files come after the files: a reader of the copy never sees a name without its file.
    beside.sort(key=lambda key: (key.endswith(".json"), key.count("/") == 1, key))
    last = (*beside, manifests.OBJECTS, manifests.NAME)
    total = sum(item.size for item in listed) + sum(sizes[key] for key in last)
    there, found, done = target.sizes(), 0, 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if tick:
            tick(done, total)

    for item in listed:
        if there.get(item.key) == item.size:
            found += 1
            moved(item.size)
        else:
            copy_object(source, target, item, moved)
    if target.local_path is not None:
        os.sync()  # once for all objects, before the manifest says that they are there
    for key in last:
        # Files beside an archive never change under their name; only the documents do.
        if not key.endswith(".json") and key != manifests.OBJECTS and there.get(key) == sizes[key]:
            found += 1
            moved(sizes[key])
        else:
            _copy_plain(source, target, key, sizes[key], moved)
    catalog.add(root, manifest)
    return Copied(target, len(listed) + len(last), total, found)


def _refuse_another(source: Location, manifest: Manifest, target: Location) -> None:
    """Raise when the name belongs to another archive, finished or half-written."""
    if target.exists(manifests.NAME):
        same = manifests.load(target) == manifest
    else:
        same = not target.exists("zarr.json") or identity_at(target) == identity_at(source)
    if not same:
        raise HilbertflowError(
            "another archive has this name", where=target.url,
            remedy=f"remove it with `hilbertflow rm {target.url}`, or copy to another root",
        )  # fmt: skip


def copy_object(source: Location, target: Location, item: Object, moved: Moved | None = None) -> None:
    """Copy one object in a stream; it appears only if it has the checksum that was recorded. ``moved`` counts bytes."""
    digest = hashlib.sha256()
    with target.create(item.key, durable=False) as file:
        for piece in _pieces(source, item.key, item.size, moved):
            digest.update(piece)
            file.write(piece)
        if digest.hexdigest() != item.sha256:
            raise HilbertflowError(
                "does not have the checksum that was recorded", where=source.join(item.key).url,
                remedy="`hilbertflow verify` names all damaged objects",
            )  # fmt: skip


def _copy_plain(source: Location, target: Location, key: str, size: int, moved: Moved) -> None:
    with target.create(key) as file:
        for piece in _pieces(source, key, size, moved):
            file.write(piece)


def _pieces(source: Location, key: str, size: int, moved: Moved | None) -> Iterator[bytes]:
    for start in range(0, size, _PIECE):
        piece = source.read(key, start, min(size, start + _PIECE))
        yield piece
        if moved:
            moved(len(piece))
