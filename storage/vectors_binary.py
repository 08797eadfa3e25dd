"""Vectors in plain binary files: ``.fvecs``, ``.bvecs``, ``.ivecs`` (TEXMEX), and a matrix in a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage.checkpoint import read_tensor
from storage.fs import Location
from storage.rows import vector_array
from storage.safetensors_file import safetensors_specs
from storage.tensors import DTYPE_BYTES, TensorSpec
from storage.vectors_npy import as_float32

_VECS = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}
_TENSORS = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "I16": np.dtype("<i2"), "U16": np.dtype("<u2"), "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"), "I64": np.dtype("<i8"), "U64": np.dtype("<u8"),
}  # fmt: skip


@dataclass(frozen=True)
class VecsVectors:
    """A TEXMEX file: before each row of values its length as int32. http://corpus-texmex.irisa.fr"""

    location: Location
    dtype: str
    count: int
    dim: int

    has_ids = False
    columns = ()

    def place(self, row: int, value: int = 0) -> str:
        """The file, the row and the byte of a value of it."""
        width = np.dtype(self.dtype).itemsize
        return at(self.location.url, f"row {row}", row * (4 + self.dim * width) + 4 + value * width)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32; raises for a row of another length."""
        row = np.dtype([("length", "<i4"), ("values", self.dtype, (self.dim,))])
        data = np.frombuffer(self.location.read("", start * row.itemsize, stop * row.itemsize), row)
        if (wrong := np.flatnonzero(data["length"] != self.dim)).size:
            first = int(wrong[0])
            what = f"claims {data['length'][first]} values, row 0 has {self.dim}"
            where = at(self.location.url, f"row {start + first}", (start + first) * row.itemsize)
            raise HilbertflowError(what, where=where, remedy="copy it again")
        return pa.table({"vector": vector_array(as_float32(data["values"]))})

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """There are no ids."""
        raise HilbertflowError("has no ids", where=at(self.location.url, 0))


def open_vecs(location: Location, column: str, id_column: str | None) -> VecsVectors:
    """Open a ``.fvecs``, ``.bvecs`` or ``.ivecs`` file."""
    _no_ids(location, id_column)
    size = location.size()
    dtype = _VECS[location.name[-6:].lower()]
    dim = int.from_bytes(location.read("", 0, 4), "little", signed=True) if size >= 4 else 0
    row = 4 + dim * np.dtype(dtype).itemsize
    if dim < 1 or size % row:
        what = f"claims {dim:,} values, and {size:,} bytes are no whole number of rows of {max(row, 4):,}"
        remedy = "it is truncated or of another format: copy it again"
        raise HilbertflowError(what, where=at(location.url, "row 0", 0), remedy=remedy)
    return VecsVectors(location, dtype, size // row, dim)


@dataclass(frozen=True)
class TensorVectors:
    """A matrix of a safetensors file."""

    location: Location
    spec: TensorSpec

    has_ids = False
    columns = ()

    def place(self, row: int, value: int = 0) -> str:
        """The file, the tensor, the row and the byte of the file at which a value of it lies."""
        byte = self.spec.offset + (row * self.dim + value) * DTYPE_BYTES[self.spec.dtype]
        return at(self.location.url, f"tensor {self.spec.name[:80]!r}", f"row {row}", byte)

    @property
    def count(self) -> int:
        """Rows."""
        return self.spec.shape[0]

    @property
    def dim(self) -> int:
        """Columns."""
        return self.spec.shape[1]

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows as float32."""
        row = self.dim * DTYPE_BYTES[self.spec.dtype]
        values = np.frombuffer(read_tensor(self.spec, start * row, stop * row), _TENSORS[self.spec.dtype])
        return pa.table({"vector": vector_array(as_float32(values.reshape(stop - start, self.dim)))})

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """There are no ids."""
        raise HilbertflowError("has no ids", where=at(self.location.url, 0))


def open_tensor(location: Location, column: str, id_column: str | None) -> TensorVectors:
    """Open the tensor called ``column`` of a safetensors file, or the only matrix of numbers in it."""
    _no_ids(location, id_column)
    specs = safetensors_specs(location)
    matrices = [spec for spec in specs if len(spec.shape) == 2 and spec.dtype in _TENSORS]
    named = [spec for spec in matrices if spec.name == column] or (matrices if len(matrices) == 1 else [])
    if not named:
        what = f"has no matrix {column!r} and {len(matrices) or 'no'} matrices of numbers"
        names = ", ".join(spec.name for spec in matrices[:10])
        remedy = f"set source.column to one of {names}" if names else ""
        raise HilbertflowError(what, where=at(location.url, 8), remedy=remedy)
    return TensorVectors(location, named[0])


def _no_ids(location: Location, id_column: str | None) -> None:
    if id_column is not None:
        raise HilbertflowError("this format has no id column", where=at(location.url, 0), remedy="use Parquet or JSONL")
