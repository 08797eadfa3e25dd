"""The rare large values of a plane, folded: a token for several of them, and which of them it is in raw bits.

A token needs at least one of a table's 4,096 slots. Where the tail of a Gaussian spreads a handful of values over
twenty tokens, these slots cost every other symbol more than the few values are worth: 0.004 bit at five bits a value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import BAD_HEADER, DIRECT, I32, SLOTS, U8, U32, get, put

# mypy: disable-error-code="return-value, assignment, arg-type, operator, index"

BEGIN_BITS: Final = 7
WIDTH_BITS: Final = 2
COUNT_BITS: Final = 12
HEADER: Final = BEGIN_BITS + WIDTH_BITS + COUNT_BITS
MOST_BYTES: Final = 4 + (3 << COUNT_BITS) // 8  # of all that is written of a tail
_LEAST: Final = 16  # bits that must be saved


@njit(cache=True, nogil=True)
def choose_tail(counts: I32, size: int) -> tuple[int, int, int]:
    """Where the tail of ``size`` values below 128 begins, how many low bits to leave raw, how many values: or 0, 0, 0.

    ``counts`` (blocks, TOKENS) are their histograms.
    """
    every = np.zeros(DIRECT, np.int64)
    for b in range(counts.shape[0]):
        for t in range(DIRECT):
            every[t] += counts[b, t]
    last = DIRECT - 1
    while every[last] == 0:
        last -= 1
    slot = size / SLOTS * 1.4426950408889634  # bits that a slot less costs all others
    begin, tail, best, found = last + 1, np.int64(0), np.float64(_LEAST), (np.int64(0), np.int64(0), np.int64(0))
    while begin > 1 and every[begin - 1] * SLOTS < size:
        begin -= 1
        tail += every[begin]
        if tail >= 1 << COUNT_BITS:
            break
        for width in range(1, 1 << WIDTH_BITS):
            tokens = last - begin + 1
            saved = slot * (tokens - ((tokens - 1 >> width) + 1)) - tail * width - HEADER
            if saved > best:
                best, found = saved, (np.int64(begin), np.int64(width), tail)
    return found


@njit(cache=True, nogil=True)
def fold_tail(values: U32, tokens: U8, block: int, counts: I32) -> tuple[int, int, U8]:
    """Fold the tail of values below 128 if it pays: where it begins, how many low bits are off, these in order.

    Values, tokens (alike, as no shift is) and the histograms of each ``block`` of them are changed in place.
    """
    begin, width, count = choose_tail(counts, values.size)
    lows, k, mask = np.empty(count, np.uint8), 0, np.uint8((1 << width) - 1)
    for b in range(counts.shape[0] if count else 0):
        left = 0
        for t in range(begin, DIRECT):
            n = counts[b, t]
            left += n
            counts[b, t] = 0
            counts[b, begin + ((t - begin) >> width)] += n
        for first in range(b * block, min((b + 1) * block, tokens.size) if left else 0, 64):
            part = tokens[first : first + 64]
            most = np.uint8(0)
            for i in range(part.size):  # the tail is rare: most parts have none of it
                most = max(most, part[i])
            for i in range(part.size if most >= begin else 0):
                if part[i] >= begin:
                    far = np.uint8(part[i] - np.uint8(begin))
                    lows[k] = far & mask
                    k += 1
                    part[i] = np.uint8(begin + (far >> np.uint8(width)))
                    values[first + i] = part[i]
    return begin, width, lows


@njit(cache=True, nogil=True)
def put_tail(out: U8, at: int, begin: int, width: int, lows: U8) -> int:
    """Write whether values were folded, how, and their low bits; the next bit."""
    at = put(out, at, 1 if width else 0, 1)
    if width == 0:
        return at
    at = put(out, put(out, put(out, at, begin, BEGIN_BITS), width, WIDTH_BITS), lows.size, COUNT_BITS)
    for low in lows:
        at = put(out, at, np.int64(low), width)
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
