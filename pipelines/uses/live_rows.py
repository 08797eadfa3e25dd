"""The rows of a collection that stand now, as one run of numbers: those of the archive, then those of the log."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from cluster.artefact import draw
from cluster.build import open_collection
from cluster.vectors import F32, I64
from storage.rowlog import RowLog, View


@dataclass(frozen=True)
class LiveRows:
    """A collection at one version. Positions 0 … count - 1 have no gaps where rows were replaced or deleted."""

    view: View

    @classmethod
    def of(cls, url: str | LiveRows) -> LiveRows:
        """The collection at ``url``, or the only one under a root, as it is now; or what was opened already."""
        return url if isinstance(url, LiveRows) else cls(RowLog(open_collection(url)).view)

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.view.base.url

    @property
    def count(self) -> int:
        """Rows."""
        return self.view.count

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.view.base.dim

    @property
    def compared(self) -> str:
        """``l2``, or ``cosine`` for similarities: a long row is no neighbour of every other one."""
        return "l2" if self.view.base.metric == "l2" else "cosine"

    def read(self, start: int, stop: int) -> F32:
        """Vectors (stop - start, dim) of positions, exact."""
        base = self.view.base
        if not self.view.changed:
            return base.read(start, stop)
        rows = self._numbers[start:stop]
        early = rows[: np.searchsorted(rows, base.count)]
        parts = [self.view.vectors[rows[len(early) :] - base.count]]
        if len(early):
            low = int(early[0])
            parts.insert(0, base.read(low, int(early[-1]) + 1)[early - low])
        return np.concatenate(parts)

    def sample(self, rows: int) -> F32:
        """About so many vectors, spread evenly."""
        if not self.view.changed:
            return draw(self.view.base, rows)
        return self.view.take(self._numbers[np.unique(np.linspace(0, self.count - 1, rows).round().astype(np.int64))])

    def table(self, positions: I64) -> pa.Table:
        """Ids and metadata of positions, in this order."""
        return self.view.table(self._numbers[positions] if self.view.changed else positions)

    def ids(self, positions: I64) -> list[str]:
        """Ids of positions, in this order."""
        names: list[str] = self.table(positions).column("id").to_pylist()
        return names

    @cached_property
    def _numbers(self) -> I64:
        """Row number of each position, ascending."""
        stand = np.ones(self.view.base.count, np.bool_)
        stand[self.view.gone] = False
        return np.concatenate([np.flatnonzero(stand), self.view.base.count + self.view.live])
