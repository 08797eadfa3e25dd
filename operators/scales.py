"""Row codes: for each run of values its scale, and how coarse a grid its numbers lie on.

A decoder multiplies by the scales, so they come from constants written below times exact powers of two: the same on
every machine, whatever its mathematical library.

The scales of a plane are whole eighths of an octave apart; where they begin is a plane's own, to 1/64. A code is stored
as the difference to that of the row before, and the codes of a plane are chosen together: scales that are off by x
octaves, more or less than the others, cost 0.69·x² bits a value (the spread of the rows' errors, by Jensen's
inequality), so a row keeps to the row before it where that saves more than it costs. Deviations that differ by chance
only, as those of rows of noise, come out as one code; if all planes shared their eighths, a deviation that lies between
two would take both in turn, which costs 0.003 bit.

The *grain* is the number of low mantissa bits that are zero in every value of the row. It is 0 in trained float32, 13
where a row was stored in float16 before (embeddings of tokens that were never seen), 16 where it was bfloat16.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.floats import Words, dtype_info, to_float32

PER_OCTAVE = 64
APART = 8
"""Codes of one plane are whole multiples of so much apart."""
ZERO = 10240
"""The code of scale 1: scale = 2 ** ((code - ZERO) / PER_OCTAVE). Codes 704 to 18432 cover float32; 0 says that a row
has no finite value but zero. The entropy coder pays for the spread of the codes only."""
GRAIN = 19456
"""What one bit of grain adds to a code."""

_EIGHTHS = np.array(
    [1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
     1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424]
)  # fmt: skip
_SIXTY_FOURTHS = np.array(
    [1.0, 1.0108892860517005, 1.0218971486541166, 1.0330248790212284,
     1.0442737824274138, 1.0556451783605572, 1.0671404006768237, 1.0787607977571199]
)  # fmt: skip
_POWERS = np.multiply.outer(_EIGHTHS, _SIXTY_FOURTHS).reshape(-1)

_FINE = 64  # parts of an eighth in which a row's own scale is measured
_REACH = 2  # eighths that a row's may lie from its own scale
_FARTHEST = 40  # differences, in eighths, beyond which all cost alike
_ROUNDS = 4
_UNIT = 1024  # parts of a bit
_COST = 0.010829  # bits a value, of a scale off by an eighth: (ln 2 / 8)² / ln 2

_SMALLEST = math.ldexp(1.0, -100)  # keeps the steps of 26 refinement bits above the subnormals, which may be flushed

Codes = npt.NDArray[np.unsignedinteger]


def encode(bits: Words, dtype: str) -> npt.NDArray[np.uint32]:
    """Codes (rows,) of the words (rows, side) of a lossy format: root mean square of the finite values, and grain.

    A scale is within 2.5 eighths of an octave of its row's.
    """
    values, own = to_float32(bits, dtype), np.zeros(len(bits), np.int64)
    grain = np.empty(len(bits), np.int64)
    _measure(values, np.ascontiguousarray(bits), dtype_info(dtype).mantissa, own, grain)
    rows = grain >= 0
    mean = int(np.floor_divide(2 * own[rows].sum() + rows.sum(), 2 * rows.sum())) if rows.any() else 0
    begin = (mean + _FINE // APART // 2) // (_FINE // APART) % APART
    own -= begin * (_FINE // APART)
    eighths = np.zeros(len(bits), np.int64)
    _settle(eighths, own, grain, values.shape[1], _logarithms(len(eighths)))
    return np.where(rows, eighths * APART + begin, 0).astype(np.uint32)


def scale_of(codes: Codes) -> npt.NDArray[np.float64]:
    """Scales (rows,) of ``codes``, positive; meaningless for code 0."""
    octave, part = np.divmod(codes.astype(np.int64) % GRAIN - ZERO, PER_OCTAVE)
    return np.asarray(np.ldexp(_POWERS[part], octave), np.float64)


def grains(codes: Codes) -> npt.NDArray[np.int64]:
    """Low mantissa bits (rows,) that are zero in every value of a row."""
    return codes.astype(np.int64) // GRAIN


def stored(codes: Codes) -> npt.NDArray[np.int32]:
    """Codes (…, rows) int32 as an archive keeps them: each less the one before it, in eighths.

    The first of a plane is less ZERO, and says where the plane's scales begin besides.
    """
    eighths, begin = np.divmod(codes.astype(np.int32), np.int32(APART))
    kept = np.diff(eighths, prepend=np.int32(ZERO // APART))
    kept[..., 0] = kept[..., 0] * APART + begin.max(axis=-1)
    return np.asarray(kept, np.int32)


def loaded(kept: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """Inverse of :func:`stored`; any numbers give some codes."""
    steps = np.array(kept, np.int32)
    begin = steps[..., :1] % APART
    steps[..., 0] //= APART
    eighths = (np.cumsum(steps, axis=-1, dtype=np.int32) + ZERO // APART) & 0xFFFF
    return np.where(eighths == 0, 0, eighths * APART + begin).astype(np.uint32)


def row_steps(codes: Codes, step: float) -> npt.NDArray[np.float32]:
    """Lattice steps (rows,) float32: ``step`` times the scale, at least 2**-100 so that no product is subnormal, and
    finite, so that none is NaN.

    The step of an all-zero row is 0: whatever its index, it comes back as zeros.
    """
    steps = np.clip(np.float64(np.float32(step)) * scale_of(codes), _SMALLEST, np.finfo(np.float32).max)
    return np.where(codes == 0, 0, steps).astype(np.float32)


@lru_cache(maxsize=16)
def _logarithms(most: int) -> npt.NDArray[np.int64]:
    """log2 of 1 … ``most`` + 1 in 1/1024 bits, rounded, so that a choice is the same on every machine."""
    return np.asarray(np.rint(np.log2(np.arange(1, most + 2)) * _UNIT), np.int64)


@njit(cache=True, nogil=True)
def _settle(codes, own, grain, side, logs):  # type: ignore[no-untyped-def]
    """Set codes, in eighths, to those that cost least along the plane: bits of differences, and scales that are off.

    ``own`` are the rows' scales in parts of an eighth, ``grain`` is negative for rows without one. The Viterbi
    algorithm over the codes near each row's own; the bits of a difference are those of its share in the round before.
    """
    rows, width = codes.size, 2 * _REACH + 1
    weight = side * _COST * _UNIT / (_FINE * _FINE)
    origin = np.empty((rows, width), np.int64)
    cost, before = np.zeros(width, np.int64), np.zeros(width, np.int64)
    counts = np.zeros(2 * _FARTHEST + 2, np.int64)
    for r in range(rows):
        codes[r] = _candidate(grain[r], own[r], _REACH)
    for _ in range(_ROUNDS):
        counts[:] = 0
        for r in range(1, rows):
            counts[_bin(codes[r] - codes[r - 1])] += 1
        for r in range(rows):
            before[:] = cost
            for place in range(width):
                code = _candidate(grain[r], own[r], place)
                off = (code % (GRAIN // APART) - ZERO // APART) * _FINE - own[r] if codes[r] else 0
                least, origin[r, place] = np.int64(1) << 60, 0
                for j in range(width if r else 1):
                    step = _bin(code - _candidate(grain[r - 1], own[r - 1], j)) if r else 0
                    total = before[j] + logs[rows] - logs[counts[step]] if r else np.int64(0)
                    if total < least:
                        least, origin[r, place] = total, j
                cost[place] = least + np.int64(weight * (off * off))
        i = np.int64(cost.argmin())
        for r in range(rows - 1, -1, -1):
            codes[r] = _candidate(grain[r], own[r], i)
            i = origin[r, i]


@njit(cache=True, nogil=True, inline="always")
def _candidate(grain, own, i):  # type: ignore[no-untyped-def]
    """The i-th code near a row's own scale; rows of zeros have one only."""
    near = (own + _FINE // 2) // _FINE + i - _REACH + ZERO // APART
    return grain * (GRAIN // APART) + min(max(near, 1), GRAIN // APART - 1) if grain >= 0 else np.int64(0)


@njit(cache=True, nogil=True, inline="always")
def _bin(step):  # type: ignore[no-untyped-def]
    return step + _FARTHEST if -_FARTHEST <= step <= _FARTHEST else 2 * _FARTHEST + 1


@njit(cache=True, nogil=True)
def _measure(values, bits, mantissa, own, grain):  # type: ignore[no-untyped-def]
    """Scale of each row in parts of an eighth of an octave, and grain; -1 for rows of nothing but zeros."""
    rows, side = values.shape
    words = values.view(np.uint32)
    for r in range(rows):
        total, count, every = 0.0, 0, np.int64(1) << mantissa
        for i in range(side):
            every |= np.int64(bits[r, i])
            if words[r, i] & np.uint32(0x7F800000) != np.uint32(0x7F800000):
                total += np.float64(values[r, i]) * np.float64(values[r, i])
                count += 1
        grain[r] = -1
        if total > 0.0:
            fraction, exponent = math.frexp(total / count)
            grain[r] = 0
            while not (every >> grain[r]) & 1:
                grain[r] += 1
            own[r] = np.int64(np.rint(4.0 * (exponent + np.log2(fraction)) * _FINE))
