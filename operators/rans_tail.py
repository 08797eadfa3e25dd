"""The rare large values of a plane, folded: a token for several of them, and which of them it is in raw bits.

A token needs at least one of a table's 4,096 slots. Where the tail of a Gaussian spreads a handful of values over
twenty tokens, these slots cost every other symbol more than the few values are worth: 0.004 bit at five bits a value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import BAD_HEADER, DIRECT, SLOTS, U8, U32, get, put

# mypy: disable-error-code="return-value, assignment, arg-type, operator, index"

BEGIN_BITS: Final = 7
WIDTH_BITS: Final = 2
COUNT_BITS: Final = 12
HEADER: Final = BEGIN_BITS + WIDTH_BITS + COUNT_BITS
MOST_BYTES: Final = 4 + (3 << COUNT_BITS) // 8  # of all that is written of a tail
_LEAST: Final = 16  # bits that must be saved


@njit(cache=True, nogil=True)
def choose_tail(values: U32) -> tuple[int, int, int]:
    """Where the tail of values below 128 begins, how many low bits to leave raw, how many values: or 0, 0, 0."""
    counts, other = np.zeros(DIRECT, np.int32), np.zeros((3, DIRECT), np.int32)  # neighbours are often alike
    first, second, third = other[0], other[1], other[2]
    for i in range(0, values.size - 3, 4):
        counts[values[i]] += 1
        first[values[i + 1]] += 1
        second[values[i + 2]] += 1
        third[values[i + 3]] += 1
    for i in range(values.size // 4 * 4, values.size):
        counts[values[i]] += 1
    for t in range(DIRECT):
        counts[t] += first[t] + second[t] + third[t]
    last = DIRECT - 1
    while counts[last] == 0:
        last -= 1
    slot = values.size / SLOTS * 1.4426950408889634  # bits that a slot less costs all others
    begin, tail, best, found = last + 1, np.int64(0), np.float64(_LEAST), (np.int64(0), np.int64(0), np.int64(0))
    while begin > 1 and counts[begin - 1] * SLOTS < values.size:
        begin -= 1
        tail += counts[begin]
        if tail >= 1 << COUNT_BITS:
            break
        for width in range(1, 1 << WIDTH_BITS):
            tokens = last - begin + 1
            saved = slot * (tokens - ((tokens - 1 >> width) + 1)) - tail * width - HEADER
            if saved > best:
                best, found = saved, (np.int64(begin), np.int64(width), tail)
    return found


@njit(cache=True, nogil=True)
def put_tail(values: U32, out: U8, at: int) -> int:
    """Fold values below 128 in place, if it pays, and write whether, how, and their low bits; the next bit."""
    begin, width, count = choose_tail(values)
    at = put(out, at, 1 if width else 0, 1)
    if width == 0:
        return at
    at = put(out, put(out, put(out, at, begin, BEGIN_BITS), width, WIDTH_BITS), count, COUNT_BITS)
    for i in range(values.size):
        if values[i] >= begin:
            far = np.int64(values[i]) - begin
            at = put(out, at, far & ((1 << width) - 1), width)
            values[i] = begin + (far >> width)
    return at


@njit(cache=True, nogil=True)
def get_tail(data: U8, at: int) -> tuple[int, int, int, int]:
    """Read what :func:`put_tail` wrote, but for the low bits, at bit ``at``: where those lie, begin, width, how many.

    The first is an error where it is negative; nothing is folded where the width is 0.
    """
    if get(data, at, 1) <= 0:
        return at + 1, 0, 0, 0
    begin, width = get(data, at + 1, BEGIN_BITS), get(data, at + 1 + BEGIN_BITS, WIDTH_BITS)
    count = get(data, at + 1 + BEGIN_BITS + WIDTH_BITS, COUNT_BITS)
    bad = begin < 1 or width < 1 or count < 1
    return (BAD_HEADER, 0, 0, 0) if bad else (at + 1 + HEADER, begin, width, count)


@njit(cache=True, nogil=True)
def unfold_tail(values: npt.NDArray[Any], begin: int, width: int, count: int, data: U8, at: int) -> int:
    """Undo it, in place, with the bits at ``at`` of ``data``; 0, or an error unless there are ``count`` such values."""
    left = np.int64(count)
    for first in range(0, values.size, 1024):
        part = values[first : first + 1024]
        most = part[0]
        for i in range(part.size):
            most = max(most, part[i])
        if most < begin:
            continue
        for i in range(part.size):
            if part[i] >= begin:
                low = get(data, at, width)
                at += width
                left -= 1
                value = begin + (((np.int64(part[i]) - begin) << width) | low)
                if left < 0 or low < 0 or value >= DIRECT:
                    return BAD_HEADER
                part[i] = value
    return BAD_HEADER if left else 0
