"""An order of models in which neighbours are alike, by their codes; a new one finds its place in it, the rest stay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from operators.relation import code_score

Codes = npt.NDArray[np.int8]


def tour(codes: Codes) -> list[int]:
    """Numbers of the models of codes (n, 992): from the first, always on to the nearest that is left."""
    left, order = set(range(1, len(codes))), [0] if len(codes) else []
    while left:
        rows = sorted(left)
        order.append(rows[int(np.argmax(code_score(codes[order[-1]], codes[rows])))])
        left.discard(order[-1])
    return order


def place_in(codes: Codes, order: Sequence[int], new: npt.NDArray[np.int8]) -> int:
    """Where in an order of the models of codes (n, 992) a new code (992,) goes: before the model at that position.

    The place at which it gains most: its scores to both neighbours less the score that these had to each other.
    """
    if not order:
        return 0
    along = codes[list(order)]
    near = code_score(new, along).astype(np.float64)
    between = np.array([code_score(a, b[None])[0] for a, b in pairwise(along)], np.float64)
    gains = np.concatenate([near[:1], near[:-1] + near[1:] - between, near[-1:]])
    return int(np.argmax(gains))


def along(scores: npt.NDArray[np.float64], order: Sequence[int]) -> npt.NDArray[np.float64]:
    """Scores (n,) averaged with those of the neighbours in an order of the same n; neighbours weigh a half."""
    placed = scores[list(order)]
    sums, shares = placed.copy(), np.ones(len(placed))
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        sums[here] += 0.5 * placed[there]
        shares[here] += 0.5
    smoothed = np.empty(len(placed))
    smoothed[list(order)] = sums / shares
    return smoothed
