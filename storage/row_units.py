"""A source of rows cut into units of equal length: what the stream reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.row_code import CHUNK, LIST
from storage.rows import RowSource


@dataclass(frozen=True)
class RowUnits:
    """Rows as they come.

    Parameters
    ----------
    source: of the rows.
    per_unit: rows of a unit.
    block: rows of a chunk, where units go into an archive as they are; 0 where not.
    row_bytes: the most that a row takes beside its vector: its text or picture, its metadata.
    """

    source: RowSource
    per_unit: int
    block: int = 0
    row_bytes: int = 4096

    @property
    def units(self) -> int:
        """How many there are."""
        return -(-self.source.count // self.per_unit)

    @property
    def unit_bytes(self) -> int:
        """The most bytes one takes in the stream."""
        return self.per_unit * max(self.row_bytes, 4 * (self.source.dim or 0))

    def read(self, unit: int) -> pa.Table:
        """Rows with ``unit`` and ``row``; with ``CHUNK`` and ``LIST`` (0, there are none) where blocks are cut."""
        start = unit * self.per_unit
        table = self.numbered(start, min(self.source.count, start + self.per_unit))
        n = table.num_rows
        table = table.append_column("unit", pa.array(np.full(n, unit, np.int64)))
        if not self.block:
            return table
        chunks = np.arange(start, start + n) // self.block
        return table.append_column(CHUNK, pa.array(chunks)).append_column(LIST, pa.array(np.zeros(n, np.int32)))

    def numbered(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop`` of the source with ``row``, their number in it."""
        return self.source.read(start, stop).append_column("row", pa.array(np.arange(start, stop)))
