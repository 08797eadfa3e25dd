"""Lossless coding in a single level: the best of floats alone, and the measure of what levels may cost.

The only context is the row code. A magnitude is told as its distance below a border five octaves above the row's scale,
in representable numbers, with the sign as the lowest bit: an entropy coder sees exponent and leading mantissa bits,
relative to the scale, in its tokens, and the rest, which is noise, in its raw bits. Rows are stored in order of the
fraction of an octave that their scale leaves over, since that is what the statistics depend on, so that the coder,
which gives each block of a plane the table that suits it, sees like rows together.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from operators.floats import Words, dtype_info
from operators.scales import GRAIN, PER_OCTAVE, ZERO, Codes

_HEADROOM = 5  # octaves between a row's scale and the border


def encode(bits: Words, dtype: str, codes: Codes) -> Words:
    """Symbols (rows, side), unsigned of the format's width, of the words (rows, side) of ``dtype``, as stored."""
    return _convert(bits, dtype, codes, True)


def decode(symbols: Words, dtype: str, codes: Codes) -> Words:
    """Inverse of :func:`encode`: the words (rows, side), bit for bit. Any symbols give some words."""
    return _convert(symbols, dtype, codes, False)


def _convert(source: Words, dtype: str, codes: Codes, forward: bool) -> Words:
    form = dtype_info(dtype)
    scale, grain = codes.astype(np.int64) % GRAIN, codes.astype(np.int64) // GRAIN
    order = np.argsort(np.where(codes == 0, 1 << 20, grain * PER_OCTAVE + scale % PER_OCTAVE), kind="stable")
    octave = np.floor_divide(scale - ZERO, PER_OCTAVE)
    border = np.maximum(octave + form.bias + _HEADROOM, 1) << form.mantissa
    border = np.where(codes == 0, 0, border - 1)
    out = np.empty(source.shape, f"<u{form.word}")
    source = np.ascontiguousarray(source, out.dtype)
    if forward:
        _to_symbols(source, border >> grain, grain, 8 * form.width - 1, order, out)
    else:
        _to_bits(source, border >> grain, grain, 8 * form.width - 1, order, out)
    return out


@njit(cache=True, nogil=True)
def _to_symbols(bits, border, grain, sign, order, symbols):  # type: ignore[no-untyped-def]
    for place in range(order.size):
        r = order[place]
        mask = (np.int64(1) << (sign - grain[r])) - 1
        for i in range(bits.shape[1]):
            word = np.int64(bits[r, i])
            distance = (border[r] - (word >> grain[r])) & mask
            symbols[place, i] = distance << 1 | word >> sign


@njit(cache=True, nogil=True)
def _to_bits(symbols, border, grain, sign, order, bits):  # type: ignore[no-untyped-def]
    for place in range(order.size):
        r = order[place]
        mask = (np.int64(1) << (sign - grain[r])) - 1
        for i in range(bits.shape[1]):
            symbol = np.int64(symbols[place, i])
            magnitude = (border[r] - (symbol >> 1)) & mask
            bits[r, i] = (symbol & 1) << sign | magnitude << grain[r]
