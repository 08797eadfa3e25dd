"""Row scales: one code for each run of values, whose power of two (in eighths of an octave) is a table look-up.

A decoder multiplies by these numbers, so they come from constants written below times exact powers of two: the same
on every machine, whatever its mathematical library.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

PER_OCTAVE = 8
ZERO = 1280
"""The code of scale 1: scale = 2 ** ((code - ZERO) / PER_OCTAVE). Codes 88 to 2304 cover all of float32; 0 says that a
row has no finite value but zero. Sixteen bits, because eight would leave 32 octaves, fewer than optimizer states span;
the entropy coder pays for the spread of the codes only."""

_EIGHTHS = np.array(
    [1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
     1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424]
)  # fmt: skip
_BORDERS = np.array([1.0905077326652577, 1.2968395546510096, 1.5422108254079407, 1.8340080864093424])

_SMALLEST = math.ldexp(1.0, -100)  # keeps the steps of 26 refinement bits above the subnormals, which may be flushed


def encode(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Codes (rows,) of the root mean squares of the finite values of each row of ``values`` (rows, side) float32."""
    return _encode(np.ascontiguousarray(values, dtype=np.float32), _BORDERS)  # type: ignore[no-any-return]


def scale_of(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Scales (rows,) of ``codes``: positive, 2**-160 for code 0."""
    octave, eighth = np.divmod(codes.astype(np.int64) - ZERO, PER_OCTAVE)
    return np.ldexp(_EIGHTHS[eighth], octave)


def row_steps(codes: npt.NDArray[np.integer], step: float, bits: int = 0) -> npt.NDArray[np.float32]:
    """Lattice steps (rows,) float32: ``step`` times the scale, over 2**bits; never subnormal."""
    base = np.maximum(np.float64(np.float32(step)) * scale_of(codes), _SMALLEST).astype(np.float32)
    return np.ldexp(base, -bits).astype(np.float32)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _encode(values, borders):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    words = values.view(np.uint32)
    codes = np.zeros(rows, np.uint16)
    for r in range(rows):
        total, count = 0.0, 0
        for i in range(side):
            if words[r, i] & np.uint32(0x7F800000) != np.uint32(0x7F800000):
                total += np.float64(values[r, i]) * np.float64(values[r, i])
                count += 1
        if total > 0.0:
            mantissa, exponent = math.frexp(total / count)
            quarter = 0
            for border in borders:  # 8 log2(rms) = 4 log2(mean square), rounded
                quarter += 2.0 * mantissa >= border
            codes[r] = 4 * (exponent - 1) + quarter + 1280
    return codes
