"""What information theory allows: the rate that a distortion must cost, and the entropy of symbols."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def gaussian_rate(sqnr_db: float) -> float:
    """Shannon's bound: bits a value that a Gaussian source needs for a signal to noise ratio, ½·log2(σ²/D), or 0."""
    return max(0.0, sqnr_db / (20 * math.log10(2)))


def excess(bits: float, sqnr_db: float) -> float:
    """Bits a value spent above the Gaussian bound at the distortion reached."""
    return bits - gaussian_rate(sqnr_db)


def sqnr_db(energy: float, squared_error: float) -> float:
    """Signal to noise ratio in decibels, from sums of squares over the same values; infinite without error."""
    if squared_error == 0 or energy == 0:
        return math.inf if squared_error == 0 else -math.inf
    return 10 * math.log10(energy / squared_error)


def entropy(symbols: npt.NDArray[Any]) -> float:
    """Order-0 entropy of integer symbols of any shape, in bits a symbol: no table coder of one table gets below."""
    if symbols.size == 0:
        return 0.0
    counts = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(counts * np.log2(counts)).sum()) + 0.0
