"""The rows that a search in place has read so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.vectors import F32, I64
from storage.chunks import spans


@dataclass(frozen=True)
class Held:
    """Rows whose coefficients are known down to some level: whole chunks, ascending.

    rows: (n,) numbers; chunk: (n,) theirs; arrays: (n, width) by name, of levels the lattice indices; total: (n, r)
    float32 coefficients, None while level 0 alone is known: most rows get no further.
    """

    rows: I64
    chunk: I64
    arrays: dict[str, npt.NDArray[Any]]
    total: F32 | None = None

    def of(self, chunks: I64) -> Held:
        """Only these chunks, which must be among them."""
        keep = self.places(chunks)
        if len(keep) == len(self.rows):
            return self
        arrays = {name: array[keep] for name, array in self.arrays.items()}
        total = None if self.total is None else self.total[keep]
        return Held(self.rows[keep], self.chunk[keep], arrays, total)

    def places(self, chunks: I64) -> I64:
        """Where the rows of these chunks, ascending, are."""
        return spans(np.searchsorted(self.chunk, chunks), np.searchsorted(self.chunk, chunks, "right"))

    def members(self, chunks: I64, matches: I64 | None) -> I64:
        """Where the rows of these chunks are that may be answered: those in ``matches``, ascending; None for all."""
        places = self.places(chunks)
        if matches is None:
            return places
        at = np.minimum(np.searchsorted(matches, self.rows[places]), max(len(matches) - 1, 0))
        return np.asarray(places[matches[at] == self.rows[places]])
