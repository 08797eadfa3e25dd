"""The uniform quantizer: nearest point of a lattice scaled to each row.

With entropy coding it lies 0.25 bit above the Gaussian rate-distortion bound at high rate (Gish and Pierce, 1968).
A value comes back as ``index * step`` in float32, one IEEE product, so that every machine gets the same bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError
from operators.scales import Codes, row_steps

REACH = 0.5
"""How far a value may lie from its lattice point, in steps."""


def step_for(sqnr_db: float) -> float:
    """Step, in deviations of the row, at which Gaussian rows reach ``sqnr_db`` decibels (found by bisection)."""
    if not 0 < sqnr_db <= 90:
        raise HilbertflowError(f"sqnr_db is {sqnr_db:g}", where="uniform", remedy="use more than 0 and at most 90")
    low, high = -18.0, 3.0  # log2 of the step
    for _ in range(40):
        middle = (low + high) / 2
        if gaussian_mse(2.0**middle) * 10 ** (sqnr_db / 10) <= 1:
            low = middle
        else:
            high = middle
    return float(np.float32(2.0**low))


def gaussian_mse(step: float) -> float:
    """Mean squared error of a unit Gaussian on the lattice of ``step``, points at whole multiples."""
    if step < 0.25:
        return step * step / 12
    total, k = 1.0, 1
    # E[Q²] - 2 E[QX] + 1, where E[X; cell] is a difference of densities and P(cell) one of error functions
    while (k - 0.5) * step < 12:
        low, high = (k - 0.5) * step, (k + 0.5) * step
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        moment = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
        total += 2 * ((k * step) ** 2 * mass - 2 * k * step * moment)
        k += 1
    return total


def quantize(values: npt.NDArray[np.float32], codes: Codes, step: float) -> npt.NDArray[np.int16]:
    """Index (rows, side) int16 of the nearest lattice point; 0 for NaN and infinities and in rows of zeros."""
    index = np.zeros(values.shape, np.int16)
    _nearest(np.ascontiguousarray(values), row_steps(codes, step), index)
    return index


@njit(cache=True, nogil=True)
def _nearest(values, steps, index):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    for r in range(rows):
        step = np.float64(steps[r])
        if step == 0:
            continue
        limit = min(32767.0, np.floor(3.4028234e38 / step))  # what lies beyond would come back as infinity
        for i in range(side):
            value = np.float64(values[r, i])
            if np.isfinite(value):
                index[r, i] = np.int16(max(-limit, min(limit, np.rint(value / step))))
