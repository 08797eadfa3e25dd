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

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.floats import dtype_info
from operators.scales import GRAIN, PER_OCTAVE, ZERO, Codes, row_steps

NONE = 1 << 16
"""Exponent of a row without refinements: its format is coarser than the base lattice; the exact level starts there."""
_FARTHEST = (1 << 23) - 2
_PLACES = 1 << 10  # more than the sixteenths of an octave between a lattice and its cells
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
    inset: how far the base's reconstructions lie nearer to zero than its points, in steps.
    """

    step: float
    reach: float = 0.5
    fine_bits: int = 3
    inset: float = 0.0


@dataclass(frozen=True, eq=False)
class Rows:
    """What the row codes of a plane say about one of its levels; arrays (rows,).

    Parameters
    ----------
    steps: float32, of the base lattice.
    exponents: int64, of the cells; NONE for rows that have none, and for all at level 0.
    above: int64, exponents of the level beneath, or those of this level again where it is the base.
    ratios: float32, cells that a step of the base lattice spans: exact, since cells are powers of two.
    widths: float32, of the cells.
    grain: int64, low mantissa bits that are zero in every value.
    order: int64, the row that lies at each place of the stored level.
    """

    steps: npt.NDArray[np.float32]
    exponents: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    ratios: npt.NDArray[np.float32]
    widths: npt.NDArray[np.float32]
    grain: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]


def rows_of(codes: Codes, dtype: str, lattice: Lattice, level: int) -> Rows:
    """The rows of a plane at a level; 0 is the base."""
    return _rows_of(np.asarray(codes, np.uint32).tobytes(), dtype, lattice, level)


@lru_cache(maxsize=256)
def _rows_of(packed: bytes, dtype: str, lattice: Lattice, level: int) -> Rows:
    codes, form = np.frombuffer(packed, np.uint32), dtype_info(dtype)
    floats, whole = np.empty((3, codes.size), np.float32), np.empty((4, codes.size), np.int64)
    extra = 2 * (lattice.reach > 1)  # on a trellis a value chooses between points that lie four steps apart
    bits = lattice.fine_bits
    derive(codes, row_steps(codes, lattice.step), form.mantissa, 1 - form.bias, extra, bits, level, floats, whole)
    for array in (floats, whole):
        array.setflags(write=False)
    return Rows(floats[0], whole[0], whole[1], floats[1], floats[2], whole[2], whole[3])


@njit(cache=True, nogil=True)
def derive(codes, steps, mantissa, lowest, extra, bits, level, floats, whole):  # type: ignore[no-untyped-def]
    """Fill ``floats`` (3, rows) and ``whole`` (4, rows) with the arrays of :class:`Rows`."""
    places = np.zeros(_PLACES + 2, np.int64)
    ranks = np.empty(codes.size, np.int64)
    for r in range(codes.size):
        word = np.int64(steps[r : r + 1].view(np.uint32)[0])
        octave, grain = (np.int64(codes[r]) % GRAIN - ZERO) // PER_OCTAVE, np.int64(codes[r]) // GRAIN
        base = (word >> 23) - 127 + extra
        coarse = max(octave + 2, lowest) - (mantissa - grain)
        k, above, rank = NONE, NONE, 0
        if level > 0 and codes[r] > 0 and base - coarse >= 1:
            k = max(base - bits * level, coarse)
            above = max(base - bits * (level - 1), coarse) if level > 1 else k
            rank = 1 + (above - k if level > 1 else (word >> 19) - ((k + 127) << 4))  # in sixteenths of an octave
        rank = _PLACES if codes[r] == 0 else min(max(rank, 0), _PLACES - 1)  # rows of zeros, padding among them, last
        floats[0, r] = steps[r]
        floats[1, r] = math.ldexp(np.float64(steps[r]), -k) if k != NONE else 0.0
        floats[2, r] = math.ldexp(1.0, k) if k != NONE else 0.0
        whole[0, r], whole[1, r], whole[2, r], ranks[r] = k, above, grain, rank
        places[rank + 1] += 1
    for rank in range(_PLACES):
        places[rank + 1] += places[rank]
    for r in range(codes.size):
        whole[3, places[ranks[r]]] = r
        places[ranks[r]] += 1


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
    rows = rows_of(codes, dtype, lattice, level)
    fine = np.empty(cells.shape, np.int32)
    start_cells(np.ascontiguousarray(cells, np.int32), rows.ratios, rows.exponents, rows.above, level == 1, fine)
    per_cell = np.ldexp(1.0, np.where(rows.exponents == NONE, 0, -rows.exponents))
    symbols = np.zeros(cells.shape, np.int8)
    _symbols(np.ascontiguousarray(values), fine, per_cell, rows.exponents, symbols)
    return np.ascontiguousarray(symbols[rows.order]), fine + symbols


def refined(
    symbols: npt.NDArray[np.int8],
    dtype: str,
    codes: Codes,
    cells: npt.NDArray[np.integer],
    lattice: Lattice,
    level: int,
    out: Cells | None = None,
) -> Cells:
    """The new cells (rows, side) from stored symbols and the cells of the level beneath: the decoder's half.

    ``out`` is where they go: a fresh array by default.
    """
    rows = rows_of(codes, dtype, lattice, level)
    fine = np.empty(cells.shape, np.int32) if out is None else out
    start_cells(np.ascontiguousarray(cells, np.int32), rows.ratios, rows.exponents, rows.above, level == 1, fine)
    add_rows(fine, np.ascontiguousarray(symbols), rows.order)
    return fine


def reconstruct(
    cells: npt.NDArray[np.integer],
    dtype: str,
    codes: Codes,
    lattice: Lattice,
    level: int,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Values (rows, side) float32 at ``level``: lattice points, less the inset, for level 0, middles of cells above it.

    The two cells at zero come back as zero, so that the zeros of a pruned tensor stay zeros. What would be infinite
    comes back as the largest finite number. ``out`` is where they go: a fresh array by default.
    """
    rows = rows_of(codes, dtype, lattice, level)
    values = np.empty(cells.shape, np.float32) if out is None else out
    inset = np.float32(lattice.inset)
    _middles(np.ascontiguousarray(cells, np.int32), rows.steps, rows.widths, rows.exponents, inset, values)
    return values


@njit(cache=True, nogil=True)
def start_cells(cells, ratios, k, above, first, out):  # type: ignore[no-untyped-def]
    """Cells that a symbol 0 means: that of the base's reconstruction, or the first of the cells that split one."""
    rows, side = cells.shape
    for r in range(rows):
        if k[r] == NONE:
            out[r, :] = cells[r]
        elif first:
            ratio = ratios[r]
            for i in range(side):
                near = np.float32(cells[r, i]) * ratio
                cell = np.int32(near)
                out[r, i] = np.int32(cell - np.int32(np.float32(cell) > near))  # the floor
        else:
            shift = np.int32(above[r] - k[r])
            for i in range(side):
                out[r, i] = cells[r, i] << shift


@njit(cache=True, nogil=True)
def _symbols(values, start, per_cell, k, out):  # type: ignore[no-untyped-def]
    rows, side = values.shape
    words = values.view(np.uint32)
    for r in range(rows):
        if k[r] == NONE:
            continue
        for i in range(side):
            finite = words[r, i] & np.uint32(0x7F800000) != np.uint32(0x7F800000)
            magnitude = min(float(_FARTHEST), abs(np.float64(values[r, i])) * per_cell[r]) if finite else 0.0
            cell = np.int32(magnitude)
            cell ^= -np.int32(words[r, i] >> np.uint32(31))  # by the sign bit: the zeros are told apart too
            out[r, i] = max(-128, min(127, cell - start[r, i])) if finite else 0


@njit(cache=True, nogil=True)
def add_rows(cells, symbols, order):  # type: ignore[no-untyped-def]
    """Add stored rows of symbols to the cells of the rows they belong to, in place."""
    for place in range(order.size):
        r = order[place]
        for i in range(cells.shape[1]):
            cells[r, i] += symbols[place, i]


@njit(cache=True, nogil=True)
def _middles(cells, steps, widths, k, inset, out):  # type: ignore[no-untyped-def]
    rows, side = cells.shape
    for r in range(rows):
        if k[r] == NONE:
            for i in range(side):
                q = np.float32(cells[r, i])
                point = (q - min(max(q, -inset), inset)) * steps[r]
                out[r, i] = min(max(point, np.float32(-_LARGEST)), np.float32(_LARGEST))
            continue
        for i in range(side):
            q = cells[r, i]
            middle = np.float32(0.0) if q == 0 or q == -1 else np.float32(q) + np.float32(0.5)
            out[r, i] = min(max(middle * widths[r], np.float32(-_LARGEST)), np.float32(_LARGEST))
