"""Runs of one table along a plane, compiled: where they end, what is in them, how fine their table is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import DIRECT, GRAIN, I32, MAX_SHIFT, TOKENS, U8, U32
from operators.rans_cluster import I64, UNIT, block_counts, table_size
from operators.rans_freq import law_bits

_EQUAL = 6 * UNIT  # what a shorter table may cost more: raw bits are faster
_FEW = 2  # tables of a chunk of which laws are fitted
_FARTHER = 512 * UNIT  # more than the best at which no shorter table is tried

# mypy: disable-error-code="return-value, assignment, arg-type, no-any-return, operator, index"


@njit(cache=True, nogil=True)
def run_counts(tokens: U8, ends: I32, ids: U8, counts: I32) -> None:
    """Histogram of each table: run s ends before token ``ends[s]`` and is of table ``ids[s]``."""
    part = np.empty((1, TOKENS), np.int32)
    counts[:] = 0
    begin = np.int64(0)
    for s in range(ends.size):
        end = np.int64(ends[s])
        part[:] = 0
        block_counts(tokens[begin:end], end - begin, part)
        for t in range(TOKENS):
            counts[ids[s], t] += part[0, t]
        begin = end


@njit(cache=True, nogil=True)
def symbol_costs(counts: I32, shifts: I32, costs: I32) -> None:
    """(T, TOKENS) size of a symbol under each table in 1/1024 bits, raw bits included; 20 bits for one it lacks."""
    for c in range(shifts.size):
        total = np.int64(0)
        for t in range(TOKENS):
            total += counts[c, t]
        for t in range(TOKENS):
            n = counts[c, t]
            bits = np.int64(np.rint(np.log2(total / n) * UNIT)) if n else np.int64(20 * UNIT)
            costs[c, t] = bits + UNIT * (shifts[c] + (((t - DIRECT) >> 2) + 5 if t >= DIRECT else 0))


@njit(cache=True, nogil=True)
def _cost(values: U32, shift: int, costs: I32) -> int:
    total = np.int64(0)
    for i in range(values.size):
        high = np.int64(values[i]) >> shift
        if high >= DIRECT:
            e = 7
            while high >> (e + 1):
                e += 1
            high = DIRECT + (e - 7) * 4 + ((high >> (e - 2)) & 3)
        total += costs[high]
    return total


@njit(cache=True, nogil=True)
def move_borders(values: U32, ends: I32, ids: U8, shifts: I32, costs: I32, reach: int) -> None:
    """Move each border between runs, by at most ``reach`` and a whole number of GRAIN, to where it costs least.

    A run between two that suit its symbols better may come to nothing.
    """
    begin = 0
    for s in range(ends.size - 1):
        one, other = ids[s], ids[s + 1]
        low, high = max(begin, ends[s] - reach), min(ends[s + 1], ends[s] + reach)
        balance, least, best = np.int64(0), np.int64(0), low
        for at in range(low, high, GRAIN):
            stop = min(at + GRAIN, high)
            piece = values[at:stop]
            balance += _cost(piece, np.int64(shifts[one]), costs[one])
            balance -= _cost(piece, np.int64(shifts[other]), costs[other])
            if balance < least:
                least, best = balance, stop
        ends[s] = best
        begin = best


@njit(cache=True, nogil=True)
def join_runs(ends: I32, ids: U8) -> int:
    """Drop runs that are empty and join neighbours of one table, in place; how many runs remain."""
    left, begin = 0, np.int64(0)
    for s in range(ends.size):
        if ends[s] == begin:
            continue
        begin = np.int64(ends[s])
        if left and ids[left - 1] == ids[s]:
            left -= 1
        ends[left], ids[left] = ends[s], ids[s]
        left += 1
    return left


@njit(cache=True, nogil=True)
def cheapest_path(cost: npt.NDArray[np.float64], switch: float, ids: U8) -> None:
    """The table of each block (G,) of least total ``cost`` (G, T), where every change of table costs ``switch``."""
    groups, tables = cost.shape
    came = np.empty((groups, tables), np.uint8)
    total = cost[0].copy()
    for g in range(1, groups):
        best = total.argmin()
        changed = total[best] + switch
        for t in range(tables):
            came[g, t] = t
            if changed < total[t]:
                came[g, t], total[t] = best, changed
            total[t] += cost[g, t]
    at = total.argmin()
    for g in range(groups - 1, -1, -1):
        ids[g] = at
        at = came[g, at]


@njit(cache=True, nogil=True)
def renumber(ids: U8, shifts: I32) -> int:
    """Number the tables in use by their first run, in place; how many there are."""
    number = np.full(shifts.size, -1, np.int64)
    moved = shifts.copy()
    k = 0
    for s in range(ids.size):
        if number[ids[s]] < 0:
            number[ids[s]] = k
            shifts[k] = moved[ids[s]]
            k += 1
        ids[s] = number[ids[s]]
    return k


@njit(cache=True, nogil=True)
def coarsen(counts: I32, shifts: I32, lut: I64) -> bool:
    """Raise the shift of each cluster to where table and symbols together cost least; whether any was.

    ``counts`` become what they will be, large tokens aside: those are to be counted again. ``lut`` is
    :func:`operators.rans_cluster.n_log_n`. Tables are estimated as for clusters: to lay out each that is tried took two
    thirds of the time of an exact plane, and coded no better. Only where tables are few are laws fitted, which take a
    tenth of that time.
    """
    row, best, none = np.empty(TOKENS, np.int32), np.empty(TOKENS, np.int32), np.zeros(TOKENS, np.int32)
    any_raised = False
    for c in range(shifts.size):
        row[:] = counts[c]
        size, raw, shift, raised = table_size(row, none, TOKENS, lut), np.int64(0), np.int64(shifts[c]), np.int64(0)
        while shift < MAX_SHIFT and row[1:].any():
            for t in range(DIRECT // 2):
                row[t] = row[2 * t] + row[2 * t + 1]
                raw += UNIT * np.int64(row[t])
            row[DIRECT // 2 : DIRECT] = 0  # raw bits of large tokens stay as many
            shift += 1
            less = table_size(row, none, TOKENS, lut) + raw
            if less > size + _FARTHER:
                break
            if less <= size + _EQUAL:
                size, raised = min(size, less), shift
                best[:] = row
        if raised and (shifts.size > _FEW or UNIT * law_bits(counts[c]) + _EQUAL >= size):
            counts[c], shifts[c] = best, raised
            any_raised = True
    return any_raised
