"""Row codes: for each run of values its scale, in eighths of an octave, and how coarse a grid its numbers lie on.

A decoder multiplies by the scales, so they come from constants written below times exact powers of two: the same on
every machine, whatever its mathematical library.

The *grain* is the number of low mantissa bits that are zero in every value of the row. It is 0 in trained float32, 13
where a row was stored in float16 before (embeddings of tokens that were never seen), 16 where it was bfloat16.
"""

from __future__ import annotations

import math

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

_SMALLEST = math.ldexp(1.0, -100)  # keeps the steps of 26 refinement bits above the subnormals, which may be flushed

Codes = npt.NDArray[np.unsignedinteger]


def encode(bits: Words, dtype: str) -> npt.NDArray[np.uint16]:
    """Codes (rows,) of the words (rows, side) of a lossy format: root mean square of the finite values, and grain."""
    form = dtype_info(dtype)
    values = to_float32(bits, dtype)
    return _encode(values, np.ascontiguousarray(bits), _BORDERS, form.mantissa, form.sign)  # type: ignore[no-any-return]


def scale_of(codes: Codes) -> npt.NDArray[np.float64]:
    """Scales (rows,) of ``codes``, positive; meaningless for code 0."""
    octave, eighth = np.divmod(codes.astype(np.int64) % GRAIN - ZERO, PER_OCTAVE)
    return np.asarray(np.ldexp(_EIGHTHS[eighth], octave), np.float64)


def grains(codes: Codes) -> npt.NDArray[np.int64]:
    """Low mantissa bits (rows,) that are zero in every value of a row."""
    return codes.astype(np.int64) // GRAIN


def stored(codes: Codes) -> npt.NDArray[np.int16]:
    """Codes as an archive keeps them: distances from the code of scale 1, small numbers that an entropy coder knows."""
    return (codes.astype(np.uint16) - np.uint16(ZERO)).view(np.int16)


def loaded(kept: npt.NDArray[np.int16]) -> npt.NDArray[np.uint16]:
    """Inverse of :func:`stored`."""
    return np.ascontiguousarray(kept, np.int16).view(np.uint16) + np.uint16(ZERO)


def row_steps(codes: Codes, step: float) -> npt.NDArray[np.float32]:
    """Lattice steps (rows,) float32: ``step`` times the scale, at least 2**-100 so that no product is subnormal.

    The step of an all-zero row is 0: whatever its index, it comes back as zeros.
    """
    steps = np.maximum(np.float64(np.float32(step)) * scale_of(codes), _SMALLEST)
    return np.where(codes == 0, 0, steps).astype(np.float32)


@njit(cache=True, nogil=True)
def _encode(values, bits, borders, mantissa, sign):  # type: ignore[no-untyped-def]
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
            codes[r] = 4 * (exponent - 1) + quarter + 1280 + 2432 * grain
    return codes
