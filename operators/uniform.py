"""The uniform quantizer: nearest point of a lattice scaled to each row, and refinements that halve it.

With entropy coding it lies 0.25 bit above the Gaussian rate-distortion bound at high rate (Gish and Pierce, 1968).
A value comes back as ``index * step`` in float32, one IEEE product, so that every machine gets the same bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError
from operators.scales import row_steps

LIMIT = 32767


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


def quantize(
    values: npt.NDArray[np.float32], codes: npt.NDArray[np.integer], step: float
) -> npt.NDArray[np.int16]:
    """Index (rows, side) int16 of the nearest lattice point; 0 for NaN and infinities."""
    return _nearest(np.ascontiguousarray(values), row_steps(codes, step), LIMIT).astype(np.int16)


def reconstruct(
    index: npt.NDArray[np.integer], codes: npt.NDArray[np.integer], step: float, bits: int = 0
) -> npt.NDArray[np.float32]:
    """Values (rows, side) float32 of cumulative indices whose lattice has been refined by ``bits`` bits."""
    return index.astype(np.float32) * row_steps(codes, step, bits)[:, None]


def refine(
    values: npt.NDArray[np.float32],
    codes: npt.NDArray[np.integer],
    index: npt.NDArray[np.integer],
    step: float,
    fine_bits: int,
    level: int,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """One refinement: symbols int8 and the new cumulative index int32, both (rows, side).

    ``index`` is the cumulative index of level ``level - 1``; the new one is ``(index << fine_bits) + symbol`` and lies
    on a lattice ``2**fine_bits`` times finer. What a symbol cannot reach it approaches.
    """
    base = index.astype(np.int32) << fine_bits
    wanted = _nearest(np.ascontiguousarray(values), row_steps(codes, step, fine_bits * level), 1 << 30)
    symbols = np.clip(wanted - base, -128, 127).astype(np.int8)
    return symbols, base + symbols


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _nearest(values, steps, limit):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    index = np.zeros((rows, side), np.int32)
    for r in range(rows):
        step = np.float64(steps[r])
        for i in range(side):
            value = np.float64(values[r, i])
            if np.isfinite(value):
                index[r, i] = np.int32(max(-limit, min(limit, np.rint(value / step))))
    return index
