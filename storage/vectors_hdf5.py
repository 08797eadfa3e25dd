"""Vectors in HDF5: ann-benchmarks files (``train``), ``embeddings`` beside ``urls``, or any one matrix."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array
from storage.vectors_npy import as_float32

_NAMES, _IDS = ("train", "embeddings", "vectors"), ("id", "ids", "urls", "url")
_LOCK = threading.RLock()  # the HDF5 library runs one call at a time


@dataclass(frozen=True)
class Hdf5Vectors:
    """A matrix of an HDF5 file, read by rows."""

    location: Location
    dataset: str
    id_dataset: str
    count: int
    dim: int

    columns = ()

    @property
    def has_ids(self) -> bool:
        """Whether a dataset of ids lies beside the vectors."""
        return bool(self.id_dataset)

    def __reduce__(self) -> tuple[object, ...]:
        return Hdf5Vectors, (self.location, self.dataset, self.id_dataset, self.count, self.dim)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32, with ``id`` where there are ids."""
        table = pa.table({"vector": vector_array(as_float32(self._slice(self.dataset, start, stop)))})
        return table.append_column("id", self.read_ids(start, stop)) if self.has_ids else table

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        values = self._slice(self.id_dataset, start, stop)
        where = f"{self.location.url}: {self.id_dataset}"
        with damage(f"ids of rows {start} to {stop} are not UTF-8", where):
            texts = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.tolist()]
            return pa.array(texts, pa.string())

    def _slice(self, name: str, start: int, stop: int) -> Any:
        with _LOCK, damage(f"{name} cannot be read at rows {start} to {stop}", self.location.url):
            values = self._file[name][start:stop]
        if len(values) != stop - start:
            raise HilbertflowError(f"{name} ends after row {start + len(values)}", where=self.location.url)
        return values

    @cached_property
    def _file(self) -> Any:
        return _open(self.location)


def _open(location: Location) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise HilbertflowError("HDF5 needs h5py", where=location.url, remedy="pip install h5py") from error
    location.size()
    with damage("is not an HDF5 file", location.url):
        return h5py.File(location.local_path or location.open(), "r")


def open_hdf5(location: Location, column: str, id_column: str | None) -> Hdf5Vectors:
    """Open an HDF5 file: the dataset ``column``, ``train``, ``embeddings`` or ``vectors``, or its only matrix."""
    with _LOCK:
        file = _open(location)
        with damage("is damaged", location.url):
            shapes = {name: _shape(file, name, location.url) for name in file}
    matrices = {name: shape for name, (shape, kind) in shapes.items() if len(shape) == 2 and kind in "fiu"}
    found = next((name for name in (column, *_NAMES) if name in matrices), "")
    if not found and len(matrices) == 1:
        found = next(iter(matrices))
    if not found:
        what = f"has no matrix {column!r}; it has {', '.join(shapes) or 'nothing'}"
        raise HilbertflowError(what, where=location.url, remedy="name a matrix of numbers with source.column")
    count, dim = matrices[found]
    ids = (
        id_column
        if id_column is not None
        else next((name for name in _IDS if shapes.get(name, ((), ""))[0] == (count,)), "")
    )
    if ids and (ids not in shapes or shapes[ids][0] != (count,) or shapes[ids][1] not in "iuSO"):
        raise HilbertflowError(
            f"has no {count:,} ids in {ids!r}", where=location.url, remedy=f"it has {', '.join(shapes)}"
        )
    return Hdf5Vectors(location, found, ids, count, dim)


def _shape(file: Any, name: str, where: str) -> tuple[tuple[int, ...], str]:
    """Shape and kind of a dataset; () and "" for what is none. Data in other files is refused: it could be any file."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return (), ""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        return (), ""
    if dataset.external or dataset.is_virtual:
        raise HilbertflowError(f"{name} keeps its values in other files", where=where, remedy="repack it with h5repack")
    kind = np.dtype(dataset.dtype).kind
    if kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
        return (), ""  # references, ragged arrays
    return tuple(int(side) for side in dataset.shape), kind
