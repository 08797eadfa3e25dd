"""Open what was archived: ``archive.open(url)`` gives a handle on a model or a collection, nothing is read ahead."""

from __future__ import annotations

from typing import Any

from operators.errors import HilbertflowError
from storage import manifest as manifests
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.model import ModelArchive
from storage.rowlog import current

FOLDERS = {"models": "model", "collections": "collection"}
RUNS = "runs"
"""Folder of a root with the pages that runs leave: ``runs/models/NAME/TIME.html``; they are no archive's objects."""


def open(url: str) -> Any:
    """A :class:`ModelArchive` or :class:`CollectionArchive`.

    ``url`` names an archive, or a root that holds just one; of a collection that was compacted, the newest generation
    is opened. Raises for a half-written, newer or damaged archive.
    """
    handle = open_exactly(place_of(url).url)
    if handle.manifest.kind == "model":
        return handle
    return current(handle)


def place_of(url: str) -> Location:
    """Where the archive lies that ``url`` names, be it a root that holds just one; raises when there is none."""
    place = Location(url)
    if not place.exists(manifests.NAME) and not place.exists("zarr.json"):
        found = finished(place)
        if len(found) != 1:
            names = ", ".join(f.url.removeprefix(place.url + "/") for f in found[:5])
            raise HilbertflowError(
                f"{len(found)} archives under this root" if found else "no archive here", where=place.url,
                remedy=f"name one: {names}" if found else "`hilbertflow run RECIPE` makes one",
            )  # fmt: skip
        place = found[0]
    return place


def open_exactly(url: str) -> Any:
    """The archive at this very place."""
    place = Location(url)
    manifest = manifests.load(place)
    handle = {"model": ModelArchive, "collection": CollectionArchive}[manifest.kind]
    return handle(place, manifest)


def finished(root: Location) -> list[Location]:
    """Places of the archives under a root that have a manifest, sorted."""
    found = []
    for folder in FOLDERS:
        names = root.children(folder)
        found += [root.join(folder, name) for name in names if root.exists(f"{folder}/{name}/{manifests.NAME}")]
    return found


def half_written(root: Location) -> list[str]:
    """Paths of what runs and copies under a root have begun and not finished, sorted."""
    paths = [f"{folder}/{name}" for folder in FOLDERS for name in root.children(folder)]
    begun = [path for path in paths if not root.exists(f"{path}/{manifests.NAME}")]
    return sorted(path for path in begun if root.exists(f"{path}/zarr.json"))
