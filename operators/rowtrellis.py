"""The trellis quantizer for rows of transform coefficients: a path a row, a step a column.

The machine, the lattice and the search are those of :mod:`operators.trellis`. What differs: the path of a row runs
along its coefficients, from state 0 at the first, so that any row decodes alone; rows lie side by side in the lanes;
and every coefficient has its own step and its own rate, since coefficients of a transform have unequal variances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit

from operators import trellis
from operators.trellis_points import POINTS

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

MOST = 32000
"""The largest symbol."""
_LANES = 32
_TAIL = np.float32(3.5)  # deviations beyond which a Gaussian's quadratic rate is continued as a straight line
_EXCESS = 0.07  # bits a coefficient above the rate-distortion bound
_HALF_BIT = 0.7213475204444817  # 1 / (2 ln 2): bits of a Gaussian's log density, an x**2 / sigma**2


@dataclass(frozen=True)
class Columns:
    """How each coefficient is quantized.

    spacing: (r,) lattice spacing; 0 where the coefficient is not coded. weight: (r,) lambda in spacing**2 a bit.
    deviation: (r,) expected deviation. All in the units of the coefficients.
    """

    spacing: F64
    weight: F64
    deviation: F64


def allocate(deviation: F64, distortion: F64 | float, states: int) -> Columns:
    """The spacing of each coefficient that leaves ``distortion`` (mean squared error), whatever its variance.

    Reverse water-filling: a coefficient whose variance is hardly above the distortion is left out. The excess over the
    rate-distortion bound hardly depends on the rate, so one more bit buys the same everywhere.
    """
    trellis.taps(states)
    points = POINTS["gaussian"]
    reached = np.array(points.decibels[states])
    decibels = 10 * np.log10(np.maximum(deviation**2 / distortion, 1e-30))
    deltas, weights = np.array(points.deltas), np.array(points.lambdas)
    spacing = np.exp(np.interp(-decibels, -reached, np.log(deltas)))
    spacing = np.where(decibels > reached[0], deltas[0] * 10 ** ((reached[0] - decibels) / 20), spacing)
    weight = np.interp(np.log(spacing), np.log(deltas), weights)
    coded = decibels >= reached[-1]
    return Columns(
        np.where(coded, spacing * deviation, 0.0), np.where(coded, weight, 0.0), np.asarray(deviation, float)
    )


def reaching(columns: Columns, largest: F64) -> Columns:
    """The columns with spacings wide enough for magnitudes of up to ``largest`` (r,).

    A rate that asks for finer ones is not met: values that the symbols do not reach would lose far more than it gains.
    """
    least = largest / (2 * MOST)
    return replace(columns, spacing=np.where(columns.spacing > 0, np.maximum(columns.spacing, least), 0.0))


def quantize(values: F32, columns: Columns, states: int) -> npt.NDArray[np.int16]:
    """Symbols (n, r) int16, within ±:data:`MOST`, of the best path of each row; 0 where a column is not coded.

    ``values`` (n, r) float32, finite; beyond ``2 * MOST`` spacings they are clipped (:func:`reaching`).
    """
    h0, h1 = trellis.taps(states)
    n, r = values.shape
    coded = np.flatnonzero(columns.spacing > 0)
    out = np.zeros((n, r), np.int16)
    if not coded.size or not n:
        return out
    spacing = columns.spacing[coded]
    u = np.zeros((-(-n // _LANES), coded.size, _LANES), np.float32)
    scaled = np.clip(values[:, coded] / spacing.astype(np.float32), -2.0 * MOST, 2.0 * MOST)
    _deal(np.ascontiguousarray(scaled, np.float32), u)
    ratio = spacing / columns.deviation[coded]
    pull = columns.weight[coded] * ratio**2 * _HALF_BIT
    shrink = (pull / (1 + pull)).astype(np.float32)
    shift = (shrink * _TAIL / ratio).astype(np.float32)
    slope = (columns.weight[coded] * _HALF_BIT).astype(np.float32)
    symbols = np.empty((u.shape[0] * _LANES, coded.size), np.int16)
    _paths(u, ratio.astype(np.float32), slope, shrink, shift, states, states.bit_length() - 1, h0, h1, symbols)
    out[:, coded] = symbols[:n]
    return out


def rate(deviation: F64, distortion: F64, states: int) -> F64:
    """Bits that :func:`allocate` spends on each coefficient, as far as they are Gaussian."""
    decibels = 10 * np.log10(np.maximum(deviation**2 / distortion, 1e-30))
    coded = decibels >= POINTS["gaussian"].decibels[states][-1]
    return np.where(coded, decibels / (20 * np.log10(2)) + _EXCESS, 0.0)


def index(
    symbols: npt.NDArray[np.integer], states: int, dtype: npt.DTypeLike = np.int32
) -> npt.NDArray[np.signedinteger]:
    """Odd lattice indices (n, c) of symbols (n, c) of the coded columns; a value is ``index * spacing / 2``.

    An index is at most four times its symbol, and one; ``dtype`` must hold it.
    """
    h0, h1 = trellis.taps(states)
    out = np.empty(symbols.shape, dtype)
    _follow(np.ascontiguousarray(symbols), h0, h1, out)
    return out


def symbols(index: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.int16]:
    """The symbols of odd lattice indices: the inverse of :func:`index`, of any trellis."""
    wide = index.astype(np.int32)
    return (np.where(wide & 3 == 1, wide - 1, -wide - 1) >> 2).astype(np.int16)


@njit(cache=True, nogil=True)
def _deal(values, u):  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        for j in range(values.shape[1]):
            u[row // _LANES, j, row % _LANES] = values[row, j]


@njit(cache=True, nogil=True)
def _paths(u, ratio, slope, shrink, shift, states, nu, h0, h1, symbols):  # type: ignore[no-untyped-def]
    columns = u.shape[1]
    cost = np.empty((2, states, _LANES), np.float32)
    branch = np.empty((4, _LANES), np.float32)
    taken = np.empty((columns, (states + 7) >> 3, _LANES), np.uint8)
    for group in range(u.shape[0]):
        cost[:] = 1e30
        cost[0, 0] = 0
        v = u[group]
        for t in range(columns):
            _branches(v[t], ratio[t], slope[t], shrink[t], shift[t], branch)
            trellis._extend(cost[t & 1], cost[1 - (t & 1)], branch, states, nu, h0, h1, taken[t])
            if t & 63 == 63:
                trellis._settle(cost[1 - (t & 1)], states)
        state = trellis._ends(cost[columns & 1], states)
        for t in range(columns - 1, -1, -1):
            for lane in range(_LANES):
                s = state[lane]
                bit, half = np.int32(taken[t, s >> 3, lane] >> (s & 7)) & 1, s >> (nu - 1)
                w = -v[t, lane] if half else v[t, lane]
                symbols[group * _LANES + lane, t] = trellis._nearest(w, half ^ bit, shrink[t], shift[t], None)
                state[lane] = ((s ^ (-half & h0) ^ (-bit & h1)) << 1 | half) & (states - 1)


@njit(cache=True, nogil=True)
def _branches(u, ratio, slope, shrink, shift, branch):  # type: ignore[no-untyped-def]
    """Cost of the best symbol for each half of the states and each bit: squared error plus lambda times rate."""
    for lane in range(_LANES):
        for half in range(2):
            w = -u[lane] if half else u[lane]
            for parity in range(2):
                k = trellis._nearest(w, parity, shrink, shift, None)
                point = np.float32(2 * k) + np.float32(0.5)
                error, far = w - point, abs(point) * ratio
                bits = far * far if far < _TAIL else np.float32(2) * _TAIL * far - _TAIL * _TAIL
                branch[half * 2 + (parity ^ half), lane] = error * error + slope * bits


@njit(cache=True, nogil=True)
def _follow(symbols, h0, h1, out):  # type: ignore[no-untyped-def]
    both = h0 ^ h1
    for row in range(symbols.shape[0]):
        s = 0
        for j in range(symbols.shape[1]):
            k = np.int32(symbols[row, j])
            half = -(s & 1)
            out[row, j] = ((4 * k + 1) ^ half) - half
            s = (s >> 1) ^ (half & both) ^ (-(k & 1) & h1)
