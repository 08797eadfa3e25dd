"""Vectors in columnar tables: Parquet read by row group in small batches, Arrow IPC (Feather) by record batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import HilbertflowError, at
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array
from storage.table_cursor import Cursor, footer, ipc_reader, parquet_file
from storage.vectors_npy import as_float32


@dataclass(frozen=True)
class TableVectors:
    """The vector column of a Parquet or Arrow file, its ids, and its other columns as metadata.

    Memory holds a few thousand rows: a cursor moves forward through the file, and only a step back begins again at the
    row group (or the batch) in question.
    """

    location: Location
    format: Literal["parquet", "arrow"]
    count: int
    dim: int
    column: str
    id_column: str | None
    columns: tuple[str, ...]

    @property
    def has_ids(self) -> bool:
        """Whether a column of ids is there."""
        return self.id_column is not None

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.location, self.format, self.count, self.dim, self.column, self.id_column, self.columns)
        return TableVectors, fields

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows with ``vector``, ``id`` where there is one, and the metadata columns."""
        ids = [self.id_column] if self.id_column is not None else []
        table = self._cursor.rows(start, stop)
        vectors = vector_array(list_values(table.column(self.column), self.dim, lambda row: self.place(start + row)))
        columns = {"vector": vectors, **{name: _plain(table.column(name)) for name in self.columns}}
        if ids:
            columns["id"] = self._ids(table, start)
        return pa.table(columns)

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        return self._ids(self._id_cursor.rows(start, stop), start)

    def _ids(self, table: pa.Table, start: int) -> pa.Array:
        name = str(self.id_column)
        return id_values(table.column(name), lambda row: self._at(name, start + row))

    def place(self, row: int, value: int = 0) -> str:
        """The file, the row group or record batch, the column and the row."""
        return self._at(self.column, row)

    def _at(self, column: str, row: int) -> str:
        part = self._cursor.part(row)
        return at(self.location.url, part, f"column {column[:80]!r}", f"row {row}")

    @cached_property
    def _cursor(self) -> Cursor:
        ids = [self.id_column] if self.id_column is not None else []
        return Cursor(self.location, self.format, [self.column, *ids, *self.columns])

    @cached_property
    def _id_cursor(self) -> Cursor:
        return Cursor(self.location, self.format, [str(self.id_column)])


def open_parquet(location: Location, column: str, id_column: str | None) -> TableVectors:
    """Open a Parquet file."""
    location.size()
    file = parquet_file(location)
    with damage("is damaged", lambda: footer(location, b"PAR1")):  # names of columns may well be no text
        return _opened(location, "parquet", file.schema_arrow, file.metadata.num_rows, column, id_column)


def open_arrow(location: Location, column: str, id_column: str | None) -> TableVectors:
    """Open an Arrow IPC file (``.arrow``, Feather V2)."""
    location.size()
    reader = ipc_reader(location)
    with damage("is damaged", lambda: footer(location, b"ARROW1")):
        return _opened(location, "arrow", reader.schema, reader.count_rows(), column, id_column)


def _opened(
    location: Location,
    kind: Literal["parquet", "arrow"],
    schema: pa.Schema,
    count: int,
    column: str,
    id_column: str | None,
) -> TableVectors:
    if len(set(schema.names)) != len(schema.names):
        raise HilbertflowError("has two columns of one name", where=at(location.url, "schema"))
    if count <= 0:  # less than none is what a damaged length says
        remedy = "name a file with at least one vector"
        what = "has no rows" if not count else f"says that it has {count:,} rows"
        raise HilbertflowError(what, where=at(location.url, "footer"), remedy=remedy)
    name: str = _vector_column(schema, column, location.url)
    if id_column is not None and id_column not in schema.names:
        remedy = f"its columns are {', '.join(schema.names)}"
        raise HilbertflowError(f"has no column {id_column!r} for ids", where=at(location.url, "schema"), remedy=remedy)
    ids = id_column if id_column is not None else "id" if "id" in schema.names and name != "id" else None
    if ids is not None and not _is_id(schema.field(ids).type):
        what = f"ids are {schema.field(ids).type}, not text or integers"
        raise HilbertflowError(what, where=at(location.url, "schema", f"column {ids[:80]!r}"))
    others = tuple(field.name for field in schema if field.name not in (name, ids))
    source = TableVectors(location, kind, int(count), 0, name, ids, others)
    kept = schema.field(name).type
    if pa.types.is_fixed_size_list(kept):
        return replace(source, dim=int(kept.list_size))
    # The length of the first vector is the length of all; each read holds the rows to it.
    first = Cursor(location, kind, [name]).rows(0, 1).column(name)[0]
    if not first.is_valid:
        raise HilbertflowError("has no vector", where=source.place(0), remedy="remove that row")
    return replace(source, dim=len(first))


def _vector_column(schema: pa.Schema, column: str, url: str) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    if column in schema.names:
        if column not in lists:
            what = f"is {schema.field(column).type}, not a list of numbers"
            raise HilbertflowError(what, where=at(url, "schema", f"column {column[:80]!r}"))
        return column
    if len(lists) == 1 and column == "vector":
        return str(lists[0])
    what = f"has no column {column!r}"
    remedy = f"set source.column to one of {', '.join(lists)}" if lists else "no column is a list of numbers"
    raise HilbertflowError(what, where=at(url, "schema"), remedy=remedy)


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists) and bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def list_values(column: pa.ChunkedArray, dim: int, place: Callable[[int], str]) -> npt.NDArray[np.float32]:
    """``(n, dim)`` float32 of a list column; raises for nulls and for rows of another length, naming the first."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count:
        row = int(pc.index(pc.is_null(array), True).as_py())
        raise HilbertflowError("has no vector", where=place(row), remedy="remove that row")
    lengths = np.asarray(pc.list_value_length(array))
    if (wrong := np.flatnonzero(lengths != dim)).size:
        row = int(wrong[0])
        what = f"has {lengths[row]} values, row 0 has {dim}"
        raise HilbertflowError(what, where=place(row), remedy="all vectors must be of one length")
    flat = array.flatten()
    if flat.null_count:
        row = int(pc.index(pc.is_null(flat), True).as_py()) // max(1, dim)
        raise HilbertflowError("has a null among its values", where=place(row), remedy="repair that row")
    return as_float32(flat.to_numpy(zero_copy_only=False)).reshape(len(array), dim)


def id_values(column: pa.ChunkedArray, place: Callable[[int], str]) -> pa.Array:
    """Ids as strings; raises when one is null."""
    if column.null_count:
        row = int(pc.index(pc.is_null(column), True).as_py())
        raise HilbertflowError("has no id", where=place(row), remedy="give every row an id")
    plain = _plain(column).cast(pa.string()).combine_chunks()
    return pa.concat_arrays(plain.chunks) if isinstance(plain, pa.ChunkedArray) else plain


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionary encoding, whose dictionaries would differ from batch to batch."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
