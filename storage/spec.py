"""What an archive will be, fixed before its first byte is written: arrays, codecs, attributes, units."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from operators.errors import HilbertflowError
from operators.plane_index import ENTRIES
from storage.fs import Location
from storage.fs_errors import MissingFileError

if TYPE_CHECKING:
    from operators.coders import CoderKind

TOGETHER = ("scales", "means")
"""Arrays that are so small that a unit is one chunk of them."""


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array.

    Parameters
    ----------
    name: ``level0`` …, ``exact`` or ``scales``.
    shape: along axis 0 lie the planes of a model or the rows of a collection.
    dtype: NumPy name.
    chunk: shape of what one plane becomes.
    shard: chunks along axis 0 in one object; a unit writes one shard.
    coder: kind of the codec.
    tables: what its chunks share, for ``rans``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    shard: int
    coder: CoderKind
    tables: bytes = b""

    def key(self, unit: int) -> str:
        """Key of the object that holds the unit's chunks."""
        return "/".join((self.name, "c", str(unit), *("0" for _ in self.shape[1:])))


def index_array(planes: int, shard: int) -> ArraySpec:
    """Where the multi-level index of each plane lies (:mod:`operators.plane_index`)."""
    return ArraySpec("means", (planes, ENTRIES), "int16", (1, ENTRIES), shard, "rans")


@dataclass(frozen=True)
class ArchiveSpec:
    """A whole archive.

    Parameters
    ----------
    url: its place, ``ROOT/models/NAME`` or ``ROOT/collections/NAME``.
    kind: ``model`` or ``collection``.
    fingerprint, recipe_hash: what its bytes derive from; another pair never mixes with it.
    recipe: as run.
    attributes: what a reader needs, kept in the group's ``zarr.json``.
    arrays: the Zarr arrays.
    units: number of units.
    """

    url: str
    kind: str
    name: str
    fingerprint: str
    recipe_hash: str
    recipe: dict[str, Any]
    attributes: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    units: int

    @property
    def identity(self) -> str:
        """Hash of source and recipe."""
        return hashlib.sha256(f"{self.fingerprint}:{self.recipe_hash}".encode()).hexdigest()

    def unit_name(self, unit: int) -> str:
        """Name of a unit, the same in every run of this recipe on this source."""
        return f"{unit:08d}-{hashlib.sha256(f'{self.identity}:{unit}'.encode()).hexdigest()[:12]}"

    def metadata(self) -> dict[str, bytes]:
        """The ``zarr.json`` documents by key, as stock zarr writes them."""
        from storage.zarr_documents import documents  # zarr takes a third of a second, and workers need none of it

        return documents(self)


def open_for_writing(spec: ArchiveSpec) -> dict[str, bytes]:
    """Write the ``zarr.json`` documents, unless an earlier run of the same recipe on the same source did.

    Raises when another archive has the name.
    """
    place = Location(spec.url)
    documents = spec.metadata()
    claim(spec)
    for key, data in documents.items():
        if not place.exists(key) or (key == "zarr.json" and place.read(key) != data):
            place.write_atomic(key, data)
    return documents


def claim(spec: ArchiveSpec) -> None:
    """See that the name is free or this recipe's own, and take it, before anything is written under it.

    Of two recipes at once one gets it: the document is created, not replaced.
    """
    place = Location(spec.url)
    if not place.exists("zarr.json"):
        place.create_if_new("zarr.json", replace(spec, arrays=()).metadata()["zarr.json"])
    if identity_at(place) != spec.identity:
        raise HilbertflowError(
            "an archive of another source or recipe has this name", where=spec.url,
            remedy=f"set sink.name to another one, or remove it with `hilbertflow rm {spec.url}`",
        )  # fmt: skip


def identity_at(place: Location) -> str | None:
    """Whose name it is: the identity that the archive at ``place``, finished or not, began with; None if damaged."""
    try:
        return str(json.loads(place.read("zarr.json"))["attributes"]["hilbertflow"]["identity"])
    except MissingFileError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HilbertflowError):
            raise
        return None
