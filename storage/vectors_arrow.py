"""Vectors in columnar tables: Parquet read by row group in small batches, Arrow IPC (Feather) by record batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.errors import HilbertflowError
from storage.damage import damage
from storage.fs import Location
from storage.rows import vector_array
from storage.vectors_npy import as_float32

_BATCH = 4096


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
        vectors = vector_array(list_values(table.column(self.column), self.dim, start, self.location.url))
        columns = {"vector": vectors, **{name: _plain(table.column(name)) for name in self.columns}}
        if ids:
            columns["id"] = id_values(table.column(ids[0]), start, self.location.url)
        return pa.table(columns)

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        column = self._id_cursor.rows(start, stop).column(self.id_column)
        return id_values(column, start, self.location.url)

    @cached_property
    def _cursor(self) -> _Cursor:
        ids = [self.id_column] if self.id_column is not None else []
        return _Cursor(self.location, self.format, [self.column, *ids, *self.columns])

    @cached_property
    def _id_cursor(self) -> _Cursor:
        return _Cursor(self.location, self.format, [str(self.id_column)])


class _Cursor:
    """Moves through the rows of a file, a batch at a time."""

    def __init__(self, location: Location, kind: str, columns: list[str]) -> None:
        self._location, self._kind, self._columns = location, kind, columns
        self._lock = threading.Lock()
        self._file: Any = None
        self._batches: Iterator[Any] = iter(())
        self._held: list[pa.Table] = []
        self._at = 0  # the row at which what is held begins
        self._end = 0  # the row after it
        self._begun = False

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop`` of the columns."""
        with self._lock:
            begun, self._begun = self._begun, False  # an error leaves nothing to go on from
            with damage(f"cannot be read at row {self._end}", self._location.url):
                table = self._rows(start, stop, begun)
            self._begun = True
            return table

    def _rows(self, start: int, stop: int, begun: bool) -> pa.Table:
        if not begun or start < self._at or (start > self._end and self._origin(start) > self._end):
            self._begin(start)
        while self._end < stop:
            batch = next(self._batches, None)
            if batch is None:
                raise HilbertflowError(f"ends after row {self._end}", where=self._location.url, remedy="copy it again")
            table = pa.Table.from_batches([batch]).select(self._columns)
            table.validate(full=True)
            self._held.append(table)
            self._end += table.num_rows
            while self._held and self._at + self._held[0].num_rows <= start:
                self._at += self._held.pop(0).num_rows
        table = pa.concat_tables(self._held) if self._held else None
        if table is None:
            raise HilbertflowError("has no rows", where=self._location.url)
        return table.slice(start - self._at, stop - start)

    def _begin(self, start: int) -> None:
        self._held = []
        self._at = self._end = self._origin(start)
        if self._kind == "parquet":
            groups = range(int(np.searchsorted(self._bounds, start, side="right")) - 1, len(self._bounds) - 1)
            # Without pre-buffering a row group is decoded page by page, however large it is.
            self._batches = self._parquet.iter_batches(_BATCH, list(groups), self._columns, use_threads=False)
        else:
            self._batches = _ipc_batches(self._location)

    def _origin(self, start: int) -> int:
        """The row nearest before ``start`` at which reading can begin."""
        if self._kind != "parquet":
            return 0
        return int(self._bounds[int(np.searchsorted(self._bounds, start, side="right")) - 1])

    @property
    def _parquet(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = parquet_file(self._location)
        return self._file

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        meta = self._parquet.metadata
        return np.cumsum([0] + [meta.row_group(group).num_rows for group in range(meta.num_row_groups)])


def parquet_file(location: Location) -> pq.ParquetFile:
    """Open a Parquet file by its footer, to be read page by page."""
    source = location.local_path or pa.PythonFile(location.open(), mode="r")
    with damage("is not a Parquet file", location.url):
        return pq.ParquetFile(
            source, buffer_size=1 << 20, pre_buffer=False, thrift_string_size_limit=1 << 26,
            thrift_container_size_limit=1 << 22, page_checksum_verification=True,
        )  # fmt: skip


def _ipc_batches(location: Location) -> Iterator[pa.RecordBatch]:
    reader = _ipc_reader(location)
    for number in range(reader.num_record_batches):
        yield from _sliced(reader.get_batch(number))


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _BATCH):
        yield batch.slice(start, _BATCH)


def _ipc_reader(location: Location) -> Any:
    with damage("is not an Arrow IPC file", location.url, "save it as Feather V2 or Parquet"):
        path = location.local_path
        source = pa.memory_map(path) if path is not None else pa.PythonFile(location.open(), mode="r")
        return pa.ipc.open_file(source)


def open_parquet(location: Location, column: str, id_column: str | None) -> TableVectors:
    """Open a Parquet file."""
    location.size()
    file = parquet_file(location)
    with damage("is damaged", location.url):  # names of columns may well be no text
        return _opened(location, "parquet", file.schema_arrow, file.metadata.num_rows, column, id_column)


def open_arrow(location: Location, column: str, id_column: str | None) -> TableVectors:
    """Open an Arrow IPC file (``.arrow``, Feather V2)."""
    location.size()
    reader = _ipc_reader(location)
    with damage("is damaged", location.url):
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
        raise HilbertflowError("has two columns of one name", where=location.url)
    if not count:
        raise HilbertflowError("has no rows", where=location.url, remedy="name a file with at least one vector")
    name: str = _vector_column(schema, column, location.url)
    if id_column is not None and id_column not in schema.names:
        remedy = f"its columns are {', '.join(schema.names)}"
        raise HilbertflowError(f"has no column {id_column!r} for ids", where=location.url, remedy=remedy)
    ids = id_column if id_column is not None else "id" if "id" in schema.names and name != "id" else None
    if ids is not None and not _is_id(schema.field(ids).type):
        raise HilbertflowError(f"ids in {ids!r} are {schema.field(ids).type}, not text or integers", where=location.url)
    others = tuple(field.name for field in schema if field.name not in (name, ids))
    source = TableVectors(location, kind, int(count), 0, name, ids, others)
    kept = schema.field(name).type
    if pa.types.is_fixed_size_list(kept):
        return replace(source, dim=int(kept.list_size))
    # The length of the first vector is the length of all; each read holds the rows to it.
    first = _Cursor(location, kind, [name]).rows(0, 1).column(name)[0]
    if not first.is_valid:
        raise HilbertflowError("row 0 has no vector", where=location.url, remedy="remove that row")
    return replace(source, dim=len(first))


def _vector_column(schema: pa.Schema, column: str, where: str) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    if column in schema.names:
        if column not in lists:
            what = f"column {column!r} is {schema.field(column).type}, not a list of numbers"
            raise HilbertflowError(what, where=where)
        return column
    if len(lists) == 1 and column == "vector":
        return str(lists[0])
    what = f"has no column {column!r}"
    remedy = f"set source.column to one of {', '.join(lists)}" if lists else "no column is a list of numbers"
    raise HilbertflowError(what, where=where, remedy=remedy)


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists) and bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def list_values(column: pa.ChunkedArray, dim: int, start: int, where: str) -> npt.NDArray[np.float32]:
    """``(n, dim)`` float32 of a list column; raises for nulls and for rows of another length, naming the first."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count:
        row = start + int(pc.index(pc.is_null(array), True).as_py())
        raise HilbertflowError(f"row {row} has no vector", where=where, remedy="remove that row")
    lengths = np.asarray(pc.list_value_length(array))
    if (wrong := np.flatnonzero(lengths != dim)).size:
        row = int(wrong[0])
        raise HilbertflowError(
            f"row {start + row} has {lengths[row]} values, row 0 has {dim}", where=where,
            remedy="all vectors must be of one length",
        )  # fmt: skip
    flat = array.flatten()
    if flat.null_count:
        row = start + int(pc.index(pc.is_null(flat), True).as_py()) // max(1, dim)
        raise HilbertflowError(f"row {row} has a null among its values", where=where, remedy="repair that row")
    return as_float32(flat.to_numpy(zero_copy_only=False)).reshape(len(array), dim)


def id_values(column: pa.ChunkedArray, start: int, where: str) -> pa.Array:
    """Ids as strings; raises when one is null."""
    if column.null_count:
        row = start + int(pc.index(pc.is_null(column), True).as_py())
        raise HilbertflowError(f"row {row} has no id", where=where, remedy="give every row an id")
    plain = _plain(column).cast(pa.string()).combine_chunks()
    return pa.concat_arrays(plain.chunks) if isinstance(plain, pa.ChunkedArray) else plain


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionary encoding, whose dictionaries would differ from batch to batch."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
