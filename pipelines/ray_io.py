"""Our sources and our archive as a Ray Datasource and Datasink: ``ray.data.read_datasource(UnitSource(…))``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import Datasink, Datasource, ReadTask
from ray.data.datasource.datasink import WriteResult

from pipelines import stage
from pipelines.attempts import Committed
from pipelines.ledger import Span
from pipelines.observe import Observer
from pipelines.pending import Pending

if TYPE_CHECKING:
    from pipelines.plan import Units, UnitWriter

TASKS_A_CORE = 16
_NOBODY = Observer()


@runtime_checkable
class Narrows(Protocol):
    """A source that gives a worker less of itself: what the units it reads do not need stays behind."""

    def narrowed(self, units: Iterable[int]) -> Units:
        """For these units, in rising order."""


class UnitSource(Datasource):
    """The pending units of a source.

    Planning takes time and memory in proportion to the number of read tasks, never to that of units or of rows.

    Parameters
    ----------
    source: reads a unit as an Arrow table.
    pending: the units to read.
    observer: is told how long reading took, and what it asked of S3.
    url: of what is read, for that count.
    written: tells the units that are committed: a task that Ray runs again gives those by their number alone.
    """

    def __init__(
        self,
        source: Units,
        pending: Pending,
        observer: Observer = _NOBODY,
        url: str = "",
        written: Callable[[], set[int]] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source, self._pending = source, pending
        self._read = partial(_read, observer=observer, url=url, written=written)

    @staticmethod
    def tasks(pending: Pending, cores: int) -> int:
        """How many read tasks to ask for: enough to balance the load, no more than there are units."""
        return max(1, min(len(pending), TASKS_A_CORE * cores))

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Units"

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all pending units in the stream."""
        return len(self._pending) * self._source.unit_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """At most ``parallelism`` tasks of about equal numbers of units."""
        del per_task_row_limit, data_context
        total = len(self._pending)
        tasks = []
        for k in range(min(parallelism, total)):
            mine = self._pending.part(k * total // parallelism, (k + 1) * total // parallelism)
            if mine:
                source = self._source.narrowed(mine) if isinstance(self._source, Narrows) else self._source
                size = len(mine) * self._source.unit_bytes
                metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
                read = update_wrapper(partial(self._read, source, mine), _read)  # Ray names the task that is large
                tasks.append(ReadTask(read, metadata))
        return tasks


class ArchiveSink(Datasink[int]):
    """Writes each whole unit: to an archive, or to what a later pass reads.

    Parameters
    ----------
    writer: of the units.
    observer: is told each receipt's unit and bytes, how long writing took, and what was asked of S3.
    url: of the source, which a writer may read too.
    """

    def __init__(self, writer: UnitWriter, observer: Observer = _NOBODY, url: str = "") -> None:
        self._writer, self._observer, self._url = writer, observer, url

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Archive"

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        """Write the units of these blocks; returns how many.

        Where Ray runs this again, since the worker that ran it is dead, units that it committed are left as they are.
        """
        del ctx
        committed, written = Committed(self._writer.written), 0
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            for unit in pc.unique(table.column("unit")).to_pylist() if table.num_rows else ():
                if unit not in committed:
                    mine = table.filter(pc.equal(table.column("unit"), unit))
                    stage.write(self._writer, mine, unit, self._observer, [], self._url)
                    written += 1
        return written

    def on_write_complete(self, write_result: WriteResult[int]) -> None:
        """Nothing: the manifest is written by the run, which knows whether all units are there."""


def _read(
    source: Units, pending: Pending, *, observer: Observer, url: str, written: Callable[[], set[int]] | None
) -> Iterator[pa.Table]:
    committed = Committed(written) if written is not None else ()
    try:
        for unit in pending:
            if unit in committed:
                yield stage.written(unit)
                continue
            spans: list[Span] = []
            with observer.counted(url), observer.operator("read", unit, spans) as amounts:
                table = source.read(unit)
                amounts.bytes_out = table.nbytes
            observer.keep(spans)  # told with what the same process does to the unit
            yield table
    finally:
        observer.flush()
