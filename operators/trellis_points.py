"""Where the trellis works best: its operating points, by the tails of what it quantizes.

An operating point is a lattice spacing, a lambda and an *inset*, and what they reach in decibels. Above two bits a
value the tails hardly matter. Below, most values come to lie on the innermost points, and two things pay on heavy
tails: a path cost that knows that large values are not so dear (the bits of a Laplacian grow as the value, not as its
square), and innermost points nearer to zero than a lattice of that spacing has them. The inset draws every point
towards zero by the same distance, so that a decoder needs one number more (as the points of a deadzone quantizer are
biased: Sullivan, 1996).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

Tails = Literal["gaussian", "laplace"]

REACH = 4096
"""Symbols whose rate is tabulated, on either side."""

_HALF_BIT = 0.7213475204444817  # 1 / (2 ln 2): bits of a Gaussian's log density, an x**2 / sigma**2
_TAIL = 3.5  # deviations beyond which a Gaussian's quadratic rate is continued as a straight line
_LAPLACE = 2.0402780904  # sqrt(2) / ln 2: bits of a Laplacian's log density, an x / sigma
_MOST = 24.0  # bits of a symbol at most


@dataclass(frozen=True)
class Points:
    """Operating points along which the excess over the bound is least.

    Parameters
    ----------
    deltas: lattice spacing in deviations of the row.
    lambdas: in units of delta² / bit.
    insets: how far points are drawn towards zero, in steps of delta / 2.
    decibels: by number of states, what a source with such tails reaches.
    """

    deltas: tuple[float, ...]
    lambdas: tuple[float, ...]
    insets: tuple[float, ...]
    decibels: Mapping[int, tuple[float, ...]]


POINTS: Mapping[Tails, Points] = {
    "gaussian": Points(
        (0.08, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05),
        (0.36, 0.36, 0.37, 0.39, 0.43, 0.5, 0.6, 0.75, 1.0, 1.4, 2.0),
        (0.0,) * 11,
        {
            4: (27.7, 19.7, 14.75, 11.51, 9.77, 8.17, 6.64, 5.12, 4.03, 2.85, 1.69),
            8: (27.79, 19.79, 14.84, 11.6, 9.85, 8.24, 6.71, 5.19, 4.1, 2.92, 1.77),
            16: (27.85, 19.85, 14.9, 11.66, 9.9, 8.3, 6.76, 5.22, 4.13, 2.94, 1.81),
            32: (27.91, 19.92, 14.96, 11.71, 9.96, 8.35, 6.81, 5.27, 4.16, 2.97, 1.83),
            64: (27.96, 19.96, 15.0, 11.76, 10.0, 8.38, 6.84, 5.29, 4.19, 2.99, 1.86),
            128: (28.0, 20.01, 15.05, 11.8, 10.04, 8.43, 6.88, 5.33, 4.22, 3.02, 1.87),
            256: (28.04, 20.04, 15.08, 11.83, 10.08, 8.46, 6.9, 5.36, 4.24, 3.03, 1.91),
        },
    ),
    "laplace": Points(
        (0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2),
        (0.36, 0.36, 0.36, 0.35, 0.32, 0.31, 0.28, 0.27, 0.26, 0.26, 0.26, 0.26, 0.28),
        (0.04, 0.1, 0.17, 0.25, 0.33, 0.4, 0.5, 0.58, 0.65, 0.7, 0.75, 0.8, 0.84),
        {
            4: (27.7, 19.77, 14.96, 11.97, 9.89, 8.27, 6.69, 5.39, 4.33, 3.38, 2.61, 1.97, 1.33),
            8: (27.79, 19.85, 15.04, 12.05, 9.98, 8.34, 6.76, 5.45, 4.37, 3.44, 2.65, 2.0, 1.34),
            16: (27.86, 19.93, 15.11, 12.13, 10.04, 8.41, 6.82, 5.52, 4.43, 3.5, 2.69, 2.04, 1.38),
            32: (27.92, 19.98, 15.16, 12.16, 10.08, 8.46, 6.87, 5.54, 4.48, 3.52, 2.73, 2.05, 1.38),
            64: (27.97, 20.04, 15.22, 12.23, 10.14, 8.48, 6.91, 5.59, 4.52, 3.54, 2.74, 2.09, 1.41),
            128: (28.01, 20.08, 15.25, 12.26, 10.17, 8.53, 6.94, 5.62, 4.55, 3.58, 2.77, 2.1, 1.42),
            256: (28.04, 20.11, 15.28, 12.28, 10.21, 8.57, 6.96, 5.65, 4.56, 3.59, 2.8, 2.11, 1.42),
        },
    ),
}


@dataclass(frozen=True, eq=False)
class Cost:
    """What the search is told of an operating point, all in units of delta.

    Parameters
    ----------
    rate: (2·REACH + 1,) float32, lambda times the bits of each symbol.
    shrink, shift: how far such rates pull a value towards zero: by a share of it, but no farther than ``shift``.
    inset: how far points lie nearer to zero than the lattice has them; None where they do not.
    """

    rate: npt.NDArray[np.float32]
    shrink: np.float32
    shift: np.float32
    inset: np.float32 | None


def step_for(sqnr_db: float, states: int, tails: Tails = "gaussian") -> float:
    """Lattice step, in deviations of the row, at which rows with such tails reach ``sqnr_db`` decibels."""
    if not 2 <= sqnr_db <= 90:
        raise HilbertflowError(f"sqnr_db is {sqnr_db:g}", where="trellis", remedy="use 2 to 90 decibels")
    points = POINTS[tails]
    reached, deltas = points.decibels[states], points.deltas
    if sqnr_db >= reached[0]:  # at high rate the error is a fixed share of delta squared
        return float(np.float32(deltas[0] / 2 * 10 ** ((reached[0] - sqnr_db) / 20)))
    delta = math.exp(float(np.interp(-sqnr_db, -np.array(reached), np.log(deltas))))
    return float(np.float32(delta / 2))


def inset_for(step: float, tails: Tails) -> float:
    """How far the points at this step are drawn towards zero, in steps: 0 for a Gaussian."""
    points = POINTS[tails]
    return round(float(np.interp(math.log(2 * step), np.log(points.deltas), points.insets)), 4)


@lru_cache(maxsize=64)
def cost(step: float, tails: Tails) -> Cost:
    """The path's cost at a lattice step."""
    points, delta, inset = POINTS[tails], 2 * step, inset_for(step, tails) / 2
    weight = round(float(np.interp(math.log(delta), np.log(points.deltas), points.lambdas)), 4)
    point = (np.abs(2.0 * np.arange(-REACH, REACH + 1) + 0.5) - inset) * delta
    if tails == "gaussian":
        bits = np.where(point < _TAIL, point * point, 2 * _TAIL * point - _TAIL * _TAIL) * _HALF_BIT
        pull = weight * delta * delta * _HALF_BIT  # of the parabola's slope against that of the squared error
        shrink = pull / (1 + pull)
        shift = shrink * _TAIL / delta
    else:
        bits, shrink, shift = point * _LAPLACE, 1.0, weight * delta * _LAPLACE / 2
    rate = (weight * np.minimum(bits, _MOST)).astype(np.float32)
    return Cost(rate, np.float32(shrink), np.float32(shift), np.float32(inset) if inset else None)
