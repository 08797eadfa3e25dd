"""Row codes: for each run of values its scale, in eighths of an octave, and how coarse a grid its numbers lie on.

A decoder multiplies by the scales, so they come from constants written below times exact powers of two: the same on
every machine, whatever its mathematical library.

A code is stored as the difference to that of the row before, and the codes of a plane are chosen together: a scale that
is off by x octaves costs 0.69·x² bits a value (the spread of the rows' errors, by Jensen's inequality), so a row keeps
to the row before it where that saves more than it costs. Deviations that differ by chance only, as those of rows of
noise, come out as one code.

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

PER_OCTAVE = 8
ZERO = 1280
"""The code of scale 1: scale = 2 ** ((code - ZERO) / PER_OCTAVE). Codes 88 to 2304 cover all of float32; 0 says that a
row has no finite value but zero. Sixteen bits, because eight would leave 32 octaves, fewer than optimizer states span;
the entropy coder pays for the spread of the codes only."""
GRAIN = 2432
"""What one bit of grain adds to a code."""

_EIGHTHS = np.array(
    [1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
     1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424]
)  # fmt: skip
_BORDERS = np.array([1.0905077326652577, 1.2968395546510096, 1.5422108254079407, 1.8340080864093424])

_FINE = 64  # parts of a code in which a row's own scale is measured
_REACH = 2  # codes that a row's may lie from its own scale
_FARTHEST = 40  # differences of codes beyond which all cost alike
_ROUNDS = 4
_UNIT = 1024  # parts of a bit
_COST = 0.010829  # bits a value, of a scale off by one code: (ln 2 / PER_OCTAVE)² / ln 2

_SMALLEST = math.ldexp(1.0, -100)  # keeps the steps of 26 refinement bits above the subnormals, which may be flushed

Codes = npt.NDArray[np.unsignedinteger]


def encode(bits: Words, dtype: str) -> npt.NDArray[np.uint16]:
    """Codes (rows,) of the words (rows, side) of a lossy format: root mean square of the finite values, and grain.

    A scale is within 2.5 codes of its row's.
    """
    form = dtype_info(dtype)
    values, own = to_float32(bits, dtype), np.zeros(len(bits), np.int64)
    codes: npt.NDArray[np.uint16] = _encode(values, np.ascontiguousarray(bits), _BORDERS, form.mantissa, own)
    _settle(codes, own, values.shape[1], _logarithms(len(codes)))
    return codes


def scale_of(codes: Codes) -> npt.NDArray[np.float64]:
    """Scales (rows,) of ``codes``, positive; meaningless for code 0."""
    octave, eighth = np.divmod(codes.astype(np.int64) % GRAIN - ZERO, PER_OCTAVE)
    return np.asarray(np.ldexp(_EIGHTHS[eighth], octave), np.float64)


def grains(codes: Codes) -> npt.NDArray[np.int64]:
    """Low mantissa bits (rows,) that are zero in every value of a row."""
    return codes.astype(np.int64) // GRAIN


def stored(codes: Codes) -> npt.NDArray[np.int16]:
    """Codes (…, rows) int16 as an archive keeps them: each less the one before it, the first of a plane less ZERO."""
    return np.diff(codes.astype(np.uint16), prepend=np.uint16(ZERO)).view(np.int16)


def loaded(kept: npt.NDArray[np.int16]) -> npt.NDArray[np.uint16]:
    """Inverse of :func:`stored`."""
    steps = np.ascontiguousarray(kept, np.int16).view(np.uint16)
    return np.cumsum(steps, axis=-1, dtype=np.uint16) + np.uint16(ZERO)


def row_steps(codes: Codes, step: float) -> npt.NDArray[np.float32]:
    """Lattice steps (rows,) float32: ``step`` times the scale, at least 2**-100 so that no product is subnormal.

    The step of an all-zero row is 0: whatever its index, it comes back as zeros.
    """
    steps = np.maximum(np.float64(np.float32(step)) * scale_of(codes), _SMALLEST)
    return np.where(codes == 0, 0, steps).astype(np.float32)


@lru_cache(maxsize=16)
def _logarithms(most: int) -> npt.NDArray[np.int64]:
    """log2 of 1 … ``most`` + 1 in 1/1024 bits, rounded, so that a choice is the same on every machine."""
    return np.asarray(np.rint(np.log2(np.arange(1, most + 2)) * _UNIT), np.int64)


@njit(cache=True, nogil=True)
def _settle(codes, own, side, logs):  # type: ignore[no-untyped-def]
    """Set codes to those that cost least along the plane: bits of the differences, and of scales that are off.

    ``own`` are the rows' scales in parts of a code. The Viterbi algorithm over the codes near each row's own; the
    bits of a difference are those of its share in the round before.
    """
    rows, width = codes.size, 2 * _REACH + 1
    weight = side * _COST * _UNIT / (_FINE * _FINE)
    origin = np.empty((rows, width), np.int64)
    cost, before = np.zeros(width, np.int64), np.zeros(width, np.int64)
    counts = np.zeros(2 * _FARTHEST + 2, np.int64)
    for _ in range(_ROUNDS):
        counts[:] = 0
        for r in range(1, rows):
            counts[_bin(np.int64(codes[r]) - np.int64(codes[r - 1]))] += 1
        for r in range(rows):
            before[:] = cost
            for place in range(width):
                code = _candidate(codes[r], own[r], place)
                off = (code % GRAIN - ZERO) * _FINE - own[r] if codes[r] else 0
                least, origin[r, place] = np.int64(1) << 60, 0
                for j in range(width if r else 1):
                    step = _bin(code - _candidate(codes[r - 1], own[r - 1], j)) if r else 0
                    total = before[j] + logs[rows] - logs[counts[step]] if r else np.int64(0)
                    if total < least:
                        least, origin[r, place] = total, j
                cost[place] = least + np.int64(weight * (off * off))
        i = np.int64(cost.argmin())
        for r in range(rows - 1, -1, -1):
            best = _candidate(codes[r], own[r], i)
            i = origin[r, i]
            codes[r] = best


@njit(cache=True, nogil=True, inline="always")
def _candidate(code, own, i):  # type: ignore[no-untyped-def]
    """The i-th code near a row's own scale; rows of zeros have one only."""
    near = (own + _FINE // 2) // _FINE + i - _REACH + ZERO
    return np.int64(code) // GRAIN * GRAIN + min(max(near, 1), GRAIN - 1) if code else np.int64(0)


@njit(cache=True, nogil=True, inline="always")
def _bin(step):  # type: ignore[no-untyped-def]
    return step + _FARTHEST if -_FARTHEST <= step <= _FARTHEST else 2 * _FARTHEST + 1


@njit(cache=True, nogil=True)
def _encode(values, bits, borders, mantissa, own):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    words = values.view(np.uint32)
    codes = np.zeros(rows, np.uint16)
    for r in range(rows):
        total, count, every = 0.0, 0, np.int64(1) << mantissa
        for i in range(side):
            every |= np.int64(bits[r, i])
            if words[r, i] & np.uint32(0x7F800000) != np.uint32(0x7F800000):
                total += np.float64(values[r, i]) * np.float64(values[r, i])
                count += 1
        if total > 0.0:
            fraction, exponent = math.frexp(total / count)
            quarter = 0
            for border in borders:  # 8 log2(rms) = 4 log2(mean square), rounded
                quarter += 2.0 * fraction >= border
            grain = 0
            while not (every >> grain) & 1:
                grain += 1
            codes[r] = 4 * (exponent - 1) + quarter + ZERO + GRAIN * grain
            own[r] = np.int64(np.rint(4.0 * (exponent + np.log2(fraction)) * _FINE))
    return codes
