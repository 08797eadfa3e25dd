"""Vectors in a Zarr array (format 2 or 3), or in a group with arrays of vectors and of ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array
from storage.vectors_npy import as_float32

_NAMES, _IDS = ("vectors", "embeddings", "train"), ("id", "ids")
_MAX_JSON, _MAX_CHUNK = 16 << 20, 512 << 20
# Codecs that turn bytes into numbers and nothing else. The list is closed: one of numcodecs' unpickles.
_CODECS = frozenset(
    {"bytes", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed", "transpose", "vlen-utf8", "zlib", "lz4", "shuffle",
     "delta", "bz2", "lzma", "packbits", "bitround", "crc32", "adler32", "numcodecs.zlib", "numcodecs.shuffle",
     "numcodecs.delta", "numcodecs.lz4", "numcodecs.bz2", "numcodecs.lzma", "numcodecs.bitround"}
)  # fmt: skip


@dataclass(frozen=True)
class ZarrVectors:
    """A matrix in a Zarr store, read by rows."""

    location: Location
    array: str
    id_array: str
    count: int
    dim: int

    columns = ()

    @property
    def has_ids(self) -> bool:
        """Whether an array of ids lies beside the vectors."""
        return bool(self.id_array)

    def __reduce__(self) -> tuple[object, ...]:
        return ZarrVectors, (self.location, self.array, self.id_array, self.count, self.dim)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32, with ``id`` where there are ids."""
        values = np.asarray(self._slice(self._vectors, start, stop))
        table = pa.table({"vector": vector_array(as_float32(values))})
        return table.append_column("id", self.read_ids(start, stop)) if self.has_ids else table

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        return pa.array([str(value) for value in self._slice(self._ids, start, stop).tolist()], pa.string())

    def _slice(self, array: Any, start: int, stop: int) -> Any:
        with damage(f"rows {start} to {stop} cannot be read", self.location.url):
            return array[start:stop]

    @cached_property
    def _vectors(self) -> Any:
        return _array(self.location, self.array)

    @cached_property
    def _ids(self) -> Any:
        return _array(self.location, self.id_array)


def open_zarr(location: Location, column: str, id_column: str | None) -> ZarrVectors:
    """Open a Zarr array; of a group the array ``column``, ``vectors``, ``embeddings``, ``train`` or its one matrix."""
    names = [""] if _metadata(location, "", missing=True)[1] == "array" else _members(location)
    arrays = {name: _array(location, name) for name in names}
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"}
    found = next((name for name in ("", column, *_NAMES) if name in matrices), None)
    if found is None and len(matrices) == 1:
        found = next(iter(matrices))
    if found is None:
        what = f"has no matrix {column!r}; it has {', '.join(arrays) or 'no arrays'}"
        raise HilbertflowError(what, where=location.url, remedy="name a matrix of numbers with source.column")
    count, dim = (int(side) for side in matrices[found].shape)
    ids = id_column if id_column is not None else next((name for name in _IDS if name in arrays), "")
    if ids and (ids not in arrays or arrays[ids].shape != (count,)):
        raise HilbertflowError(
            f"has no {count:,} ids in {ids!r}", where=location.url, remedy=f"it has {', '.join(arrays)}"
        )
    return ZarrVectors(location, found, ids, count, dim)


def _members(location: Location) -> list[str]:
    suffixes = ("/zarr.json", "/.zarray")
    found = (name.rpartition("/")[0] for name in location.list() if name.endswith(suffixes) and name.count("/") == 1)
    return sorted(name for name in set(found) if _metadata(location, name)[1] == "array")


def _metadata(location: Location, name: str, missing: bool = False) -> tuple[dict[str, Any], str]:
    """Metadata of a node and whether it is an ``array`` or a ``group``; every codec it names is checked."""
    for file, kind in (("zarr.json", ""), (".zarray", "array"), (".zgroup", "group")):
        place = location.join(name, file) if name else location.join(file)
        if not place.exists():
            continue
        with damage("is not Zarr metadata", place.url):
            if place.size() > _MAX_JSON:
                raise ValueError(f"larger than {_MAX_JSON >> 20} MiB")
            content = json.loads(place.read())
            node = kind or str(content["node_type"])
            _check_codecs(content, place.url)
            return content, node
    if missing:
        raise HilbertflowError(
            "is not a Zarr store", where=location.url, remedy="expected zarr.json, .zarray or .zgroup"
        )
    return {}, ""


def _check_codecs(metadata: dict[str, Any], where: str) -> None:
    pending = [*(metadata.get("codecs") or ()), *(metadata.get("filters") or ()), metadata.get("compressor")]
    while pending:
        codec = pending.pop()
        if codec is None:
            continue
        name = codec if isinstance(codec, str) else codec.get("name") or codec.get("id")
        if name not in _CODECS and not str(name).startswith("hilbertflow."):
            known = ", ".join(sorted(_CODECS))
            raise HilbertflowError(f"names the codec {str(name)[:60]!r}", where=where, remedy=f"read are {known}")
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict):
            pending += [*(inner.get("codecs") or ()), *(inner.get("index_codecs") or ())]


def _array(location: Location, name: str) -> Any:
    import zarr

    from storage.zarr_store import read_store

    with damage("is not a Zarr array", location.join(name).url if name else location.url):
        array = zarr.open_array(read_store(location), path=name, mode="r")
    if (chunk := prod(array.chunks) * array.dtype.itemsize) > _MAX_CHUNK:
        raise HilbertflowError(f"has chunks of {chunk:,} bytes", where=location.url, remedy="write smaller chunks")
    return array
