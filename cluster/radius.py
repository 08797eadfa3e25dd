"""Range search: all rows within a radius, up to a cap, over any search for the best k.

The best k are searched for growing k until the worst of them lies outside, so that a tier that finds nearest rows
needs nothing more to find rows in a range. What `recall` it has at that k it has here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster.results import NO_ROW, similarity
from cluster.vectors import F32, I64

FIRST, GROWTH = 100, 4

Found = tuple[F32, I64]


def within(scores: F32, rows: I64, radius: float, metric: str) -> Found:
    """Answers (q, w), best first, without what lies outside; as wide as the longest that is left."""
    inside = (rows != NO_ROW) & (scores >= radius if similarity(metric) else scores <= radius)
    width = int(inside.sum(axis=1).max(initial=0))
    return scores[:, :width], np.where(inside, rows, NO_ROW)[:, :width]


def grown(search: Callable[[int], Found], k: int, radius: float, metric: str) -> Found:
    """The rows within ``radius``, at most ``k`` a query, by a search for the best so and so many."""
    size = min(k, FIRST)
    while True:
        scores, rows = search(size)
        found = within(scores, rows, radius, metric)
        whole = rows.shape[1] == size and bool((rows[:, -1] != NO_ROW).any()) and found[1].shape[1] == size
        if size == k or not whole:  # nobody's list is full of rows inside
            return found
        size = min(k, size * GROWTH)
