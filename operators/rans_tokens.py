"""Values to tokens and raw bits, and back, for the rANS coder, compiled.

A value is its low bits, stored raw, and the rest: itself as a token below 128, else a token of exponent and two
mantissa bits with the others raw behind (the hybrid integers of JPEG XL). How many low bits are raw is set for each
run of values: run s ends before ``ends[s]`` and leaves ``shifts[s]``; or, where there are no ``ends``, for each
column: value i leaves ``shifts[i mod len(shifts)]``. The raw bits of a chunk are all low bits, then those of the large
tokens, least significant first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import CUT, DIRECT, I32, TOO_WIDE, U8, U32

# mypy: disable-error-code="return-value, assignment, arg-type"
_WORD = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def zigzag(values: npt.NDArray[Any], signed: bool, out: U32) -> int:
    """Fold signed values of up to 32 bits to unsigned ones; the bitwise or of all."""
    every = np.uint32(0)
    if signed:
        for i in range(values.size):
            v = np.int32(values[i])
            u = np.uint32((v << np.int32(1)) ^ (v >> np.int32(31)))
            out[i] = u
            every |= u
    else:
        for i in range(values.size):
            u = np.uint32(values[i])
            out[i] = u
            every |= u
    return np.int64(every)


@njit(cache=True, nogil=True)
def high_parts(values: U32, ends: I32, shifts: I32, out: U32) -> int:
    """Values without their low bits; how many low bits there are in all."""
    total = np.int64(0)
    if ends.size:
        begin = 0
        for s in range(ends.size):
            v, o = values[begin : ends[s]], out[begin : ends[s]]
            begin = ends[s]
            shift = np.uint32(shifts[s] & 31)
            for i in range(v.size):
                o[i] = v[i] >> shift
            total += shifts[s] * v.size
    else:
        column = 0
        for i in range(values.size):
            out[i] = values[i] >> np.uint32(shifts[column])
            total += shifts[column]
            column = column + 1 if column + 1 < shifts.size else 0
    return total


@njit(cache=True, nogil=True)
def tokenize(highs: U32, tokens: U8) -> int:
    """Token of each value without low bits; how many raw bits follow the tokens."""
    total = np.int64(0)
    real = np.empty(1024, np.float32)
    bits = real.view(np.int32)
    for begin in range(0, highs.size, 1024):
        v, t = highs[begin : begin + 1024], tokens[begin : begin + 1024]
        every = np.uint32(0)
        for i in range(v.size):
            every |= v[i]
            t[i] = np.uint8(v[i])
        if every < DIRECT:
            continue
        for i in range(v.size):  # exponent and mantissa are those of a float; half the value fits a signed one
            half = np.int32(v[i] >> np.uint32(1))
            half = half & np.int32(0x7FFFFF80) if half >= np.int32(1 << 24) else half  # converts without rounding
            real[i] = np.float32(half)
        extra = np.int32(0)
        for i in range(v.size):
            k = np.int32(np.int32(DIRECT - ((127 + 6) << 2)) + (bits[i] >> np.int32(21)))
            large = v[i] >= np.uint32(DIRECT)
            t[i] = np.uint8(k) if large else t[i]
            extra += (((k - np.int32(DIRECT)) >> np.int32(2)) + np.int32(5)) if large else np.int32(0)
        total += extra
    return total


@njit(cache=True, nogil=True)
def extra_width(token: int) -> int:
    """Raw bits that follow a token."""
    return ((token - DIRECT) >> 2) + 5 if token >= DIRECT else 0


@njit(cache=True, nogil=True)
def put_raw(values: U32, highs: U32, tokens: U8, ends: I32, shifts: I32, out: U32) -> None:
    """Write all raw bits into ``out``, which has room for one number more; the bits beyond the last are 0."""
    held, filled, at = np.uint64(0), np.uint64(0), np.uint64(0)
    if ends.size:
        joined = np.empty(values.size // 2, np.uint32)
        begin = 0
        for s in range(ends.size):
            v = values[begin : ends[s]]
            begin = ends[s]
            width = np.uint64(shifts[s])
            if width == np.uint64(0):
                continue
            mask = np.uint32((np.uint64(1) << width) - np.uint64(1))
            first = 0
            if width <= np.uint64(16):  # two at a time
                up = np.uint32(width)
                for i in range(v.size // 2):
                    joined[i] = (v[2 * i] & mask) | np.uint32((v[2 * i + 1] & mask) << up)
                for i in range(v.size // 2):
                    held |= np.uint64(joined[i]) << filled
                    filled += width + width
                    out[at] = np.uint32(held & _WORD)
                    full = filled >> np.uint64(5)
                    at += full
                    held >>= full << np.uint64(5)
                    filled &= np.uint64(31)
                first = v.size // 2 * 2
            for i in range(first, v.size):
                held |= np.uint64(v[i] & mask) << filled
                filled += width
                out[at] = np.uint32(held & _WORD)
                full = filled >> np.uint64(5)
                at += full
                held >>= full << np.uint64(5)
                filled &= np.uint64(31)
    else:
        column = 0
        for i in range(values.size):
            width = np.uint64(shifts[column])
            held |= (np.uint64(values[i]) & ((np.uint64(1) << width) - np.uint64(1))) << filled
            filled += width
            out[at] = np.uint32(held & _WORD)
            full = filled >> np.uint64(5)
            at += full
            held >>= full << np.uint64(5)
            filled &= np.uint64(31)
            column = column + 1 if column + 1 < shifts.size else 0
    for begin in range(0, tokens.size, 1024):
        t, h = tokens[begin : begin + 1024], highs[begin : begin + 1024]
        every = np.uint8(0)
        for i in range(t.size):
            every |= t[i]
        for i in range(t.size if every >= DIRECT else 0):
            k = np.uint64(t[i])
            if k >= np.uint64(DIRECT):
                width = ((k - np.uint64(DIRECT)) >> np.uint64(2)) + np.uint64(5)
                held |= (np.uint64(h[i]) & ((np.uint64(1) << width) - np.uint64(1))) << filled
                filled += width
                out[at] = np.uint32(held & _WORD)
                full = filled >> np.uint64(5)
                at += full
                held >>= full << np.uint64(5)
                filled &= np.uint64(31)
    out[at] = np.uint32(held & _WORD)


@njit(cache=True, nogil=True)
def highs_of(tokens: U8, raw: U32, begin_bit: int, bits: int, out: U32) -> int:
    """Values without their low bits; the bit after the last one used, or an error when that is beyond ``bits``.

    Raw bits behind tokens begin at ``begin_bit``; ``raw`` holds 64 bits more than ``bits``.
    """
    bit = np.uint64(begin_bit)
    for begin in range(0, tokens.size, 1024):
        t, o = tokens[begin : begin + 1024], out[begin : begin + 1024]
        every = np.uint8(0)
        for i in range(t.size):
            o[i] = np.uint32(t[i])
            every |= t[i]
        if every < DIRECT:
            continue
        needed = np.int64(bit)
        for i in range(t.size):
            needed += extra_width(np.int64(t[i]))
        if needed > bits:
            return CUT
        for i in range(t.size):
            k = np.uint64(t[i])
            if k >= np.uint64(DIRECT):
                width = ((k - np.uint64(DIRECT)) >> np.uint64(2)) + np.uint64(5)
                place = bit >> np.uint64(5)
                word = np.uint64(raw[place]) | np.uint64(raw[place + np.uint64(1)]) << np.uint64(32)
                low = (word >> (bit & np.uint64(31))) & ((np.uint64(1) << width) - np.uint64(1))
                o[i] = np.uint32(((np.uint64(4) | (k & np.uint64(3))) << width | low) & _WORD)
                bit += width
    return np.int64(bit)


@njit(cache=True, nogil=True)
def join_low_parts(highs: U32, ends: I32, shifts: I32, raw: U32) -> int:
    """Put the low bits back, in place; 0 or an error when a value passes 32 bits."""
    if ends.size == 0:
        bit, column, lost = np.uint64(0), 0, np.uint64(0)
        for i in range(highs.size):
            width = np.uint64(shifts[column])
            place = bit >> np.uint64(5)
            word = np.uint64(raw[place]) | np.uint64(raw[place + np.uint64(1)]) << np.uint64(32)
            low = (word >> (bit & np.uint64(31))) & ((np.uint64(1) << width) - np.uint64(1))
            value = np.uint64(highs[i]) << width | low
            lost |= value >> np.uint64(32)
            highs[i] = np.uint32(value & _WORD)
            bit += width
            column = column + 1 if column + 1 < shifts.size else 0
        return TOO_WIDE if lost else 0
    at, begin = np.int64(0), 0
    for s in range(ends.size):
        h = highs[begin : ends[s]]
        begin = ends[s]
        width = np.uint32(shifts[s] & 31)
        if width == 0:
            continue
        r, offset = raw[at >> 5 :], np.uint32(at & 31)
        mask = np.uint32((np.uint32(1) << width) - np.uint32(1))
        every = np.uint32(0)
        for i in range(h.size):
            every |= h[i]
        if np.uint64(every) >> np.uint64(32 - width):
            return TOO_WIDE
        for i in range(h.size):
            bit = np.uint64(offset) + np.uint64(i) * np.uint64(width)
            place = bit >> np.uint64(5)
            word = np.uint64(r[place]) | np.uint64(r[place + np.uint64(1)]) << np.uint64(32)
            low = np.uint32(word >> (bit & np.uint64(31))) & mask
            h[i] = np.uint32(h[i] << width) | low
        at += shifts[s] * h.size
    return 0


@njit(cache=True, nogil=True)
def unzigzag(values: U32, signed: bool, limit: int, out: npt.NDArray[Any]) -> int:
    """Values of their sign again, as bit patterns of a signed type; 0 or an error when one passes ``limit``."""
    every = np.uint32(0)
    for i in range(values.size):
        every |= values[i]
    if every > np.uint64(limit):
        return TOO_WIDE
    if signed:
        for i in range(values.size):
            u = values[i]
            out[i] = np.int32((u >> np.uint32(1)) ^ np.uint32(np.uint32(0) - (u & np.uint32(1))))
    else:
        for i in range(values.size):
            out[i] = np.int32(values[i])
    return 0


@njit(cache=True, nogil=True)
def unfold(tokens: U8, signed: bool, out: npt.NDArray[Any]) -> None:
    """Tokens that are values themselves, back to signed ones."""
    if signed:
        for i in range(tokens.size):
            t = tokens[i]
            out[i] = np.int8((t >> np.uint8(1)) ^ (np.uint8(0) - (t & np.uint8(1))))
    else:
        for i in range(tokens.size):
            out[i] = np.int16(tokens[i])


@njit(cache=True, nogil=True)
def check_sum(words: U32, seed: int) -> int:
    """32-bit sum of words weighted by odd multiples of their place: one changed word always changes it."""
    h = np.uint32(seed)
    for i in range(words.size):
        weight = np.uint32((i * 0x9E3779B2) | 1)
        h = np.uint32(h + np.uint32(np.uint32(words[i] + 1) * weight))
    return np.int64(np.uint32(h ^ (h >> np.uint32(15))))
