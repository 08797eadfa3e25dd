"""Refinements: the levels between the base and the exact one, on a lattice that floats share.

A refined level says in which *cell* ``[q, q + 1) * 2**k`` a value lies, k fixed for a row. Borders at whole multiples
of a power of two are what makes the exact level cheap and simple: the numbers of a float format inside one cell are
``2**j`` consecutive words, so what is left to tell is j mantissa bits, which are noise. Nothing is lost at cell
borders, nothing need be learnt, and the decoder computes nothing but shifts.

The first refinement says by how many cells the value's lies from that of the base's reconstruction. Its statistics
depend on the ratio of the two lattices, one of a few numbers, so its rows are stored in order of that ratio and the
entropy coder, which gives each block of a plane the table that suits it, sees them one after another. A further
refinement is the next bits of the cell. A level halves the cells ``fine_bits`` times (about 6 dB each), but never below
the spacing of the numbers four deviations out, where there would be nothing more to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.floats import dtype_info
from operators.scales import Codes, grains, row_steps

NONE = 1 << 16
"""Exponent of a row without refinements: its format is coarser than the base lattice; the exact level starts there."""
_FARTHEST = (1 << 23) - 2
_LARGEST = float(np.finfo(np.float32).max)

Cells = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Lattice:
    """The base lattice of an archive and how it is refined.

    Parameters
    ----------
    step: distance of lattice points in units of a row's scale.
    reach: how far from its value a base point may lie, in steps: 0.5 for the nearest, more on a trellis.
    fine_bits: how often a refinement halves its cells.
    """

    step: float
    reach: float = 0.5
    fine_bits: int = 3


def exponents(codes: Codes, dtype: str, lattice: Lattice, level: int) -> npt.NDArray[np.int64]:
    """Exponents k (rows,) of the cells at ``level`` (1 …); NONE for rows that have no cells."""
    form, steps = dtype_info(dtype), row_steps(codes, lattice.step)
    base = (steps.view(np.uint32) >> np.uint32(23)).astype(np.int64) - 127
    base += 2 * (lattice.reach > 1)  # on a trellis a value chooses between points that lie four steps apart
    scale = (row_steps(codes, 1.0).view(np.uint32) >> np.uint32(23)).astype(np.int64) - 127
    coarse = np.maximum(scale + 2, 1 - form.bias) - (form.mantissa - grains(codes))
    return np.where((base - coarse >= 1) & (codes > 0), np.maximum(base - lattice.fine_bits * level, coarse), NONE)


def stored_order(codes: Codes, dtype: str, lattice: Lattice, level: int) -> npt.NDArray[np.int64]:
    """The row that lies at each place (rows,): by how many cells one of the level beneath spans."""
    k = exponents(codes, dtype, lattice, level)
    if level > 1:
        split = exponents(codes, dtype, lattice, level - 1) - k
        return np.argsort(np.where(codes == 0, NONE, split), kind="stable")
    ratio = (row_steps(codes, lattice.step).view(np.uint32) >> np.uint32(19)).astype(np.int64) - (k << 4)  # sixteenths
    return np.argsort(np.where(codes == 0, 1 << 62, ratio), kind="stable")  # rows of zeros, padding among them, last


def refine(
    values: npt.NDArray[np.float32],
    dtype: str,
    codes: Codes,
    cells: npt.NDArray[np.integer],
    lattice: Lattice,
    level: int,
) -> tuple[npt.NDArray[np.int8], Cells]:
    """One refinement: symbols int8 as they are stored and the new cells int32, both (rows, side).

    ``cells`` are those of level ``level - 1``: the base's lattice index for level 1. A cell too far for a symbol is
    approached; the exact level makes up for it.
    """
    k = exponents(codes, dtype, lattice, level)
    above = exponents(codes, dtype, lattice, level - 1) if level > 1 else k
    start = _start(np.ascontiguousarray(cells, np.int32), _ratios(codes, lattice, k), k, above, level == 1)
    symbols = _symbols(np.ascontiguousarray(values), start, np.ldexp(1.0, np.where(k == NONE, 0, -k)), k)
    refined = start + symbols
    return np.ascontiguousarray(symbols[stored_order(codes, dtype, lattice, level)]), refined


def refined(
    symbols: npt.NDArray[np.int8],
    dtype: str,
    codes: Codes,
    cells: npt.NDArray[np.integer],
    lattice: Lattice,
    level: int,
) -> Cells:
    """The new cells (rows, side) from stored symbols and the cells of the level beneath: the decoder's half."""
    k = exponents(codes, dtype, lattice, level)
    above = exponents(codes, dtype, lattice, level - 1) if level > 1 else k
    result: Cells = _start(np.ascontiguousarray(cells, np.int32), _ratios(codes, lattice, k), k, above, level == 1)
    _add_rows(result, np.ascontiguousarray(symbols), stored_order(codes, dtype, lattice, level))
    return result


def reconstruct(
    cells: npt.NDArray[np.integer], dtype: str, codes: Codes, lattice: Lattice, level: int
) -> npt.NDArray[np.float32]:
    """Values (rows, side) float32 at ``level``: lattice points for level 0, middles of cells above it.

    The two cells at zero come back as zero, so that the zeros of a pruned tensor stay zeros. What would be infinite
    comes back as the largest finite number.
    """
    steps = row_steps(codes, lattice.step)
    k = exponents(codes, dtype, lattice, level) if level else np.full(codes.size, NONE)
    widths = np.where(k == NONE, 0, np.ldexp(1.0, np.minimum(k, 127))).astype(np.float32)
    return _middles(np.ascontiguousarray(cells, np.int32), steps, widths, k)  # type: ignore[no-any-return]


def _ratios(codes: Codes, lattice: Lattice, k: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Cells (rows,) that a step of the base lattice spans; exact, since cells are powers of two."""
    return np.ldexp(row_steps(codes, lattice.step).astype(np.float64), np.where(k == NONE, -1000, -k)).astype(
        np.float32
    )


@njit(cache=True, nogil=True)
def _start(cells, ratios, k, above, first):  # type: ignore[no-untyped-def]
    """Cells that a symbol 0 means: that of the base's reconstruction, or the first of the cells that split one."""
    rows, side = cells.shape
    out = np.empty((rows, side), np.int32)
    for r in range(rows):
        if k[r] == NONE:
            out[r] = cells[r]
        elif first:
            for i in range(side):
                near = np.float32(cells[r, i]) * ratios[r]
                cell = np.int32(near)
                out[r, i] = cell - (np.float32(cell) > near)  # the floor
        else:
            shift = np.int32(above[r] - k[r])
            for i in range(side):
                out[r, i] = cells[r, i] << shift
    return out


@njit(cache=True, nogil=True)
def _symbols(values, start, per_cell, k):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    words = values.view(np.uint32)
    out = np.zeros((rows, side), np.int8)
    for r in range(rows):
        if k[r] == NONE:
            continue
        for i in range(side):
            if words[r, i] & np.uint32(0x7F800000) == np.uint32(0x7F800000):
                continue
            cell = np.int64(min(float(_FARTHEST), np.floor(abs(np.float64(values[r, i])) * per_cell[r])))
            if words[r, i] >> np.uint32(31):  # by the sign bit: the zeros are told apart too
                cell = ~cell
            out[r, i] = max(-128, min(127, cell - start[r, i]))
    return out


@njit(cache=True, nogil=True)
def _add_rows(cells, symbols, order):  # type: ignore[no-untyped-def]
    for place in range(order.size):
        r = order[place]
        for i in range(cells.shape[1]):
            cells[r, i] += symbols[place, i]


@njit(cache=True, nogil=True)
def _middles(cells, steps, widths, k):  # type: ignore[no-untyped-def]
    rows, side = cells.shape
    out = np.empty((rows, side), np.float32)
    for r in range(rows):
        if k[r] == NONE:
            for i in range(side):
                point = np.float32(cells[r, i]) * steps[r]
                out[r, i] = min(max(point, np.float32(-_LARGEST)), np.float32(_LARGEST))
            continue
        for i in range(side):
            q = cells[r, i]
            middle = np.float32(0.0) if q == 0 or q == -1 else np.float32(q) + np.float32(0.5)
            out[r, i] = min(max(middle * widths[r], np.float32(-_LARGEST)), np.float32(_LARGEST))
    return out
