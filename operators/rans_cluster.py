"""Which blocks of a plane share a frequency table: agglomerative clustering by coded size.

Blocks that lie side by side are merged first (a plane stored in the order of its context drifts), then any two
clusters, as long as the table that is saved costs more than the fit that is lost. Sizes are in 1/1024 bits, as
integers, so that the choice is the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import DIRECT, I32, MAX_SHIFT, TOKENS, U8, U32

# mypy: disable-error-code="return-value, assignment, arg-type, no-any-return, operator, index"

I64 = npt.NDArray[np.int64]
UNIT = 1024
_LUT = 1 << 16
_NEVER = -(1 << 60)
_PAIRED = 96  # clusters that are compared each with each


@lru_cache(maxsize=1)
def n_log_n() -> I64:
    """n·log2(n) in 1/1024 bits for n up to 65,536."""
    n = np.arange(_LUT + 1, dtype=np.float64)
    n[0] = 1
    return np.rint(n * np.log2(n) * UNIT).astype(np.int64)


@njit(cache=True, nogil=True)
def n_log2_n(lut: I64, n: int) -> int:
    """n·log2(n) in 1/1024 bits, from the table that :func:`n_log_n` makes."""
    if n < lut.size:
        return lut[n]
    k = 0  # n = m·2^k (rounded): n·log2(n) ≈ 2^k·(m·log2 m + k·m)
    while (n >> k) >= lut.size:
        k += 1
    m = n >> k
    return (lut[m] + m * k * UNIT) << k


@njit(cache=True, nogil=True)
def _beyond(values: U32, shift: int) -> int:
    least, over = np.uint32(DIRECT << shift), np.int32(0)
    for i in range(values.size):
        over += np.int32(values[i] >= least)
    return over


@njit(cache=True, nogil=True)
def block_shifts(values: U32, block: int, shifts: I32) -> None:
    """For each block the fewest low bits to take off so that 31 in 32 values fall among the direct tokens.

    A block keeps the shift of the one before when its own would be one more or less and nearly as good: blocks of
    different shifts cannot share a table.
    """
    before = np.int64(-1)
    for b in range(shifts.size):
        v = values[b * block : (b + 1) * block]
        low, high = np.int64(0), np.int64(MAX_SHIFT)
        if before >= 0 and _beyond(v, before) <= v.size // 12:  # the common case first
            high = before
            low = max(np.int64(0), before - 2)
            if low and _beyond(v, low - 1) <= v.size // 32:
                low, high = np.int64(0), low - 1
        while low < high:
            shift = (low + high) // 2
            if _beyond(v, shift) <= v.size // 32:
                high = shift
            else:
                low = shift + 1
        if before - 1 <= low <= before + 1 and _beyond(v, before) <= v.size // 12:
            low = before
        shifts[b] = low
        before = low


@njit(cache=True, nogil=True)
def block_counts(tokens: U8, block: int, counts: I32) -> None:
    """Histogram of each block: ``counts`` is (blocks, TOKENS) of zeros."""
    other = np.zeros((3, TOKENS), np.int32)  # neighbours are often alike: count them apart
    first, second, third = other[0], other[1], other[2]
    for b in range(counts.shape[0]):
        row, t = counts[b], tokens[b * block : (b + 1) * block]
        for i in range(0, t.size - 3, 4):
            row[t[i]] += 1
            first[t[i + 1]] += 1
            second[t[i + 2]] += 1
            third[t[i + 3]] += 1
        for i in range(t.size // 4 * 4, t.size):
            row[t[i]] += 1
        for k in range(TOKENS):
            row[k] += first[k] + second[k] + third[k]
        other[:] = 0


@njit(cache=True, nogil=True)
def table_size(a: I32, b: I32, top: int, lut: I64) -> int:
    """Symbols below ``top`` of two histograms together under their own table, and that table."""
    total, logs, present, last = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for t in range(top):
        n = np.int64(a[t]) + np.int64(b[t])
        if n:
            total += n
            logs += n_log2_n(lut, n)
            present += 1
            last = np.int64(t)
    return n_log2_n(lut, total) - logs + UNIT * (20 + 2 * present + last // 2)


@njit(cache=True, nogil=True)
def _gain(counts: I32, shifts: I32, size: I64, a: int, b: int, top: int, lut: I64) -> int:
    """What merging two clusters saves; _NEVER when their shifts differ."""
    return size[a] + size[b] - table_size(counts[a], counts[b], top, lut) if shifts[a] == shifts[b] else _NEVER


@njit(cache=True, nogil=True)
def _merge(counts: I32, size: I64, owner: I64, into: int, gone: int, gain: int) -> None:
    for t in range(TOKENS):
        counts[into, t] += counts[gone, t]
    size[into] += size[gone] - gain
    owner[gone] = into


@njit(cache=True, nogil=True)
def _merge_neighbours(counts: I32, shifts: I32, size: I64, owner: I64, top: int, lut: I64) -> int:
    """Merge clusters that lie side by side while it pays, or while there are too many; how many remain."""
    n = owner.size
    after = np.empty(n, np.int64)  # the next cluster along the plane
    gain = np.empty(n, np.int64)  # of merging with it
    for b in range(n):
        after[b] = b + 1
        gain[b] = _gain(counts, shifts, size, b, b + 1, top, lut) if b + 1 < n else _NEVER
    left = n
    while True:
        best = np.int64(0)
        for b in range(n):
            if gain[b] > gain[best]:
                best = np.int64(b)
        if gain[best] == _NEVER or (gain[best] <= 0 and left <= _PAIRED):
            return left
        gone = after[best]
        _merge(counts, size, owner, best, gone, gain[best])
        after[best] = after[gone]
        gain[gone] = _NEVER
        left -= 1
        before = best - 1
        while before >= 0 and owner[before] != before:
            before -= 1
        for b in (before, best):
            if b >= 0:
                gain[b] = _gain(counts, shifts, size, b, after[b], top, lut) if after[b] < n else _NEVER


@njit(cache=True, nogil=True)
def _merge_any(counts: I32, shifts: I32, size: I64, owner: I64, live: I64, most: int, top: int, lut: I64) -> int:
    """Merge any two of the clusters ``live`` while it pays, or while there are more than ``most``; how many remain."""
    alive = live.size
    gain = np.empty((alive, alive), np.int64)
    for i in range(alive):
        for j in range(alive):
            gain[i, j] = _gain(counts, shifts, size, live[i], live[j], top, lut) if i < j else _NEVER
    left = alive
    while True:
        bi, bj = np.int64(0), np.int64(0)
        for i in range(alive):
            for j in range(i + 1, alive):
                if gain[i, j] > gain[bi, bj]:
                    bi, bj = np.int64(i), np.int64(j)
        if gain[bi, bj] == _NEVER or (gain[bi, bj] <= 0 and left <= most):
            return left
        _merge(counts, size, owner, live[bi], live[bj], gain[bi, bj])
        left -= 1
        for i in range(alive):
            gain[i, bj] = _NEVER
            gain[bj, i] = _NEVER
        for i in range(alive):
            if i != bi and owner[live[i]] == live[i]:
                gain[min(i, bi), max(i, bi)] = _gain(counts, shifts, size, live[i], live[bi], top, lut)


@njit(cache=True, nogil=True)
def cluster(counts: I32, shifts: I32, most: int, lut: I64, ids: U8) -> int:
    """Merge blocks into at most ``most`` clusters and number them by first use.

    ``counts`` (blocks, TOKENS) and ``shifts`` are overwritten: the first rows become the clusters'. Blocks of unequal
    shift are never merged; how many clusters remain, or 0 when too many.
    """
    n = counts.shape[0]
    top = np.int64(0)
    for b in range(n):
        for t in range(top, TOKENS):
            if counts[b, t]:
                top = np.int64(t + 1)
    none = np.zeros(TOKENS, np.int32)
    owner, size = np.empty(n, np.int64), np.empty(n, np.int64)
    for b in range(n):
        owner[b], size[b] = b, table_size(counts[b], none, top, lut)
    alive = _merge_neighbours(counts, shifts, size, owner, top, lut)
    live, k = np.empty(alive, np.int64), 0
    for b in range(n):
        if owner[b] == b:
            live[k] = b
            k += 1
    if _merge_any(counts, shifts, size, owner, live, most, top, lut) > most:
        return 0
    number, k = np.full(n, -1, np.int64), 0
    for b in range(n):
        root = np.int64(b)
        while owner[root] != root:
            root = owner[root]
        if number[root] < 0:
            number[root] = k
            for t in range(TOKENS):  # row k is free: its cluster's first block lies before this one
                counts[k, t] = counts[root, t]
            shifts[k] = shifts[root]
            k += 1
        ids[b] = number[root]
    return k
