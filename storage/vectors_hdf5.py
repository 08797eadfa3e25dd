"""Vectors in HDF5: ann-benchmarks files (``train``), ``embeddings`` beside ``urls``, or any one matrix."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage import hdf5_process
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array
from storage.vectors_npy import as_float32

_NAMES, _IDS = ("train", "embeddings", "vectors"), ("id", "ids", "urls", "url")
_PIECE = 16 << 20
_SECONDS, _BYTES_A_SECOND = 2.0, 30e6  # of processor time for one request: some, and more the larger the file


@dataclass(frozen=True)
class Hdf5Vectors:
    """A matrix of an HDF5 file, read by rows in another process; a file elsewhere is copied to this disk first."""

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
        head, body = self._ask(self.dataset, start, stop)
        with damage("cannot be read", lambda: self.place(start)):
            values = np.frombuffer(body, head["dtype"]).reshape(stop - start, self.dim)
        table = pa.table({"vector": vector_array(as_float32(values))})
        return table.append_column("id", self.read_ids(start, stop)) if self.has_ids else table

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        head, body = self._ask(self.id_dataset, start, stop)
        with damage("ids cannot be read", lambda: self._place(self.id_dataset, start)):
            values = json.loads(body) if "texts" in head else np.frombuffer(body, head["dtype"]).astype(str).tolist()
            if len(values) != stop - start:
                raise ValueError(f"there are {len(values)}")
            return pa.array(values, pa.string())

    def place(self, row: int, value: int = 0) -> str:
        """The file, the dataset, the chunk if it has chunks, the row and the byte of a value of it or of its chunk."""
        return self._place(self.dataset, row, value)

    def _place(self, name: str, row: int, value: int = 0) -> str:
        return at(self.location.url, *ask(self._copy, {"name": name, "row": row, "value": value})[0]["place"])

    def _ask(self, name: str, start: int, stop: int) -> tuple[dict[str, Any], bytes]:
        if start == stop:
            return {"dtype": "<f4"}, b""
        return ask(self._copy, {"name": name, "start": start, "stop": stop})

    @cached_property
    def _copy(self) -> LocalCopy:
        return LocalCopy(self.location)


class LocalCopy:
    """A file on this machine's disk: the file itself, or of one elsewhere a copy that goes when this object goes."""

    def __init__(self, location: Location) -> None:
        self.url, self.size = location.url, location.size()
        self.path = location.local_path or ""
        if not self.path:
            handle, self.path = tempfile.mkstemp(".h5")
            weakref.finalize(self, os.unlink, self.path)
            with os.fdopen(handle, "wb") as file:
                for start in range(0, self.size, _PIECE):
                    file.write(location.read("", start, min(self.size, start + _PIECE)))


_LOCK = threading.Lock()
_CHILD: list[subprocess.Popen[bytes]] = []


def ask(file: LocalCopy, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Ask `storage.hdf5_process`: its answer and the bytes behind it.

    Raises `HilbertflowError` when the answer is an error, and when the process dies over the file; the next request
    gets a new one.
    """
    seconds = _SECONDS + file.size / _BYTES_A_SECOND
    line = json.dumps({**request, "path": file.path, "seconds": seconds}).encode() + b"\n"
    with _LOCK:
        child = _started(file.url)
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
            head = json.loads(child.stdout.readline())
            body = child.stdout.read(head["bytes"])
            if len(body) != head["bytes"]:
                raise EOFError
        except (OSError, EOFError, ValueError, KeyError) as error:
            child.kill()
            what = f"the HDF5 library cannot read it, its process ended with {child.wait()}"
            place = ["root group"]
            if "name" in request:
                row = request.get("start", request.get("row"))
                place = [f"dataset {request['name'][:80]!r}", f"row {row}"]
            raise HilbertflowError(what, where=at(file.url, *place), remedy="it is damaged: copy it again") from error
    if "error" in head:
        what = f"cannot be read as HDF5: {head['error']}"
        raise HilbertflowError(what, where=at(file.url, *head["place"]), remedy="copy it again")
    return head, body


def _started(url: str) -> subprocess.Popen[bytes]:
    if _CHILD and (_CHILD[0].poll() is not None or _CHILD[0].args[-1] != _owner()):  # type: ignore[index]
        _CHILD.clear()  # it died, or belongs to the process that this one was forked from
    if not _CHILD:
        if importlib.util.find_spec("h5py") is None:
            raise HilbertflowError("HDF5 needs h5py", where=url, remedy="pip install h5py")
        # -P: a script's own folder would come first on the path, and the names in it hide others.
        command = [sys.executable, "-P", hdf5_process.__file__, _owner()]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        _CHILD.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, env=environment))
    return _CHILD[0]


def _owner() -> str:
    return str(os.getpid())


def open_hdf5(location: Location, column: str, id_column: str | None) -> Hdf5Vectors:
    """Open an HDF5 file: the dataset ``column``, ``train``, ``embeddings`` or ``vectors``, or its only matrix."""
    location.size()
    head, _ = ask(LocalCopy(location), {})
    shapes = {name: (tuple(shape), kind) for name, (shape, kind) in head["datasets"].items()}
    matrices = {name: shape for name, (shape, kind) in shapes.items() if len(shape) == 2 and kind in tuple("fiu")}
    found = next((name for name in (column, *_NAMES) if name in matrices), "")
    if not found and len(matrices) == 1:
        found = next(iter(matrices))
    if not found:
        what = f"has no matrix {column!r}; it has {', '.join(shapes) or 'nothing'}"
        where = at(location.url, "root group")
        raise HilbertflowError(what, where=where, remedy="name a matrix of numbers with source.column")
    count, dim = matrices[found]
    fitting = [name for name, (shape, kind) in shapes.items() if shape == (count,) and kind in tuple("iuS")]
    ids = id_column if id_column is not None else next((name for name in _IDS if name in fitting), "")
    if ids and ids not in fitting:
        remedy = f"it has {', '.join(shapes)}"
        what = f"has no {count:,} ids in {ids!r}"
        raise HilbertflowError(what, where=at(location.url, "root group"), remedy=remedy)
    return Hdf5Vectors(location, found, ids, count, dim)
