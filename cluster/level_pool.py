"""Rows of one level of a collection, decoded, kept in memory up to a bound: what searches in place score again.

Decoding a chunk takes longer than scoring it, so what is kept is not the chunk but the lattice indices of its rows, a
byte a value at the usual bits. A chunk has a slot of its own; where there are fewer slots than chunks, one that was
used longest ago makes room. The system gives memory to the slots as they are filled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from cluster.vectors import I64
from operators.rowscan import Index


class LevelPool:
    """Slots for ``chunks`` chunks of ``block`` rows of ``width`` indices of ``dtype``, of at most ``limit`` bytes."""

    def __init__(self, chunks: int, block: int, width: int, dtype: npt.DTypeLike, limit: int) -> None:
        self._each = block * width
        slots = min(chunks, limit // max(1, self._each * np.dtype(dtype).itemsize))
        self._rows = np.empty(slots * self._each, dtype)
        self._slot = np.full(chunks, -1, np.int64)
        self._chunk = np.full(slots, -1, np.int64)
        self._used = np.zeros(slots, np.int64)  # by slot, the number of the search that used it last
        self._searches = self._filled = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the indices; a chunk that needs a wider one is not kept."""
        return self._rows.dtype

    @property
    def limit(self) -> int:
        """Bytes of all slots."""
        return self._rows.nbytes

    @property
    def whole(self) -> bool:
        """Whether there is a slot for every chunk."""
        return len(self._chunk) == len(self._slot)

    def absent(self, chunks: I64) -> I64:
        """Those of the chunks that are not kept."""
        return chunks[self._slot[chunks] < 0]

    def complete(self, wanted: I64, heights: I64, read: I64, tall: I64, came: Index) -> Index:
        """Rows of the chunks ``wanted`` (c,), one chunk below the other: kept ones, and those just ``read``.

        heights: (c,) rows of each. read: (m,) chunks that were absent, and any others, of ``tall`` (m,) rows each;
        came: (sum of ``tall``, width) theirs.
        """
        self._searches += 1
        slots = self._slot[wanted]
        self._used[slots[slots >= 0]] = self._searches
        first = np.cumsum(tall) - tall
        if came.dtype == self.dtype:
            self._keep(read, tall, first, came)
        elif len(read):
            fits = np.maximum.reduceat(np.abs(came).max(axis=1, initial=0), first) <= np.iinfo(self.dtype).max
            self._keep(read[fits], tall[fits], first[fits], came.astype(self.dtype))
        if len(read) == len(wanted) and (slots < 0).all():
            return came
        slots = self._slot[wanted]
        lacking = np.flatnonzero(slots < 0)
        if len(lacking):
            slots[lacking] = -1 - first[np.searchsorted(read, wanted[lacking])]
        out = np.empty((int(heights.sum()), came.shape[1]), np.promote_types(came.dtype, self.dtype))
        _gather(self._rows, self._each, slots, came.reshape(-1), heights, came.shape[1], out.reshape(-1))
        return out

    def _keep(self, chunks: I64, heights: I64, first: I64, rows: Index) -> None:
        free = np.arange(self._filled, min(self._filled + len(chunks), len(self._used)))
        self._filled += len(free)
        self._used[free] = self._searches
        slots = np.concatenate([free, self._oldest(min(len(chunks) - len(free), len(self._used) - len(free)))])
        chunks = chunks[: len(slots)]
        self._slot[self._chunk[slots[len(free) :]]] = -1
        self._slot[chunks], self._chunk[slots], self._used[slots] = slots, chunks, self._searches
        _put(self._rows, self._each, slots, rows.reshape(-1), first, heights, rows.shape[1])

    def _oldest(self, count: int) -> I64:
        """Slots that were not used for longest, but none that this search needs."""
        if not count:
            return np.empty(0, np.int64)
        slots = np.argpartition(self._used, count - 1)[:count]
        return np.asarray(slots[self._used[slots] < self._searches])


@njit(cache=True, nogil=True)
def _put(kept, each, slots, rows, first, heights, width):  # type: ignore[no-untyped-def]
    """Rows into slots of ``each`` values."""
    for i in range(slots.size):
        to, source, size = slots[i] * each, first[i] * width, heights[i] * width
        _copy(rows[source : source + size], kept[to : to + size])


@njit(cache=True, nogil=True)
def _gather(kept, each, slots, came, heights, width, out):  # type: ignore[no-untyped-def]
    """Chunks from their slots; where the slot is -1 - r, from row r of ``came`` on."""
    at = 0
    for i in range(slots.size):
        size, slot = heights[i] * width, slots[i]
        if slot >= 0:
            _copy(kept[slot * each : slot * each + size], out[at : at + size])
        else:
            source = (-1 - slot) * width
            _copy(came[source : source + size], out[at : at + size])
        at += size


@njit(inline="always")
def _copy(source, to):  # type: ignore[no-untyped-def]
    """An assignment of slices would look first whether they overlap."""
    for j in range(to.size):
        to[j] = source[j]
