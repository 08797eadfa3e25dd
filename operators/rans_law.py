"""A frequency table told by a law: symbols of noise need no list of their shares.

Token t of a plane of signs and magnitudes stands for a magnitude near t + 1/2 (zigzag order; on the lattice of the
trellis it is just that). Under a generalized Gaussian its share falls as ``2 ** (-c · (2t + 1) ** p)``, so p and c,
13 bits, say what a list of shares takes a few bits a token for. The exponent is a multiple of 1/4, log2 c one of 1/32.

Powers are floors of exact roots and all else is in integers, so that every machine has the same frequencies.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit

from operators.rans_bits import I32, TOKENS

# mypy: disable-error-code="return-value, assignment, arg-type, operator, index, no-any-return"

POWER_BITS: Final = 3
SLOPE_BITS: Final = 10
_QUARTERS = range(3, 3 + (1 << POWER_BITS))
_ORIGIN: Final = 14  # slopes begin at 2 ** -14 parts of an octave
_POINTS: Final = 12  # fraction bits of a power
_OCTAVES: Final = 20  # between the first token and the rarest
_MANTISSAS = np.array(  # 1024 · 2^(i / 64), rounded
    [1024, 1035, 1046, 1058, 1069, 1081, 1093, 1105, 1117, 1129, 1141, 1154, 1166, 1179, 1192, 1205,
     1218, 1231, 1244, 1258, 1272, 1286, 1300, 1314, 1328, 1342, 1357, 1372, 1387, 1402, 1417, 1433,
     1448, 1464, 1480, 1496, 1512, 1529, 1545, 1562, 1579, 1596, 1614, 1631, 1649, 1667, 1685, 1704,
     1722, 1741, 1760, 1779, 1798, 1818, 1838, 1858, 1878, 1898, 1919, 1940, 1961, 1983, 2004, 2026], np.int64
)  # fmt: skip
_POWERS = np.array(  # (2t + 1) ** p - 1
    [[math.isqrt(math.isqrt((2 * t + 1) ** q << 4 * _POINTS)) - (1 << _POINTS) for t in range(TOKENS)]
     for q in _QUARTERS], np.int64)  # fmt: skip


@njit(cache=True, nogil=True)
def law_weights(power: int, slope: int, last: int, weights: I32) -> None:
    """Weights of tokens 0 … ``last`` under a law, the others' 0; at least 1 each."""
    shift, mantissa = _POINTS + 10 + _ORIGIN - (slope >> 5), _MANTISSAS[2 * (slope & 31)]
    for t in range(weights.size):
        weights[t] = 0
    for t in range(last + 1):
        left = max(_OCTAVES * 64 - ((_POWERS[power, t] * mantissa) >> shift), 0)
        weights[t] = max((_MANTISSAS[left & 63] << (left >> 6)) >> 6, 1)


@njit(cache=True, nogil=True)
def _cost(counts: I32, total: int, last: int, power: int, slope: int, weights: I32) -> float:
    """Bits of the symbols under a law, the limits of the coder's frequencies aside."""
    law_weights(power, slope, last, weights)
    every, bits = np.int64(0), 0.0
    for t in range(last + 1):
        every += weights[t]
        if counts[t]:
            bits -= counts[t] * np.log2(weights[t])
    return bits + total * np.log2(every)


@njit(cache=True, nogil=True)
def _slope(counts: I32, total: int, last: int, power: int, weights: I32) -> tuple[int, float]:
    """The best slope for a power and what it costs: from the moment that decides it for a density, then downhill."""
    moment = 1.0
    for t in range(last + 1):
        moment += counts[t] * (_POWERS[power, t] / 4096.0) / total
    most = (1 << SLOPE_BITS) - 1
    start = 32 * (np.log2(64 * 1.4426950408889634 / ((3 + power) * 0.25 * moment)) + _ORIGIN)
    best = np.int64(min(max(np.rint(start), 0.0), np.float64(most)))
    least = _cost(counts, total, last, power, best, weights)
    for way in (1, -1):
        moved = False
        while 0 <= best + way <= most:
            cost = _cost(counts, total, last, power, best + way, weights)
            if cost >= least:
                break
            best, least, moved = best + way, cost, True
        if moved:
            break
    return best, least


@njit(cache=True, nogil=True)
def fit_law(counts: I32, total: int, last: int, weights: I32) -> tuple[int, int]:
    """Power and slope under which the symbols of a histogram cost least; ``weights`` is a work array."""
    power = np.int64(5)  # a Gaussian
    slope, least = _slope(counts, total, last, power, weights)
    for way in (1, -1):
        moved = False
        while 0 <= power + way < 1 << POWER_BITS:
            other, cost = _slope(counts, total, last, power + way, weights)
            if cost >= least:
                break
            power, slope, least, moved = power + way, other, cost, True
        if moved:
            break
    return power, slope
