"""Vectors in NumPy's files: ``.npy`` by byte range, ``.npz`` through the zip archive that it is. Never pickles."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array

_HEADER = 1 << 16
_LENGTH = 8  # the byte at which the length of a header lies, and the header behind it
_MAX_IDS = 256 << 20  # ids of an .npz are held whole
DIRECTORY = "directory of the zip"


@dataclass(frozen=True)
class NpyHeader:
    """What a ``.npy`` header says: type, shape, order, and the byte at which the values begin."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def byte(self, row: int, value: int = 0) -> int:
        """The byte at which a value of a matrix begins."""
        index = value * self.shape[0] + row if self.fortran else row * self.shape[1] + value
        return self.offset + index * np.dtype(self.dtype).itemsize


def npy_header(file: BinaryIO, size: int, where: Callable[[int], str]) -> NpyHeader:
    """Parse the header at the beginning of ``file`` and hold it against the file's size.

    Raises `HilbertflowError` when it is not NumPy's, holds Python objects (which only a pickle could restore), or does
    not agree with ``size``. ``where`` names a byte of the file.
    """
    read = np.lib.format
    head = io.BytesIO(file.read(_HEADER))
    with damage("is not a NumPy array", where(0)):
        version = read.read_magic(head)
    with damage("is not a NumPy array", where(_LENGTH)):
        if version == (1, 0):
            shape, fortran, dtype = read.read_array_header_1_0(head, max_header_size=_HEADER)
        elif version == (2, 0):
            shape, fortran, dtype = read.read_array_header_2_0(head, max_header_size=_HEADER)
        else:
            raise ValueError(f"version {version} of the format is not known")
    if dtype.hasobject:
        raise HilbertflowError(
            "holds Python objects, which only a pickle could restore; it was not unpickled", where=where(_LENGTH),
            remedy="save it with a dtype of numbers, as array.astype('float32')",
        )  # fmt: skip
    shape = tuple(int(side) for side in shape)
    need, there = prod(shape) * dtype.itemsize, size - head.tell()
    if min(shape, default=0) < 0 or need != there:
        raise HilbertflowError(
            f"shape {shape} of {dtype.str} needs {need:,} bytes from byte {head.tell()}, {there:,} are there",
            where=where(head.tell() + max(0, min(need, there))),
            remedy="it is truncated or its header lies: copy it again",
        )  # fmt: skip
    return NpyHeader(dtype.str, shape, bool(fortran), head.tell())


def check_matrix(header: NpyHeader, where: Callable[[int], str]) -> None:
    """Raise unless the array is a matrix of real numbers."""
    kind = np.dtype(header.dtype).kind
    if kind not in "fiu":
        what = f"holds {np.dtype(header.dtype).name}, not real numbers"
        raise HilbertflowError(what, where=where(_LENGTH), remedy="save it as array.astype('float32')")
    if len(header.shape) != 2:
        remedy = "save it as (rows, length): array.reshape(1, -1) for one vector" if len(header.shape) == 1 else ""
        what = f"has shape {header.shape}, two dimensions are needed"
        raise HilbertflowError(what, where=where(_LENGTH), remedy=remedy)


@dataclass(frozen=True)
class NpyVectors:
    """A matrix in a ``.npy`` file, C or Fortran order, any real dtype; read by byte range."""

    location: Location
    header: NpyHeader

    has_ids = False
    columns = ()

    @property
    def count(self) -> int:
        """Rows."""
        return self.header.shape[0]

    @property
    def dim(self) -> int:
        """Columns."""
        return self.header.shape[1]

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32; values of wider types are rounded."""
        width, begin = np.dtype(self.header.dtype).itemsize, self.header.byte
        if not self.header.fortran:
            data = self.location.read("", begin(start), begin(stop))
            values = np.frombuffer(data, self.header.dtype).reshape(stop - start, self.dim)
        else:
            begins = [begin(start, column) for column in range(self.dim)]
            parts = self.location.read_ranges([("", byte, byte + (stop - start) * width) for byte in begins])
            values = np.frombuffer(b"".join(parts), self.header.dtype).reshape(self.dim, stop - start).T
        return pa.table({"vector": vector_array(as_float32(values))})

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """A ``.npy`` file has no ids."""
        raise HilbertflowError("has no ids", where=at(self.location.url, _LENGTH))

    def place(self, row: int, value: int = 0) -> str:
        """The file, the row and the byte of a value of it."""
        return at(self.location.url, f"row {row}", self.header.byte(row, value))


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The nearest float32; what is too large for it becomes infinite and is found as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, np.float32)


def open_npy(location: Location, column: str, id_column: str | None) -> NpyVectors:
    """Open a ``.npy`` file; it has one array and no ids."""
    if id_column is not None:
        remedy = "use Parquet or .npz"
        raise HilbertflowError("a .npy file has no id column", where=at(location.url, _LENGTH), remedy=remedy)
    size, where = location.size(), partial(at, location.url)
    header = npy_header(io.BytesIO(location.read("", 0, min(size, _HEADER))), size, where)
    check_matrix(header, where)
    return NpyVectors(location, header)


@dataclass(frozen=True)
class NpzVectors:
    """A matrix in a ``.npz`` archive, and one of ids if there is one.

    Compressed members are read in a stream: rows in order cost one pass, a step back begins anew.
    """

    location: Location
    member: str
    header: NpyHeader
    id_member: str

    columns = ()

    @property
    def count(self) -> int:
        """Rows."""
        return self.header.shape[0]

    @property
    def dim(self) -> int:
        """Columns."""
        return self.header.shape[1]

    @property
    def has_ids(self) -> bool:
        """Whether an array of ids lies beside the vectors."""
        return bool(self.id_member)

    def __reduce__(self) -> tuple[object, ...]:
        return NpzVectors, (self.location, self.member, self.header, self.id_member)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32, with ``id`` where there are ids."""
        begin = self.header.byte(start)
        data = self._stream.read(begin, self.header.byte(stop) - begin)
        values = np.frombuffer(data, self.header.dtype).reshape(stop - start, self.dim)
        table = pa.table({"vector": vector_array(as_float32(values))})
        return table.append_column("id", self.read_ids(start, stop)) if self.has_ids else table

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        return self._ids.slice(start, stop - start)

    def place(self, row: int, value: int = 0) -> str:
        """The file, the member, the row and the byte of a value of it in the unpacked member."""
        return at(self.location.url, self.member, f"row {row}", self.header.byte(row, value))

    @cached_property
    def _stream(self) -> _Member:
        return _Member(self.location, self.member)

    @cached_property
    def _ids(self) -> pa.Array:
        stream = _Member(self.location, self.id_member)
        where = partial(at, self.location.url, self.id_member)
        header = npy_header(io.BytesIO(stream.read(0, min(stream.size, _HEADER))), stream.size, where)
        if header.shape != (self.count,) or np.dtype(header.dtype).kind not in "iuU":
            what = f"needs {self.count} numbers or strings, has {header.shape}"
            raise HilbertflowError(what, where=where(_LENGTH))
        if stream.size > _MAX_IDS:
            raise HilbertflowError("too many ids for an .npz", where=where(_MAX_IDS), remedy="use Parquet")
        data = stream.read(header.offset, stream.size - header.offset)
        with damage("ids are not valid Unicode", where(header.offset)):
            return pa.array(np.frombuffer(data, header.dtype).astype(str).tolist(), pa.string())


class _Member:
    """A member of a zip archive, read at any offset."""

    def __init__(self, location: Location, name: str) -> None:
        self._where = partial(at, location.url, name)
        self._lock = threading.Lock()
        archive = zip_archive(location)
        with damage("is damaged", self._where(0)):
            self._file = archive.open(name)
        self.size = archive.getinfo(name).file_size

    def read(self, offset: int, length: int) -> bytes:
        with self._lock, damage("is damaged", self._where(offset)):
            self._file.seek(offset)
            data = bytes(self._file.read(length))
        if len(data) != length:
            what = f"ends where {length - len(data):,} more bytes should be"
            raise HilbertflowError(what, where=self._where(offset + len(data)), remedy="copy it again")
        return data


def zip_archive(location: Location) -> zipfile.ZipFile:
    """The directory of a zip archive; raises `HilbertflowError` when it is none."""
    with damage("is not a zip archive", at(location.url, DIRECTORY)):
        return zipfile.ZipFile(location.open())


def open_npz(location: Location, column: str, id_column: str | None) -> NpzVectors:
    """Open a ``.npz`` file: the array ``column``, else the only matrix of numbers in it; ids from ``id_column``."""
    archive = zip_archive(location)
    matrices: dict[str, NpyHeader] = {}
    names = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    faults: dict[str, HilbertflowError] = {}
    for name, info in names.items():
        where = partial(at, location.url, info.filename)
        if info.flag_bits & 1:
            raise HilbertflowError("is encrypted", where=where(0))
        try:
            member = _open_member(archive, info, where(0))
            header = npy_header(io.BytesIO(member), info.file_size, where)
            if name == column or len(header.shape) == 2:
                check_matrix(header, where)
                matrices[name] = header
        except HilbertflowError as error:
            faults[name] = error
    found = column if column in matrices else next(iter(matrices)) if len(matrices) == 1 else ""
    if not found:
        if fault := faults.get(column) or (next(iter(faults.values())) if len(faults) == 1 and not matrices else None):
            raise fault
        what = f"has no array {column!r} and {len(matrices) or 'no'} matrices of numbers: {', '.join(names) or 'empty'}"
        raise HilbertflowError(what, where=at(location.url, DIRECTORY), remedy="name the array with source.column")
    if matrices[found].fortran:
        where = partial(at, location.url, f"{found}.npy")
        raise HilbertflowError("is in Fortran order", where=where(_LENGTH), remedy="save np.ascontiguousarray of it")
    ids = id_column if id_column is not None else "id" if "id" in names else "ids" if "ids" in names else ""
    if ids and ids not in names:
        remedy = f"it has {', '.join(names)}"
        raise HilbertflowError(f"has no array {ids!r}", where=at(location.url, DIRECTORY), remedy=remedy)
    return NpzVectors(location, f"{found}.npy", matrices[found], f"{ids}.npy" if ids else "")


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    with damage("is damaged", where), archive.open(info) as file:
        return file.read(_HEADER)
