"""The worker of a stage: it takes units through operators that share its process; the last one writes them."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from operators.operator import Operator
from pipelines.attempts import Committed
from pipelines.ledger import Span
from pipelines.observe import Observer

if TYPE_CHECKING:
    from pipelines.plan import UnitWriter

CALLS = 2
"""Calls of a worker at once: while one unit is coded, others are read and written."""
WRITTEN = pa.schema([("unit", pa.int64()), ("is_written", pa.bool_())])
"""What comes out of the last stage, and what stands for a unit that needs no work any more."""


def written(unit: int) -> pa.Table:
    """One row of :data:`WRITTEN`."""
    return pa.table({"unit": [unit], "is_written": [True]}, WRITTEN)


def kinds(operators: tuple[Operator, ...]) -> list[str]:
    """What each is called."""
    return [o.kind for o in operators]  # type: ignore[attr-defined]


class Stage:
    """The actor of a stage; tells how long each operator took over a unit, and the most memory it has taken.

    One unit is coded at a time, so that a worker takes one core and the work arrays of one unit.

    Parameters
    ----------
    operators: applied one after another.
    observer: is told.
    writer: of the units, in the last stage; else they go on to the next.
    url: of the source, which a writer may read too.
    """

    def __init__(
        self, operators: tuple[Operator, ...], observer: Observer, writer: UnitWriter | None = None, url: str = ""
    ) -> None:
        self.operators, self.observer, self.writer, self.url = operators, observer, writer, url
        self.kinds = kinds(operators)
        self.committed = Committed(writer.written) if writer is not None else None
        self._coding = Lock()
        pa.set_cpu_count(1)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Apply the operators to whole units, one after another so that one unit's arrays are held at a time."""
        units = pc.unique(batch.column("unit")).to_pylist()
        for unit in units:
            if batch.schema.equals(WRITTEN) or (self.committed is not None and unit in self.committed):
                yield written(unit)
                continue
            table = batch if len(units) == 1 else batch.filter(pc.equal(batch.column("unit"), unit))
            spans: list[Span] = []
            with self._coding:
                for operator, kind in zip(self.operators, self.kinds, strict=True):
                    with self.observer.operator(kind, unit, spans) as amounts:
                        amounts.bytes_in = table.nbytes
                        table = operator.apply(table)
                        amounts.bytes_out = table.nbytes
            if self.writer is None:
                self.observer.tell(spans)
                yield table
            else:
                write(self.writer, table, unit, self.observer, spans, self.url)
                if self.committed is not None:
                    self.committed.add(unit)
                yield written(unit)


def write(writer: UnitWriter, table: pa.Table, unit: int, observer: Observer, spans: list[Span], url: str = "") -> None:
    """Write a whole unit, and tell it with the spans of what came before."""
    with observer.counted(url), observer.operator("write", unit, spans) as amounts:
        receipt = writer.write(table)
        amounts.bytes_in, amounts.bytes_out = table.nbytes, sum(o.size for o in receipt.objects)
    observer.written(spans, receipt.unit, receipt.source_bytes, amounts.bytes_out)
