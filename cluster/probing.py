"""Which lists a query reads: those whose centroids are nearest, and under a filter as many more as it takes.

A filter that asks for what the vectors know nothing of thins every list alike. One that goes along with them empties
the lists near one query and leaves those near another whole; and where the nearest rows that may be answered lie far
off, many lists are about equally far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from cluster.vectors import F32, I64

FURTHEST = 2.0
TUNED_K = 10
"""Rows that settings are tuned, and defaults chosen, to find."""
ROOM = 3


def lists_for(nprobe: int, k: int, lists: int, count: int) -> int:
    """Lists, of `lists` over `count` rows, that hold the best k rows about as surely as `nprobe` hold the best 10.

    The list of a near row holds others of the best, the more so the more rows m a list has, so k counts for little
    below m: the lists grow as √(m + 2 k), and have room at least for three times the rows beyond 10. Measured on pixels
    and on embeddings of sentences, 8,000 and 60,000 rows in lists of 32 to 163, this keeps recall at 100 and at 1,000
    within .03 of that at 10.
    """
    if k <= TUNED_K:
        return nprobe
    each = count / max(lists, 1)
    grown = round(nprobe * math.sqrt((each + 2 * k) / (each + 2 * TUNED_K)))
    return min(lists, max(nprobe, grown, math.ceil(ROOM * (k - TUNED_K) / max(each, 1))))


@dataclass(frozen=True)
class Probe:
    """How many lists.

    nprobe: lists that hold any row which may be answered. rows: such rows at least, where there are so many. reach:
    how far behind the nearest such list others are read, in what the last of `nprobe` is behind the nearest of all.
    """

    nprobe: int
    rows: int
    reach: float = 1.0

    @classmethod
    def of(cls, nprobe: int, eligible: I64, count: int, k: int) -> Self:
        """For `eligible` (K,) rows of each list, of `count` rows in all, and at least `k` of them.

        The best k of a share s of the rows are the best k / s of all, which lie in more lists, but not in 1 / s times
        as many: rows that may be answered are met as often as the geometric mean of both.
        """
        matching = int(eligible.sum())
        usual = math.sqrt(matching * count) / max(len(eligible), 1)
        return cls(nprobe, max(k, int(nprobe * usual)), min(FURTHEST, 3 - 2 * matching / max(count, 1)))

    def lists(self, near: F32, eligible: I64) -> I64:
        """Lists to read, ascending.

        near: (K,) of every list, more is nearer. eligible: (K,) rows of each list that may be answered; lists without
        any are passed over, so that a filter widens the search instead of thinning it.
        """
        ranked = np.argsort(-near, kind="stable")
        filled = ranked[eligible[ranked] > 0]
        enough = int(np.searchsorted(np.cumsum(eligible[filled]), self.rows)) + 1
        behind = near[ranked[0]] - near[ranked[min(self.nprobe, len(ranked)) - 1]]
        as_near = int((near[filled] >= near[filled[0]] - self.reach * behind).sum()) if len(filled) else 0
        return np.sort(filled[: max(self.nprobe, enough, as_near)]).astype(np.int64)


def nearness(products: F32, squares: F32, spread: F32, metric: str) -> F32:
    """How near every list is to each query, more is nearer: (q, K).

    products: (q, K) inner products of queries and centroids. squares: (K,) squared lengths of the centroids. spread:
    (K,) root mean square distance of a list's rows to its centroid along one direction.

    By squared distance for `l2`; else by the inner product that a row one deviation beyond the centroid would have.
    """
    near: F32 = 2 * products - squares if metric == "l2" else products + spread
    return near


def eligible(borders: I64, matches: I64 | None) -> I64:
    """(K,) how many rows of each list may be answered; `matches` holds their numbers, ascending, None for all."""
    return np.diff(borders if matches is None else np.searchsorted(matches, borders)).astype(np.int64)
