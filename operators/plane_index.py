"""The multi-level index of a plane: means of its aligned runs of 4^k values, which are squares of the Hilbert curve.

Built in one pass: the sums of the finest runs, then of four neighbours at a time. A plane of side² values has 64 runs,
16, 4 and 1, coarse to fine in the result: 85 numbers, whatever its side. Each is in units of the plane's root mean
square, so that planes of different scale compare, and fixed to 1/1024 of it: a run of n values of noise has a mean of
about 1/√n, 1/32 for the finest of a plane of 256², and no mean of 64 runs can pass 8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

RUNS = (1, 4, 16, 64)
ENTRIES = sum(RUNS)
UNIT = 1024


def means(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """(85,) int16 from the values (side²,) float32 of a plane in source order; NaN and infinities count as zeros."""
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.zeros(ENTRIES, np.int16)
    if flat.size % RUNS[-1] == 0:
        _means(flat, out)
    return out


def levels(entries: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.float32], ...]:
    """The stored (…, 85) entries as means (…, 1), (…, 4), (…, 16) and (…, 64), in units of the plane's deviation."""
    borders = np.cumsum(RUNS)[:-1]
    return tuple(np.split(entries.astype(np.float32) / np.float32(UNIT), borders, axis=-1))


@njit(cache=True, nogil=True)
def _means(values, out):  # type: ignore[no-untyped-def]
    words, run = values.view(np.uint32), values.size // 64
    sums, power = np.zeros(85, np.float64), 0.0
    for r in range(64):
        total = 0.0
        for i in range(r * run, (r + 1) * run):
            if words[i] & np.uint32(0x7F800000) != np.uint32(0x7F800000):
                value = np.float64(values[i])
                total += value
                power += value * value
        sums[21 + r] = total
    if power == 0.0:
        return
    for first, below, count in ((5, 21, 16), (1, 5, 4), (0, 1, 1)):
        for r in range(count):
            at = below + 4 * r
            sums[first + r] = (sums[at] + sums[at + 1]) + (sums[at + 2] + sums[at + 3])
    unit = np.sqrt(power / values.size) / 1024
    for first, count in ((0, 1), (1, 4), (5, 16), (21, 64)):
        for r in range(count):
            mean = sums[first + r] / (values.size // count) / unit
            out[first + r] = np.int16(max(-32767.0, min(32767.0, np.rint(mean))))
