"""Units that are still to be made, as borders of ranges in an array: ten million of them, scattered, take 80 MB."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pending:
    """Ascending ranges of unit numbers.

    Parameters
    ----------
    borders: int64 ``(n, 2)``, first unit and the one after the last of each range; no range is empty.
    """

    borders: I64
    _before: I64 = field(init=False, repr=False)  # units before each range, and all of them

    def __post_init__(self) -> None:
        lengths = self.borders[:, 1] - self.borders[:, 0]
        object.__setattr__(self, "_before", np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def all(cls, units: int) -> Pending:
        """Every unit of so many."""
        return cls(np.array([[0, units]] if units else np.empty((0, 2)), np.int64))

    @classmethod
    def missing(cls, units: int, done: Collection[int]) -> Pending:
        """Those that are not in ``done``; numbers beyond ``units`` are ignored."""
        numbers = np.fromiter(done, np.int64, len(done))
        open_ = np.zeros(units + 2, np.int8)
        open_[1:-1] = 1
        open_[numbers[numbers < units] + 1] = 0
        steps = np.flatnonzero(np.diff(open_))
        return cls(steps.reshape(-1, 2).astype(np.int64))

    def __len__(self) -> int:
        return int(self._before[-1])

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.borders.tolist():
            yield from range(start, stop)

    def part(self, start: int, stop: int) -> Pending:
        """The ``start``-th unit of these to that before the ``stop``-th."""
        start, stop = max(0, start), min(len(self), stop)
        if start >= stop:
            return Pending(self.borders[:0])
        first = int(np.searchsorted(self._before, start, "right")) - 1
        last = int(np.searchsorted(self._before, stop, "left"))
        borders = self.borders[first:last].copy()
        borders[0, 0] += start - self._before[first]
        borders[-1, 1] -= self._before[last] - stop
        return Pending(borders)

    def __reduce__(self) -> tuple[type[Pending], tuple[I64]]:
        return Pending, (self.borders,)
