"""The last level: what makes a float bit-exact, given the levels beneath it.

By the chain rule H(v) = H(levels) + H(v | levels) it need cost nothing beyond a lossless copy. A coder of Zarr chunks
cannot see another array, so the context is applied by order: each value gets a *key* computed from the decoded levels,
and the symbols of a plane are stored sorted by key (a stable counting sort). Blocks of the sorted plane are alike, and
a coder that picks a table and a number of raw bits for each block codes them near their conditional entropy. The
reader, knowing the levels, computes the keys again and undoes the sort.

A row with cells (see :mod:`operators.refine`): the words inside a cell ``[a, a + 1) * 2**k`` of magnitudes are
consecutive, 2**j of them, and the symbol is the position among them: j bits of mantissa; the key is j. In the cell at
zero all exponents below k meet: the symbol counts down from the cell's upper border, so that it is small for the
likely ones. Whatever lies outside its cell (NaN, infinities, clipped refinements) wraps around: every word has a
symbol, whatever the levels say.

A row without cells (a format coarser than the base lattice, or no refinement in the archive): the symbol is the
distance, in representable numbers, to the reconstruction, folded to be non-negative; the key is how many of them a step
of the lattice spans. Next to zero, where sign and exponent are open, it counts down from a border as above.

The words of a row of zeros (code 0) are stored as they are, after all others: padding stays at the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.floats import Words, ceil_magnitude, dtype_info, round_magnitude
from operators.refine import NONE, Lattice, exponents
from operators.scales import Codes, grains, row_steps

_ZERO_CELL, _SPARSE, _NEAR, _FAR, _VERBATIM = 24, 25, 26, 32, 191


def encode(
    bits: Words, dtype: str, cells: npt.NDArray[np.integer], codes: Codes, lattice: Lattice, level: int
) -> Words:
    """Symbols (rows, side), unsigned of the format's width, in the order in which they are stored.

    Parameters
    ----------
    bits: (rows, side) words of ``dtype``.
    cells: (rows, side) of the last level beneath: lattice indices where ``level`` is 0.
    codes: (rows,) row codes.
    lattice, level: the base lattice and the number of refinements.
    """
    cells = np.ascontiguousarray(cells, dtype=np.int32)
    base, keys = _geometry(dtype, cells, codes, lattice, level)
    symbols, stored = np.empty(bits.shape, bits.dtype), np.empty(bits.shape, bits.dtype)
    form = dtype_info(dtype)
    _to_symbols(np.ascontiguousarray(bits), base, keys, cells, grains(codes), form.mantissa, 8 * form.width, symbols)
    _sort(symbols.reshape(-1), keys.reshape(-1), stored.reshape(-1))
    return stored


def decode(
    symbols: Words, dtype: str, cells: npt.NDArray[np.integer], codes: Codes, lattice: Lattice, level: int
) -> Words:
    """Inverse of :func:`encode`: the words (rows, side) of the source, bit for bit. Any symbols give some words."""
    cells = np.ascontiguousarray(cells, dtype=np.int32)
    base, keys = _geometry(dtype, cells, codes, lattice, level)
    form = dtype_info(dtype)
    bits = np.empty(cells.shape, f"<u{form.word}")
    _unsort(np.ascontiguousarray(symbols, bits.dtype).reshape(-1), keys.reshape(-1), bits.reshape(-1))
    _to_bits(bits, base, keys, cells, grains(codes), form.mantissa, 8 * form.width)
    return bits


def _geometry(
    dtype: str, cells: npt.NDArray[np.integer], codes: Codes, lattice: Lattice, level: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """From the decoded levels: the magnitude from which each symbol counts, and its key."""
    form = dtype_info(dtype)
    k = exponents(codes, dtype, lattice, level) if level else np.full(codes.size, NONE, np.int64)
    base, keys = np.empty(cells.shape, np.uint32), np.empty(cells.shape, np.uint8)
    steps, reach = row_steps(codes, lattice.step), np.float32(lattice.reach)
    for_rows = cells, k, steps, grains(codes)
    _of_cells(*for_rows, form.drop, form.rebias, form.mantissa, form.top, base, keys)
    _of_points(*for_rows, reach, form.drop, form.rebias, form.mantissa, form.top, base, keys)
    return base, keys


@njit(cache=True, nogil=True)
def _of_cells(cells, k, steps, grain, drop, rebias, mantissa, top, base, keys):  # type: ignore[no-untyped-def]
    rows, side = cells.shape
    for r in range(rows):
        if k[r] == NONE:
            continue
        dropped, kept, limit, scale = drop + grain[r], mantissa - grain[r], top >> grain[r], k[r] << 23
        lowest = rebias + 1  # exponent field of the smallest normal number
        origin = ceil_magnitude(scale + (127 << 23), dropped, rebias, limit) - 1
        for i in range(side):
            q = cells[r, i]
            a = q ^ (q >> 31)
            word = np.int64(np.float32(a).view(np.int32)) + scale
            if a == 0:
                base[r, i], keys[r, i] = origin, _ZERO_CELL
            else:
                base[r, i] = ceil_magnitude(word, dropped, rebias, limit)
                j = k[r] + 127 - (max(word >> 23, lowest) - kept)
                keys[r, i] = j if j >= 0 else _SPARSE


@njit(cache=True, nogil=True)
def _of_points(cells, k, steps, grain, reach, drop, rebias, mantissa, top, base, keys):  # type: ignore[no-untyped-def]
    rows, side = cells.shape
    for r in range(rows):
        if k[r] != NONE:
            continue
        dropped, kept, limit = drop + grain[r], mantissa - grain[r], top >> grain[r]
        step = steps[r]
        if step == 0:
            base[r], keys[r] = 0, _VERBATIM
            continue
        quarters = np.int64(np.float32(step).view(np.int32) >> 21)
        for i in range(side):
            a = np.float32(abs(cells[r, i]))
            if a < reach:
                border = np.float32((a + reach) * step)
                base[r, i] = ceil_magnitude(np.int64(np.float32(border).view(np.int32)), dropped, rebias, limit)
                keys[r, i] = _NEAR + np.int64(a)
            else:
                word = np.int64(np.float32(a * step).view(np.int32))
                base[r, i] = round_magnitude(word, dropped, rebias, limit)
                spanned = quarters - ((max(word >> 23, rebias + 1) - kept) << 2)
                keys[r, i] = min(max(spanned, 0) + _FAR, _VERBATIM - 1)


@njit(cache=True, nogil=True)
def _to_symbols(bits, base, keys, cells, grain, mantissa, width, symbols):  # type: ignore[no-untyped-def]
    rows, side = bits.shape
    for r in range(rows):
        sign = np.int64(1) << (width - 1 - grain[r])
        mask, low = 2 * sign - 1, max(mantissa - grain[r] - 3, 0)
        for i in range(side):
            word = np.int64(bits[r, i]) >> grain[r]
            if cells[r, i] < 0:
                word ^= sign
            if keys[r, i] <= _SPARSE:
                distance = word - base[r, i] if keys[r, i] != _ZERO_CELL else np.int64(base[r, i]) - word
                symbols[r, i] = distance & mask
            elif keys[r, i] < _FAR:
                distance = (base[r, i] - word) & (sign - 1)
                tail = distance & ((1 << low) - 1)
                symbols[r, i] = ((distance - tail) << 1) | ((word >= sign) << low) | tail
            elif keys[r, i] == _VERBATIM:
                symbols[r, i] = bits[r, i]
            else:
                distance = ((word - base[r, i] + sign) & mask) - sign
                symbols[r, i] = (distance << 1) ^ (distance >> 63)


@njit(cache=True, nogil=True)
def _to_bits(bits, base, keys, cells, grain, mantissa, width):  # type: ignore[no-untyped-def]
    rows, side = bits.shape
    for r in range(rows):
        sign = np.int64(1) << (width - 1 - grain[r])
        mask, low = 2 * sign - 1, max(mantissa - grain[r] - 3, 0)
        for i in range(side):
            symbol, start = np.int64(bits[r, i]), np.int64(base[r, i])
            if keys[r, i] <= _SPARSE:
                word = start + symbol if keys[r, i] != _ZERO_CELL else start - symbol
            elif keys[r, i] < _FAR:
                tail = symbol & ((1 << low) - 1)
                word = (start - (((symbol >> (low + 1)) << low) | tail)) & (sign - 1)
                word |= ((symbol >> low) & 1) * sign
            elif keys[r, i] == _VERBATIM:
                continue
            else:
                word = start + ((symbol >> 1) ^ -(symbol & 1))
            if cells[r, i] < 0:
                word ^= sign
            bits[r, i] = (word & mask) << grain[r]


@njit(cache=True, nogil=True)
def _sort(symbols, keys, stored):  # type: ignore[no-untyped-def]
    place = _starts(keys)
    for i in range(keys.size):
        stored[place[keys[i]]] = symbols[i]
        place[keys[i]] += 1


@njit(cache=True, nogil=True)
def _unsort(stored, keys, symbols):  # type: ignore[no-untyped-def]
    place = _starts(keys)
    for i in range(keys.size):
        symbols[i] = stored[place[keys[i]]]
        place[keys[i]] += 1


@njit(cache=True, nogil=True)
def _starts(keys):  # type: ignore[no-untyped-def]
    """Where the symbols of each key begin."""
    seen = np.zeros(_VERBATIM + 1, np.int64)
    for i in range(keys.size):
        seen[keys[i]] += 1
    total = 0
    for key in range(_VERBATIM + 1):
        seen[key], total = total, total + seen[key]
    return seen
