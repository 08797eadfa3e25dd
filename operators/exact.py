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

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.floats import Words, ceil_magnitude, dtype_info, round_magnitude
from operators.key_sort import KEYS, sort, unsort
from operators.refine import NONE, Lattice, Rows, rows_of
from operators.scales import Codes
from operators.scratch import scratch

_ZERO_CELL, _SPARSE, _NEAR, _FAR, _VERBATIM = 24, 25, 26, 32, KEYS - 1


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
    form, rows = dtype_info(dtype), rows_of(codes, dtype, lattice, level)
    cells = np.ascontiguousarray(cells, dtype=np.int32)
    base, keys = _geometry(dtype, cells, rows, lattice)
    symbols, stored = scratch("symbols", bits.shape, bits.dtype), np.empty(bits.shape, bits.dtype)
    _to_symbols(np.ascontiguousarray(bits), base, keys, cells, rows.grain, form.mantissa, 8 * form.width, symbols)
    sort(symbols.reshape(-1), keys.reshape(-1), stored.reshape(-1))
    return stored


def decode(
    symbols: Words,
    dtype: str,
    cells: npt.NDArray[np.integer],
    codes: Codes,
    lattice: Lattice,
    level: int,
    out: Words | None = None,
) -> Words:
    """Inverse of :func:`encode`: the words (rows, side) of the source, bit for bit. Any symbols give some words.

    ``out`` is where they go: a fresh array by default.
    """
    form, rows = dtype_info(dtype), rows_of(codes, dtype, lattice, level)
    cells = np.ascontiguousarray(cells, dtype=np.int32)
    base, keys = scratch("base", cells.shape, np.uint32), scratch("keys", cells.shape, np.uint8)
    bits = np.empty(cells.shape, f"<u{form.word}") if out is None else out
    stored = symbols
    if symbols.dtype != bits.dtype or not symbols.flags.c_contiguous:
        stored = scratch("symbols", symbols.shape, bits.dtype)
        np.copyto(stored, symbols, casting="unsafe")
    of_format = form.drop, form.rebias, form.mantissa, form.top, 8 * form.width
    reach = np.float32(lattice.reach)
    decode_words(stored.reshape(-1), cells, rows.exponents, rows.steps, rows.grain, reach, *of_format, base, keys, bits)
    return bits


@njit(cache=True, nogil=True)
def decode_words(  # type: ignore[no-untyped-def]
    stored, cells, k, steps, grain, reach, drop, rebias, mantissa, top, width, base, keys, bits
):
    """What :func:`decode` does, compiled; ``stored`` is flat, ``base`` and ``keys`` are work arrays like ``cells``."""
    _of_cells(cells, k, grain, drop, rebias, mantissa, top, False, base, keys)
    _of_points(cells, k, steps, grain, reach, drop, rebias, mantissa, top, base, keys)
    unsort(stored, keys.reshape(-1), bits.reshape(-1))
    _to_bits(bits, base, keys, cells, k, grain, drop, rebias, mantissa, top, width)


def _geometry(
    dtype: str, cells: npt.NDArray[np.integer], rows: Rows, lattice: Lattice
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """From the decoded levels: the magnitude from which each symbol counts, and its key."""
    form, k, grain = dtype_info(dtype), rows.exponents, rows.grain
    base, keys = scratch("base", cells.shape, np.uint32), scratch("keys", cells.shape, np.uint8)
    of_format = form.drop, form.rebias, form.mantissa, form.top
    _of_cells(cells, k, grain, *of_format, True, base, keys)
    _of_points(cells, k, rows.steps, grain, np.float32(lattice.reach), *of_format, base, keys)
    return base, keys


@njit(inline="always")
def _is_plain(k, rebias):  # type: ignore[no-untyped-def]
    """Whether the lowest cell but that at zero is a normal number, and the highest no overflow."""
    return rebias - 127 < k < 100


@njit(cache=True, nogil=True)
def _of_cells(cells, k, grain, drop, rebias, mantissa, top, plain, base, keys):  # type: ignore[no-untyped-def]
    """Rows of cells; ``plain``: whether the bases of plain rows are wanted, or made when they are needed."""
    rows, side = cells.shape
    for r in range(rows):
        if k[r] == NONE:
            continue
        dropped, kept, limit, scale = drop + grain[r], mantissa - grain[r], top >> grain[r], k[r] << 23
        if _is_plain(k[r], rebias):
            _plain_keys(cells[r], kept, keys[r])
            if plain:
                _plain_bases(cells[r], dropped, limit, scale, rebias, base[r])
            continue
        origin = _origin(scale, dropped, rebias, limit)
        lowest = rebias + 1  # exponent field of the smallest normal number
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


@njit(inline="always")
def _origin(scale, dropped, rebias, limit):  # type: ignore[no-untyped-def]
    """What symbols of the cell at zero count down from."""
    return ceil_magnitude(scale + (127 << 23), dropped, rebias, limit) - 1


@njit(cache=True, nogil=True)
def _plain_keys(cells, kept, keys):  # type: ignore[no-untyped-def]
    """A row of normal numbers: j is what the cell's number leaves of the mantissa. In 32-bit integers, for speed."""
    most = np.int32(kept + 127)
    for i in range(cells.size):
        a = np.int32(cells[i] ^ np.int32(cells[i] >> 31))
        word = np.int32(np.float32(a).view(np.int32))
        j = min(np.int32(most - np.int32(word >> 23)), np.int32(_ZERO_CELL))  # far above it where the cell is 0
        keys[i] = np.uint8(j if j >= 0 else np.int32(_SPARSE))


@njit(inline="always")
def _plain_base(a, up, shift, bound):  # type: ignore[no-untyped-def]
    word = np.int32(np.float32(a).view(np.int32))
    return min(np.int32(np.int32(word + up) >> shift), bound)


@njit(cache=True, nogil=True)
def _plain_bases(cells, dropped, limit, scale, rebias, base):  # type: ignore[no-untyped-def]
    start = np.int32(_origin(scale, dropped, rebias, limit))
    up, shift = np.int32(scale - (rebias << 23) + (1 << dropped) - 1), np.int32(dropped & 31)
    for i in range(cells.size):
        a = np.int32(cells[i] ^ np.int32(cells[i] >> 31))
        low = _plain_base(a, up, shift, np.int32(limit))
        base[i] = start if a == 0 else low


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
def _to_bits(bits, base, keys, cells, k, grain, drop, rebias, mantissa, top, width):  # type: ignore[no-untyped-def]
    """From symbols to words, in place."""
    rows, side = bits.shape
    for r in range(rows):
        sign = np.int64(1) << (width - 1 - grain[r])
        mask, low = 2 * sign - 1, max(mantissa - grain[r] - 3, 0)
        if _is_plain(k[r], rebias):
            _plain_words(bits[r], cells[r], drop + grain[r], top >> grain[r], k[r] << 23, rebias, sign, grain[r])
            continue
        for i in range(side):
            symbol, start, key = np.int64(bits[r, i]), np.int64(base[r, i]), keys[r, i]
            if key == _VERBATIM:
                continue
            if key <= _SPARSE:
                word = start - symbol if key == _ZERO_CELL else start + symbol
            elif key < _FAR:
                tail = symbol & ((1 << low) - 1)
                word = (start - (((symbol >> (low + 1)) << low) | tail)) & (sign - 1)
                word |= ((symbol >> low) & 1) * sign
            else:
                word = start + ((symbol >> 1) ^ -(symbol & 1))
            if cells[r, i] < 0:
                word ^= sign
            bits[r, i] = (word & mask) << grain[r]


@njit(cache=True, nogil=True)
def _plain_words(bits, cells, dropped, limit, scale, rebias, sign, grain):  # type: ignore[no-untyped-def]
    """A row of normal numbers. To make its bases again is faster than to keep them: a plane of them leaves caches."""
    start = np.int32(_origin(scale, dropped, rebias, limit))
    up, shift = np.int32(scale - (rebias << 23) + (1 << dropped) - 1), np.int32(dropped & 31)
    flip, kept, empty = np.int32(np.uint32(sign)), np.int32(np.uint32(2 * sign - 1)), np.int32(grain & 31)
    for i in range(bits.size):
        negative, symbol = np.int32(cells[i] >> 31), np.int32(bits[i])
        a = np.int32(cells[i] ^ negative)
        low = _plain_base(a, up, shift, np.int32(limit))
        word = np.int32(start - symbol) if a == 0 else np.int32(low + symbol)
        word ^= np.int32(negative & flip)
        bits[i] = np.int32(np.int32(word & kept) << empty)
