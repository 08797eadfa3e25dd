"""Which lists a query reads: those whose centroids are nearest, until enough rows that may be answered lie in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.vectors import F32, I64


@dataclass(frozen=True)
class Probe:
    """How many lists.

    nprobe: lists that hold any row which may be answered. rows: such rows at least, where there are so many.
    """

    nprobe: int
    rows: int

    def lists(self, ranked: npt.NDArray[np.integer], eligible: I64) -> I64:
        """Lists to read, ascending: the first of `ranked` that satisfy both numbers.

        ranked: every list, nearest first. eligible: (K,) rows of each list that may be answered; lists without any are
        passed over, so that a filter widens the search instead of thinning it.
        """
        filled = ranked[eligible[ranked] > 0]
        enough = int(np.searchsorted(np.cumsum(eligible[filled]), self.rows)) + 1
        return np.sort(filled[: max(self.nprobe, enough)]).astype(np.int64)


def rank(products: F32, squares: F32, spread: F32, metric: str) -> npt.NDArray[np.intp]:
    """Every list, nearest first, for each query: (q, K).

    products: (q, K) inner products of queries and centroids. squares: (K,) squared lengths of the centroids. spread:
    (K,) root mean square distance of a list's rows to its centroid along one direction.

    By squared distance for `l2`; else by the inner product that a row one deviation beyond the centroid would have.
    """
    near = 2 * products - squares if metric == "l2" else products + spread
    return np.argsort(-near, axis=1, kind="stable")


def eligible(borders: I64, matches: I64 | None) -> I64:
    """(K,) how many rows of each list may be answered; `matches` holds their numbers, ascending, None for all."""
    return np.diff(borders if matches is None else np.searchsorted(matches, borders)).astype(np.int64)
