"""A handle on an archive: what those of models and of collections share."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from operators.decode import Ladder
from operators.errors import HilbertflowError
from operators.vector_code import VectorLadder
from storage import manifest as manifests
from storage.fs import Location
from storage.fs_errors import UnreachableError
from storage.manifest import Manifest
from storage.zarr_store import CheckingStore, read_store

Level = int | Literal["exact"]


class Archive:
    """The manifest, the Zarr group, the ladder of levels, the count of bytes read.

    A handle holds no open file and can be pickled: it is its URL.
    """

    def __init__(self, place: Location, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @classmethod
    def at(cls, url: str) -> Self:
        """The archive at this very place, which is one of this class."""
        place = Location(url)
        return cls(place, manifests.load(place))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).at, (self.place.url,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place.url!r})"

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.place.url

    @property
    def name(self) -> str:
        """Its name."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Hash of what its content derives from: the source and the recipe."""
        return str(self.attributes["identity"])

    @property
    def bytes_read(self) -> int:
        """Bytes fetched through this handle so far."""
        return self.place.traffic.bytes_read

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The group's own attributes."""
        try:
            attributes: dict[str, Any] = json.loads(self.head("zarr.json"))["attributes"]["hilbertflow"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.place, "zarr.json") from error
        return attributes

    @cached_property
    def ladder(self) -> Ladder | VectorLadder:
        """How its levels were made."""
        return Ladder(**self.attributes["ladder"])

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels that can be asked for, coarse to fine."""
        exact: tuple[Level, ...] = ("exact",) if self.ladder.exact else ()
        return (*range(self.ladder.refinements + 1), *exact)

    def head(self, key: str) -> bytes:
        """One of the objects that belong to no unit, as it was written."""
        return self.heads([key])[key]

    def heads(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Several of them, in one round of requests; HilbertflowError names the one that is damaged or missing."""
        held = self.place.read_many(keys)
        for key, data in held.items():
            if hashlib.sha256(data).hexdigest() != self.manifest.heads.get(key):
                raise damaged(self.place, key)
        return held

    def array(self, name: str) -> zarr.Array[Any]:
        """One of its Zarr arrays."""
        if name not in self._arrays:
            with self.damage(name, 0, 0):
                self._arrays[name] = zarr.open_array(self._store, path=name, mode="r")
        return self._arrays[name]

    def may_lack(self, key: str) -> bool:
        """Whether no object of this key means that there is nothing to tell, as against a loss."""
        return not key.partition("/")[2].startswith("c/")

    def part(self, name: str, span: slice) -> npt.NDArray[Any]:
        """A range of an array along its first axis; damage is named by array and never read over."""
        with self.damage(name, span.start, span.stop):
            return np.asarray(self.array(name)[span])

    @contextmanager
    def damage(self, name: str, start: int, stop: int) -> Iterator[None]:
        """Say of what fails to decode which array it is of, and where."""
        try:
            yield
        except UnreachableError:
            raise
        except ValueError as error:  # of a codec or a checksum, ours among them
            what = getattr(error, "what", str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise HilbertflowError(
                f"damaged between {start} and {stop}: {what}" if stop else what, where=f"{self.url}/{name}",
                remedy="`hilbertflow verify` names the object",
            ) from error  # fmt: skip

    @cached_property
    def _store(self) -> CheckingStore:
        return read_store(self.place, self.manifest.heads, self.may_lack)

    def check_level(self, level: Level) -> Level:
        """The level itself; raises when the archive has none such."""
        if level in self.levels:
            return level
        known = ", ".join(str(item) for item in self.levels)
        raise HilbertflowError(f"no level {level!r}", where=self.url, remedy=f"levels are {known}")


def damaged(place: Location, key: str) -> HilbertflowError:
    """The error for an object that cannot be read as what it is."""
    return HilbertflowError("damaged", where=f"{place.url}/{key}", remedy="`hilbertflow verify` compares checksums")


def read_table(place: Location, key: str, data: bytes, columns: list[str] | None = None) -> pa.Table:
    """A Parquet object of an archive, fetched and checked already, or some of its columns."""
    try:
        return pq.read_table(io.BytesIO(data), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise damaged(place, key) from error
