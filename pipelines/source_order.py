"""The rows of a collection as they stand, in the order of their source, then those put in since; streamed.

In the archive they may lie list by list. They are read in that order, dealt out to files of neighbouring rows in a
temporary directory, and read back from there: every byte is fetched and decoded once, and memory holds one such file.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.row_blocks import vector_column
from storage.handle import Level
from storage.rowlog import F32, I64, View

BATCH_ROWS = 8192
_FILES = 256

Tick = Callable[[int], None]


def batches(view: View, level: Level, attributes: bool, tick: Tick | None = None) -> Iterator[pa.Table]:
    """Tables with ``vector``, after ``id`` and metadata where ``attributes`` are asked for; ``tick(rows)`` counts.

    Rows that were replaced or deleted are left out; rows of the log, which has one level, are exact at every level.
    """
    yield from _archived(view, level, attributes, tick)
    for at in range(0, len(view.live), BATCH_ROWS):
        slots = view.live[at : at + BATCH_ROWS]
        yield _with(view.metadata.take(pa.array(slots)) if attributes else None, view.vectors[slots])
    if tick:
        tick(view.base.count)


def _archived(view: View, level: Level, attributes: bool, tick: Tick | None) -> Iterator[pa.Table]:
    handle = view.base
    if not handle.sorted:
        for rows, table in _stored(view, level, attributes):
            if tick and len(rows):
                tick(int(rows[-1]) + 1)
            yield table
        return
    each = max(BATCH_ROWS, -(-handle.count // _FILES))
    with tempfile.TemporaryDirectory(prefix="hilbertflow-") as folder:
        files = [Path(folder) / f"{number}.arrow" for number in range(-(-handle.count // each))]
        with contextlib.ExitStack() as stack:
            writers: dict[int, pa.RecordBatchStreamWriter] = {}
            for stored, table in _stored(view, level, attributes):
                if not len(stored):
                    continue
                start, stop = int(stored[0]), int(stored[-1]) + 1
                rows = handle.source_rows(start, stop)[stored - start]
                table = table.append_column("row", pa.array(rows))
                for number in np.unique(rows // each):
                    if number not in writers:
                        writers[number] = stack.enter_context(pa.ipc.new_stream(str(files[number]), table.schema))
                    writers[number].write_table(table.filter(pa.array(rows // each == number)))
                if tick:
                    tick(stop)
        for file in files:
            if not file.exists():  # all of its rows are gone
                continue
            with pa.ipc.open_stream(str(file)) as stream:
                table = stream.read_all()
            file.unlink()
            table = table.take(pc.sort_indices(table.column("row"))).drop_columns(["row"])
            for start in range(0, table.num_rows, BATCH_ROWS):
                yield table.slice(start, BATCH_ROWS)


def _stored(view: View, level: Level, attributes: bool) -> Iterator[tuple[I64, pa.Table]]:
    """Batches in the order of the archive, without the rows that are gone; and the numbers of those that are there."""
    start, handle = 0, view.base
    for vectors in handle.iter_batches(level, BATCH_ROWS):
        stop = start + len(vectors)
        rows = np.setdiff1d(np.arange(start, stop), view.gone, assume_unique=True)
        table = _with(handle.table(start, stop) if attributes else None, vectors)
        yield rows, table if len(rows) == len(vectors) else table.take(pa.array(rows - start))
        start = stop


def _with(table: pa.Table | None, vectors: F32) -> pa.Table:
    column = vector_column(vectors)
    return pa.table({"vector": column}) if table is None else table.append_column("vector", column)
