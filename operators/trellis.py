"""Entropy-coded trellis-coded quantization: nearer to the rate-distortion bound than any scalar quantizer can come.

The points of a lattice are split in four subsets; a finite-state machine allows two of them at each value, and the
path through the machine is chosen by the Viterbi algorithm, so that every value quantizes with half the points yet the
points reachable by a path fill space better than a cube (Marcellin and Fischer, 1990; Fischer and Wang, 1992). The path
minimizes squared error plus lambda times the bits of an ideal entropy coder, which carries the gain to low rates.

The lattice is ``(2k + 1/2) * delta`` for one half of the states and its mirror image for the other half. Both halves
have the same statistics, so one table serves all symbols k and a coder that knows nothing of states loses nothing.
In steps of ``delta / 2`` a point is the odd integer ``4k + 1`` or ``-(4k + 1)``.

Values are dealt to 32 lanes in turn, each a path of its own that begins in state 0 and ends anywhere; the lanes run
side by side in vector registers. The machine is linear over bits (Ungerboeck's systematic feedback encoder), so
decoding is shifts and exclusive ors. The rates in the path's cost are those of a Gaussian: with rows scaled to unit
deviation, rates re-estimated from the data gained less than 0.0008 bit at 2 bits a value and above, on real weights
too.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError
from operators.scales import Codes, row_steps

REACH = 3.0
"""How far a value may lie from its lattice point, in steps; more is rare."""

# Parity-check polynomials h0, h1 by number of states: Ungerboeck (1982) for 4 and 8; the others by search over random
# polynomials for the least excess at 3.4 bits, which lies 0.001 to 0.002 bit below Ungerboeck's (made for distance).
POLYNOMIALS = {
    4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o33, 0o10), 32: (0o65, 0o26),
    64: (0o133, 0o52), 128: (0o265, 0o102), 256: (0o637, 0o246),
}  # fmt: skip

# Operating points: lattice spacing delta in deviations, lambda in units of delta**2 / bit, and below them what a unit
# Gaussian reaches in decibels, by number of states. Along them the excess over the bound is least.
_DELTAS = (0.08, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05)
_LAMBDAS = (0.36, 0.36, 0.37, 0.39, 0.43, 0.5, 0.6, 0.75, 1.0, 1.4, 2.0)
_DECIBELS = {
    4: (27.7, 19.7, 14.75, 11.51, 9.77, 8.17, 6.64, 5.12, 4.03, 2.85, 1.69),
    8: (27.79, 19.79, 14.84, 11.6, 9.85, 8.24, 6.71, 5.19, 4.1, 2.92, 1.77),
    16: (27.85, 19.85, 14.9, 11.66, 9.9, 8.3, 6.76, 5.22, 4.13, 2.94, 1.81),
    32: (27.91, 19.92, 14.96, 11.71, 9.96, 8.35, 6.81, 5.27, 4.16, 2.97, 1.83),
    64: (27.96, 19.96, 15.0, 11.76, 10.0, 8.38, 6.84, 5.29, 4.19, 2.99, 1.86),
    128: (28.0, 20.01, 15.05, 11.8, 10.04, 8.43, 6.88, 5.33, 4.22, 3.02, 1.87),
    256: (28.04, 20.04, 15.08, 11.83, 10.08, 8.46, 6.9, 5.36, 4.24, 3.03, 1.91),
}
LANES = 32
_TAIL = 3.5  # deviations beyond which a Gaussian's quadratic rate is continued as a straight line
_MOST = 24.0  # bits of a symbol at most
_RATES = 4096  # symbols whose rate is tabulated, on either side


def step_for(sqnr_db: float, states: int) -> float:
    """Lattice step, in deviations of the row, at which Gaussian rows reach ``sqnr_db`` decibels."""
    taps(states)
    if not 2 <= sqnr_db <= 90:
        raise HilbertflowError(f"sqnr_db is {sqnr_db:g}", where="trellis", remedy="use 2 to 90 decibels")
    reached = _DECIBELS[states]
    if sqnr_db >= reached[0]:  # at high rate the error is a fixed share of delta squared
        return float(np.float32(_DELTAS[0] / 2 * 10 ** ((reached[0] - sqnr_db) / 20)))
    delta = math.exp(float(np.interp(-sqnr_db, -np.array(reached), np.log(_DELTAS))))
    return float(np.float32(delta / 2))


def quantize(values: npt.NDArray[np.float32], codes: Codes, step: float, states: int) -> npt.NDArray[np.int16]:
    """Symbols (rows, side) int16 of the best path; NaN and infinities count as zeros.

    ``step`` is what :func:`step_for` gives; lambda follows from it.
    """
    h0, h1 = taps(states)
    steps = row_steps(codes, step).astype(np.float64)
    inverse = np.divide(0.5, steps, out=np.zeros_like(steps), where=steps > 0)
    turns = -(-values.size // LANES)
    u, symbols = np.zeros(turns * LANES, np.float32), np.empty((turns, LANES), np.int16)
    _normalized(np.ascontiguousarray(values), inverse, u)
    taken = np.empty((turns, (states + 7) >> 3, LANES), np.uint8)
    rate, shrink, shift = _rates(2 * step)
    nu = states.bit_length() - 1
    _path(u.reshape(turns, LANES), rate, shrink, shift, states, nu, h0, h1, taken, symbols)
    return symbols.reshape(-1)[: values.size].reshape(values.shape)


def index(
    symbols: npt.NDArray[np.integer], states: int, out: npt.NDArray[np.int32] | None = None
) -> npt.NDArray[np.int32]:
    """Lattice indices (rows, side) int32 of symbols, in ``out`` where it is given; the value is ``index * step``."""
    h0, h1 = taps(states)
    turns = -(-symbols.size // LANES)
    flat = np.ascontiguousarray(symbols).reshape(-1)
    if flat.size % LANES:
        flat = np.concatenate([flat, np.zeros(turns * LANES - flat.size, flat.dtype)])
    if out is not None and not symbols.size % LANES:
        follow(flat.reshape(turns, LANES), h0, h1, out.reshape(turns, LANES))
        return out
    points = np.empty((turns, LANES), np.int32)
    follow(flat.reshape(turns, LANES), h0, h1, points)
    return points.reshape(-1)[: symbols.size].reshape(symbols.shape)


def taps(states: int) -> tuple[int, int]:
    """The polynomials without their lowest bit, which the machine does not need."""
    if states not in POLYNOMIALS:
        raise HilbertflowError(
            f"{states} states", where="trellis", remedy=f"use one of {', '.join(map(str, POLYNOMIALS))}"
        )
    h0, h1 = POLYNOMIALS[states]
    return h0 >> 1, h1 >> 1


@lru_cache(maxsize=64)
def _rates(delta: float) -> tuple[npt.NDArray[np.float32], np.float32, np.float32]:
    """Lambda times the bits of each symbol, in units of delta², and how far such rates pull a value towards zero."""
    weight = round(float(np.interp(math.log(delta), np.log(_DELTAS), _LAMBDAS)), 4)
    point = np.abs(2.0 * np.arange(-_RATES, _RATES + 1) + 0.5) * delta
    bits = (
        np.where(point < _TAIL, point * point, 2 * _TAIL * point - _TAIL * _TAIL) * 0.7213475204444817
    )  # 1 / (2 ln 2)
    pull = weight * delta * delta * 0.7213475204444817  # of the parabola's slope against that of the squared error
    shrink = pull / (1 + pull)
    return (weight * np.minimum(bits, _MOST)).astype(np.float32), np.float32(shrink), np.float32(shrink * _TAIL / delta)


@njit(cache=True, nogil=True)
def _path(u, rate, shrink, shift, states, nu, h0, h1, taken, symbols):  # type: ignore[no-untyped-def]
    """The best path through ``u`` (steps, lanes) in units of delta."""
    steps = u.shape[0]
    cost = np.full((2, states, LANES), 1e30, np.float32)
    cost[0, 0] = 0
    branch = np.empty((4, LANES), np.float32)
    for t in range(steps):
        _branches(u[t], rate, shrink, shift, branch)
        _extend(cost[t & 1], cost[1 - (t & 1)], branch, states, nu, h0, h1, taken[t])
        if t & 63 == 63:  # keep the sums small, for the precision of float32
            _settle(cost[1 - (t & 1)], states)
    state = _ends(cost[steps & 1], states)
    for t in range(steps - 1, -1, -1):
        for lane in range(LANES):
            s = state[lane]
            bit, half = np.int32(taken[t, s >> 3, lane] >> (s & 7)) & 1, s >> (nu - 1)
            w = -u[t, lane] if half else u[t, lane]
            symbols[t, lane] = _nearest(w, half ^ bit, shrink, shift)
            state[lane] = ((s ^ (-half & h0) ^ (-bit & h1)) << 1 | half) & (states - 1)


@njit(cache=True, nogil=True, inline="always")
def _nearest(w, parity, shrink, shift):  # type: ignore[no-untyped-def]
    """The symbol of this parity whose point is cheapest, rate and all, while the rate is a parabola."""
    pulled = w - min(max(w * shrink, -shift), shift)
    return np.int32(np.rint((pulled - (np.float32(0.5) + np.float32(2 * parity))) * np.float32(0.25))) * 2 + parity


@njit(cache=True, nogil=True)
def _branches(u, rate, shrink, shift, branch):  # type: ignore[no-untyped-def]
    """Cost of the best symbol for each half of the states and each bit: squared error plus lambda times rate."""
    for lane in range(LANES):
        for half in range(2):
            w = -u[lane] if half else u[lane]
            for parity in range(2):
                k = _nearest(w, parity, shrink, shift)
                error = w - (np.float32(2 * k) + np.float32(0.5))
                branch[half * 2 + (parity ^ half), lane] = error * error + rate[min(max(k, -_RATES), _RATES) + _RATES]


@njit(cache=True, nogil=True)
def _extend(old, new, branch, states, nu, h0, h1, taken):  # type: ignore[no-untyped-def]
    """Cheapest way into each state: both ways come from states of one half, and differ in the bit."""
    for group in range((states + 7) >> 3):
        row = taken[group]
        for j in range(min(states, 8)):
            s = group * 8 + j
            half = s >> (nu - 1)
            origin = s ^ (-half & h0)
            from0 = old[(origin << 1 | half) & (states - 1)]
            from1 = old[((origin ^ h1) << 1 | half) & (states - 1)]
            cost0, cost1, into, flag = branch[half * 2], branch[half * 2 + 1], new[s], np.uint8(1 << j)
            if j == 0:
                for lane in range(LANES):
                    a, b = from0[lane] + cost0[lane], from1[lane] + cost1[lane]
                    into[lane] = min(a, b)
                    row[lane] = flag if b < a else np.uint8(0)
            else:
                for lane in range(LANES):
                    a, b = from0[lane] + cost0[lane], from1[lane] + cost1[lane]
                    into[lane] = min(a, b)
                    row[lane] |= flag if b < a else np.uint8(0)


@njit(cache=True, nogil=True)
def _settle(cost, states):  # type: ignore[no-untyped-def]
    least = cost[0].copy()
    for s in range(1, states):
        for lane in range(LANES):
            least[lane] = min(least[lane], cost[s, lane])
    for s in range(states):
        for lane in range(LANES):
            cost[s, lane] -= least[lane]


@njit(cache=True, nogil=True)
def _ends(cost, states):  # type: ignore[no-untyped-def]
    state = np.zeros(LANES, np.int32)
    for s in range(1, states):
        for lane in range(LANES):
            if cost[s, lane] < cost[state[lane], lane]:
                state[lane] = s
    return state


@njit(cache=True, nogil=True)
def follow(symbols, h0, h1, index):  # type: ignore[no-untyped-def]
    """Lattice indices (steps, lanes) of the paths that the symbols take from state 0."""
    state, both = np.zeros(LANES, np.int32), h0 ^ h1
    for t in range(symbols.shape[0]):
        for lane in range(LANES):
            s, k = state[lane], np.int32(symbols[t, lane])
            half = -(s & 1)
            index[t, lane] = ((4 * k + 1) ^ half) - half
            state[lane] = (s >> 1) ^ (half & both) ^ (-(k & 1) & h1)


@njit(cache=True, nogil=True)
def _normalized(values, inverse, u):  # type: ignore[no-untyped-def]
    """Values in units of delta, flat and padded with zeros; NaN and infinities as zeros."""
    rows, side = values.shape
    words = values.view(np.uint32)
    for r in range(rows):
        for i in range(side):
            finite = words[r, i] & np.uint32(0x7F800000) != np.uint32(0x7F800000)
            value = np.float32(np.float64(values[r, i]) * inverse[r]) if finite else np.float32(0)
            u[r * side + i] = min(max(value, np.float32(-60000)), np.float32(60000))
