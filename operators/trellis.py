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
too. At lower rates heavy tails are another matter (:mod:`operators.trellis_points`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from operators import trellis_points
from operators.errors import HilbertflowError
from operators.scales import Codes, row_steps
from operators.trellis_points import REACH as _MOST
from operators.trellis_points import Tails, cost

REACH = 3.0
"""How far a value may lie from its lattice point, in steps; more is rare."""

# Parity-check polynomials h0, h1 by number of states: Ungerboeck (1982) for 4 and 8; the others by search over random
# polynomials for the least excess at 3.4 bits, which lies 0.001 to 0.002 bit below Ungerboeck's (made for distance).
POLYNOMIALS = {
    4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o33, 0o10), 32: (0o65, 0o26),
    64: (0o133, 0o52), 128: (0o265, 0o102), 256: (0o637, 0o246),
}  # fmt: skip

LANES = 32


def step_for(sqnr_db: float, states: int, tails: Tails = "gaussian") -> float:
    """Lattice step, in deviations of the row, at which rows with such tails reach ``sqnr_db`` decibels."""
    taps(states)
    return trellis_points.step_for(sqnr_db, states, tails)


def quantize(
    values: npt.NDArray[np.float32], codes: Codes, step: float, states: int, tails: Tails = "gaussian"
) -> npt.NDArray[np.int16]:
    """Symbols (rows, side) int16 of the best path; NaN and infinities count as zeros.

    ``step`` is what :func:`step_for` gives; lambda and inset follow from it.
    """
    h0, h1 = taps(states)
    steps = row_steps(codes, step).astype(np.float64)
    inverse = np.divide(0.5, steps, out=np.zeros_like(steps), where=steps > 0)
    turns = -(-values.size // LANES)
    u, symbols = np.zeros(turns * LANES, np.float32), np.empty((turns, LANES), np.int16)
    _normalized(np.ascontiguousarray(values), inverse, u)
    taken = np.empty((turns, (states + 7) >> 3, LANES), np.uint8)
    by, nu = cost(step, tails), states.bit_length() - 1
    _path(u.reshape(turns, LANES), by.rate, by.shrink, by.shift, by.inset, states, nu, h0, h1, taken, symbols)
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


@njit(cache=True, nogil=True)
def _path(u, rate, shrink, shift, inset, states, nu, h0, h1, taken, symbols):  # type: ignore[no-untyped-def]
    """The best path through ``u`` (steps, lanes) in units of delta."""
    steps = u.shape[0]
    cost = np.full((2, states, LANES), 1e30, np.float32)
    cost[0, 0] = 0
    branch = np.empty((4, LANES), np.float32)
    for t in range(steps):
        _branches(u[t], rate, shrink, shift, inset, branch)
        _extend(cost[t & 1], cost[1 - (t & 1)], branch, states, nu, h0, h1, taken[t])
        if t & 63 == 63:  # keep the sums small, for the precision of float32
            _settle(cost[1 - (t & 1)], states)
    state = _ends(cost[steps & 1], states)
    for t in range(steps - 1, -1, -1):
        for lane in range(LANES):
            s = state[lane]
            bit, half = np.int32(taken[t, s >> 3, lane] >> (s & 7)) & 1, s >> (nu - 1)
            w = -u[t, lane] if half else u[t, lane]
            symbols[t, lane] = _nearest(w, half ^ bit, shrink, shift, inset)
            state[lane] = ((s ^ (-half & h0) ^ (-bit & h1)) << 1 | half) & (states - 1)


@njit(cache=True, nogil=True, inline="always")
def _nearest(w, parity, shrink, shift, inset):  # type: ignore[no-untyped-def]
    """The symbol of this parity whose point is cheapest, rate and all, but for the bend of the rate at the end."""
    pulled = w - min(max(w * shrink, -shift), shift)
    if inset is not None:  # a branch that is compiled away
        pulled += inset if w > 0 else -inset
    return np.int32(np.rint((pulled - (np.float32(0.5) + np.float32(2 * parity))) * np.float32(0.25))) * 2 + parity


@njit(cache=True, nogil=True)
def _branches(u, rate, shrink, shift, inset, branch):  # type: ignore[no-untyped-def]
    """Cost of the best symbol for each half of the states and each bit: squared error plus lambda times rate."""
    for lane in range(LANES):
        for half in range(2):
            w = -u[lane] if half else u[lane]
            for parity in range(2):
                k = _nearest(w, parity, shrink, shift, inset)
                error = w - (np.float32(2 * k) + np.float32(0.5))
                if inset is not None:
                    error += inset if k >= 0 else -inset
                branch[half * 2 + (parity ^ half), lane] = error * error + rate[min(max(k, -_MOST), _MOST) + _MOST]


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
