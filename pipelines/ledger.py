"""What the workers of a run did, in bounded memory: totals and a timeline by operator, the slowest units.

A run of ten million units keeps as much as one of ten: the timeline has a fixed number of slots, which cover twice the
time whenever they are full.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

SLOTS = 240
"""Slots of a timeline at most; half of them once it has been folded."""
FIRST_SLOT_S = 0.05
SLOWEST = 12
_OPEN = 100_000  # units begun and not written; more were lost with their workers


@dataclass(frozen=True)
class Span:
    """One unit in one operator.

    Parameters
    ----------
    operator: its kind; ``read`` and ``write`` at the ends of the stream.
    unit: number of the unit in its pass.
    began: seconds since 1970, by the worker's clock.
    seconds: wall time.
    bytes_in, bytes_out: of the Arrow tables; what ``read`` takes in and ``write`` gives out are bytes in storage, where
        they are known.
    worker: host and process.
    """

    operator: str
    unit: int
    began: float
    seconds: float
    bytes_in: int
    bytes_out: int
    worker: str


@dataclass
class Timeline:
    """Amounts over time since the run began, in slots of ``slot`` seconds."""

    slot: float = FIRST_SLOT_S
    amounts: list[float] = field(default_factory=list)

    def add(self, start: float, stop: float, amount: float) -> None:
        """Spread an amount evenly over a time; what lies before the beginning counts at the beginning."""
        start, stop = max(0.0, start), max(0.0, stop)
        while stop >= SLOTS * self.slot:
            self._fold()
        first, last = int(start / self.slot), int(stop / self.slot)
        self.amounts.extend([0.0] * (last + 1 - len(self.amounts)))
        for at in range(first, last + 1):
            inside = min(stop, (at + 1) * self.slot) - max(start, at * self.slot)
            self.amounts[at] += amount * (inside / (stop - start) if stop > start else 1.0)

    def rates(self) -> list[float]:
        """Amounts a second, slot by slot."""
        return [amount / self.slot for amount in self.amounts]

    def _fold(self) -> None:
        self.slot *= 2
        pairs = [*self.amounts, 0.0][: len(self.amounts) + len(self.amounts) % 2]
        self.amounts = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]


@dataclass
class Total:
    """All that an operator did in a pass. busy: seconds of work, over time; workers: who did it."""

    units: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    busy: Timeline = field(default_factory=Timeline)
    workers: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class UnitTime:
    """A written unit. operators: seconds by operator; seconds: of them all."""

    step: str
    unit: int
    seconds: float
    operators: dict[str, float]


class Ledger:
    """Takes spans as they come; tells totals by pass and operator.

    began: seconds since 1970, the beginning of all timelines.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.totals: dict[tuple[str, str], Total] = {}
        self.written = Timeline()
        self._open: dict[tuple[str, int], dict[str, Span]] = {}
        self._slowest: list[tuple[float, int, UnitTime]] = []

    def add(self, step: str, span: Span) -> None:
        """A unit went through an operator of a pass."""
        total = self.totals.setdefault((step, span.operator), Total())
        total.units += 1
        total.seconds += span.seconds
        total.bytes_in += span.bytes_in
        total.bytes_out += span.bytes_out
        total.workers.add(span.worker)
        start = span.began - self.began
        total.busy.add(start, start + span.seconds, span.seconds)
        if len(self._open) < _OPEN:
            self._open.setdefault((step, span.unit), {})[span.operator] = span

    def done(self, step: str, unit: int, at: float, source_bytes: int) -> list[Span]:
        """A unit is written, at so many seconds since 1970; returns its spans."""
        spans = list(self._open.pop((step, unit), {}).values())
        operators = {span.operator: span.seconds for span in spans}
        seconds = sum(operators.values())
        self.written.add(at - self.began, at - self.began, source_bytes)
        entry = (seconds, unit, UnitTime(step, unit, seconds, operators))
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif entry[:2] > self._slowest[0][:2]:
            heapq.heapreplace(self._slowest, entry)
        return spans

    def waiting(self, step: str, before: str, after: str) -> int:
        """Units that left an operator of a pass and have not come through a later one."""
        left, arrived = self.totals.get((step, before)), self.totals.get((step, after))
        return max(0, (left.units if left else 0) - (arrived.units if arrived else 0))

    @property
    def slowest(self) -> list[UnitTime]:
        """The units that took the most work, the first the longest."""
        return [entry[2] for entry in sorted(self._slowest, key=lambda entry: (-entry[0], entry[1]))]
