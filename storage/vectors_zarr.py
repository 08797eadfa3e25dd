"""Vectors in a Zarr array (format 2 or 3), or in a group with arrays of vectors and of ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage.damage import damage, json_byte
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
        values = np.asarray(self._slice(self.array, self._vectors, start, stop))
        table = pa.table({"vector": vector_array(as_float32(values))})
        return table.append_column("id", self.read_ids(start, stop)) if self.has_ids else table

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        ids = self._slice(self.id_array, self._ids, start, stop)
        return pa.array([str(value) for value in ids.tolist()], pa.string())

    def place(self, row: int, value: int = 0) -> str:
        """The store, the object that holds a value of a row, and the row."""
        return self._place(self.array, self._vectors, row, value)

    def _slice(self, name: str, array: Any, start: int, stop: int) -> Any:
        with damage("cannot be read", lambda: self._place(name, array, *_unreadable(array, start, stop))):
            return array[start:stop]

    def _place(self, name: str, array: Any, row: int, value: int = 0) -> str:
        number = (at // side for at, side in zip((row, value), array.shards or array.chunks, strict=False))
        key = array.metadata.encode_chunk_key(tuple(number))
        return at(self.location.url, f"{name}/{key}".lstrip("/"), f"row {row}")

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
        where = at(location.url, "root group")
        raise HilbertflowError(what, where=where, remedy="name a matrix of numbers with source.column")
    count, dim = (int(side) for side in matrices[found].shape)
    ids = id_column if id_column is not None else next((name for name in _IDS if name in arrays), "")
    if ids and (ids not in arrays or arrays[ids].shape != (count,)):
        what, where = f"has no {count:,} ids in {ids!r}", at(location.url, "root group")
        raise HilbertflowError(what, where=where, remedy=f"it has {', '.join(arrays)}")
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
        where = partial(at, location.url, f"{name}/{file}".lstrip("/"))
        if place.size() > _MAX_JSON:
            raise HilbertflowError(f"is larger than {_MAX_JSON >> 20} MiB", where=where(_MAX_JSON))
        try:
            content = json.loads(place.read())
        except (ValueError, RecursionError) as error:
            what = f"is not Zarr metadata: {str(error)[:100]}"
            raise HilbertflowError(what, where=where(json_byte(error)), remedy="copy it again") from error
        with damage("is not Zarr metadata", where()):
            node = kind or str(content["node_type"])
            _check_codecs(content, where())
            return content, node
    if missing:
        raise HilbertflowError(
            "is not a Zarr store", where=at(location.url, "zarr.json"), remedy="expected zarr.json, .zarray or .zgroup"
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

    where = at(location.url, f"array {name or '/'}")
    with damage("is not a Zarr array", where):
        array = zarr.open_array(read_store(location), path=name, mode="r")
    if (chunk := prod(array.chunks) * array.dtype.itemsize) > _MAX_CHUNK:
        raise HilbertflowError(f"has chunks of {chunk:,} bytes", where=where, remedy="write smaller chunks")
    return array


def _unreadable(array: Any, start: int, stop: int) -> tuple[int, int]:
    """Row and column of the first value that cannot be read among rows that cannot be."""
    steps = array.shards or array.chunks
    rows = (start, *range((start // steps[0] + 1) * steps[0], stop, steps[0]))
    columns = range(0, array.shape[1], steps[1]) if array.ndim > 1 else (0,)
    for spot in product(rows, columns):
        try:
            array[spot[: array.ndim]]
        except Exception:  # it was raised before: the question is by which object
            return spot
    return start, 0
