"""Moves through the rows of a columnar file: Parquet by row group in small batches, Arrow IPC by record batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import HilbertflowError, at
from storage.damage import damage
from storage.fs import Location

_BATCH = 4096


class Cursor:
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
            with damage("cannot be read", self._fault):
                table = self._rows(start, stop, begun)
            self._begun = True
            return table

    def _rows(self, start: int, stop: int, begun: bool) -> pa.Table:
        if not begun or start < self._at or (start > self._end and self._origin(start) > self._end):
            self._begin(start)
        while self._end < stop:
            batch = next(self._batches, None)
            if batch is None:
                raise HilbertflowError(f"ends after {self._end} rows", where=self._fault(), remedy="copy it again")
            table = pa.Table.from_batches([batch]).select(self._columns)
            table.validate(full=True)
            self._held.append(table)
            self._end += table.num_rows
            while self._held and self._at + self._held[0].num_rows <= start:
                self._at += self._held.pop(0).num_rows
        table = pa.concat_tables(self._held) if self._held else None
        if table is None:
            raise HilbertflowError("has no rows", where=self._fault())
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

    def part(self, row: int) -> str:
        """The row group or the record batch that holds a row; the last one for rows that none holds."""
        if self._kind == "parquet":
            return f"row group {self._group(row)}"
        return f"record batch {_batch_of(self._location, row)}"

    def _group(self, row: int) -> int:
        return max(0, min(int(np.searchsorted(self._bounds, row, side="right")), len(self._bounds) - 1) - 1)

    def _fault(self) -> str:
        """Where reading cannot go on: of Parquet, whose batches reach over row groups, the first that is at fault."""
        groups = range(self._group(self._end), len(self._bounds) - 1) if self._kind == "parquet" else range(0)
        for group in groups:
            row = max(self._end, int(self._bounds[group]))
            if row >= self._end + _BATCH:
                break
            for name in self._columns:
                if self._fails(group, name):
                    return at(self._location.url, f"row group {group}", f"column {name[:80]!r}", f"row {row}")
        return at(self._location.url, self.part(self._end), f"row {self._end}")

    def _fails(self, group: int, column: str) -> bool:
        """Whether a column of a row group cannot be read alone."""
        try:
            for batch in self._parquet.iter_batches(_BATCH, [group], [column], use_threads=False):
                batch.validate(full=True)
        except Exception:  # it was raised before: the question is by which column
            return True
        return False

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
    with damage("is not a Parquet file", lambda: footer(location, b"PAR1")):
        return pq.ParquetFile(
            source, buffer_size=1 << 20, pre_buffer=False, thrift_string_size_limit=1 << 26,
            thrift_container_size_limit=1 << 22, page_checksum_verification=True,
        )  # fmt: skip


def footer(location: Location, magic: bytes) -> str:
    """Where the footer begins as the end of the file tells, or the end of the file when it tells nothing."""
    size, width = location.size(), 4 + len(magic)
    tail = location.read("", max(0, size - width), size)
    begin = size - width - int.from_bytes(tail[:4], "little")
    return at(location.url, "footer", begin if tail[4:] == magic and begin >= 0 else size)


def _batch_of(location: Location, row: int) -> int:
    """The record batch that holds a row, or the first that cannot be read."""
    reader, end = ipc_reader(location), 0
    for number in range(reader.num_record_batches):
        with contextlib.suppress(Exception):
            end += reader.get_batch(number).num_rows
            if end <= row:
                continue
        return number
    return max(0, int(reader.num_record_batches) - 1)


def _ipc_batches(location: Location) -> Iterator[pa.RecordBatch]:
    reader = ipc_reader(location)
    for number in range(reader.num_record_batches):
        yield from _sliced(reader.get_batch(number))


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _BATCH):
        yield batch.slice(start, _BATCH)


def ipc_reader(location: Location) -> Any:
    """Open an Arrow IPC file by its footer; one on this machine is mapped, not read."""
    with damage("is not an Arrow IPC file", lambda: footer(location, b"ARROW1"), "save it as Feather V2 or Parquet"):
        path = location.local_path
        source = pa.memory_map(path) if path is not None else pa.PythonFile(location.open(), mode="r")
        return pa.ipc.open_file(source)
