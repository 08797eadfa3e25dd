"""The rows of a collection in the order of their source, streamed.

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
from storage.collection import CollectionArchive
from storage.handle import Level

BATCH_ROWS = 8192
_FILES = 256

Tick = Callable[[int], None]


def batches(handle: CollectionArchive, level: Level, attributes: bool, tick: Tick | None = None) -> Iterator[pa.Table]:
    """Tables with ``vector``, after ``id`` and metadata where ``attributes`` are asked for; ``tick(rows)`` counts."""
    if not handle.sorted:
        for start, table in _stored(handle, level, attributes):
            if tick:
                tick(start + table.num_rows)
            yield table
        return
    each = max(BATCH_ROWS, -(-handle.count // _FILES))
    with tempfile.TemporaryDirectory(prefix="hilbertflow-") as folder:
        files = [Path(folder) / f"{number}.arrow" for number in range(-(-handle.count // each))]
        with contextlib.ExitStack() as stack:
            writers: dict[int, pa.RecordBatchStreamWriter] = {}
            for start, table in _stored(handle, level, attributes):
                rows = handle.source_rows(start, start + table.num_rows)
                table = table.append_column("row", pa.array(rows))
                for number in np.unique(rows // each):
                    if number not in writers:
                        writers[number] = stack.enter_context(pa.ipc.new_stream(str(files[number]), table.schema))
                    writers[number].write_table(table.filter(pa.array(rows // each == number)))
                if tick:
                    tick(start + table.num_rows)
        for file in files:
            with pa.ipc.open_stream(str(file)) as stream:
                table = stream.read_all()
            file.unlink()
            table = table.take(pc.sort_indices(table.column("row"))).drop_columns(["row"])
            for start in range(0, table.num_rows, BATCH_ROWS):
                yield table.slice(start, BATCH_ROWS)


def _stored(handle: CollectionArchive, level: Level, attributes: bool) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for vectors in handle.iter_batches(level, BATCH_ROWS):
        stop = start + len(vectors)
        column = vector_column(vectors)
        if attributes:
            yield start, handle.table(start, stop).append_column("vector", column)
        else:
            yield start, pa.table({"vector": column})
        start = stop
