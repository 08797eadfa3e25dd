"""Our sources and our archive as a Ray Datasource and Datasink: ``ray.data.read_datasource(UnitSource(…))``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import Datasink, Datasource, ReadTask
from ray.data.datasource.datasink import WriteResult

from pipelines.plan import Units, UnitWriter
from storage import s3_meter

TASKS_A_CORE = 16


class UnitSource(Datasource):
    """The pending units of a source.

    Planning takes time and memory in proportion to the number of read tasks, never to that of units or of rows.

    Parameters
    ----------
    source: reads a unit as an Arrow table.
    pending: the units to read, as ranges.
    progress: an actor handle whose ``used`` takes what reading asked of S3; may be None.
    url: of what is read, for that count.
    """

    def __init__(self, source: Units, pending: list[range], progress: Any = None, url: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source, self._pending, self._progress, self._url = source, pending, progress, url

    @staticmethod
    def tasks(pending: list[range], cores: int) -> int:
        """How many read tasks to ask for: enough to balance the load, no more than there are units."""
        return max(1, min(sum(map(len, pending)), TASKS_A_CORE * cores))

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Units"

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all pending units in the stream."""
        return sum(map(len, self._pending)) * self._source.unit_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """At most ``parallelism`` tasks of about equal numbers of units."""
        del per_task_row_limit, data_context
        total = sum(map(len, self._pending))
        tasks = []
        for k in range(min(parallelism, total)):
            mine = _slice(self._pending, k * total // parallelism, (k + 1) * total // parallelism)
            count = sum(map(len, mine))
            if count:
                size = count * self._source.unit_bytes
                metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
                tasks.append(ReadTask(partial(_read, self._source, mine, self._progress, self._url), metadata))
        return tasks


class ArchiveSink(Datasink[int]):
    """Writes each whole unit: to an archive, or to what a later pass reads.

    Parameters
    ----------
    writer: of the units.
    progress: an actor handle whose ``done`` takes each receipt's unit and bytes, and ``used`` what was asked of S3;
        may be None.
    url: of the source, which a writer may read too.
    """

    def __init__(self, writer: UnitWriter, progress: Any = None, url: str = "") -> None:
        self._writer, self._progress, self._url = writer, progress, url

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Archive"

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        """Write the units of these blocks; returns how many."""
        del ctx
        written = 0
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if not table.num_rows:
                continue
            for unit in pc.unique(table.column("unit")).to_pylist():
                with _counted(self._progress, self._url):
                    receipt = self._writer.write(table.filter(pc.equal(table.column("unit"), unit)))
                written += 1
                if self._progress is not None:
                    size = sum(o.size for o in receipt.objects)
                    self._progress.done.remote(receipt.unit, receipt.source_bytes, size)
        return written

    def on_write_complete(self, write_result: WriteResult[int]) -> None:
        """Nothing: the manifest is written by the run, which knows whether all units are there."""


def _read(source: Units, pending: list[range], progress: Any, url: str) -> Iterator[pa.Table]:
    for units in pending:
        for unit in units:
            with _counted(progress, url):
                table = source.read(unit)
            yield table


@contextmanager
def _counted(progress: Any, url: str) -> Iterator[None]:
    """Tell what the block asks of S3."""
    s3_meter.watch(url)
    before = s3_meter.used()
    yield
    if progress is not None and (used := s3_meter.used() - before).total:
        progress.used.remote(used)


def _slice(ranges: list[range], start: int, stop: int) -> list[range]:
    out = []
    for units in ranges:
        part = units[max(0, start) : max(0, stop)]
        if part:
            out.append(part)
        start -= len(units)
        stop -= len(units)
    return out
