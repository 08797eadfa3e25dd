"""Outliers: the rows farthest from their nearest neighbours, proven by an exact scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.exact import ExactScan
from cluster.results import NO_ROW
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError
from pipelines.uses.live_rows import LiveRows
from pipelines.uses.partition import READ_ROWS, Partition, partition

PROBES, MOST_CANDIDATES = 8, 8192


@dataclass(frozen=True)
class Outliers:
    """Rows, the most remote first.

    Parameters
    ----------
    positions: (w,) as `LiveRows` numbers rows. ids: of the same rows.
    scores: mean cosine similarity to the nearest neighbours (lower is more remote), for ``l2`` the mean squared
        distance (higher is).
    nearest: id of the neighbour that is nearest to each.
    exact: whether it is proven that no other row is more remote.
    candidates: rows that were compared with every other one.
    """

    positions: I64
    ids: tuple[str, ...]
    scores: F32
    nearest: tuple[str, ...]
    exact: bool
    candidates: int


def find_outliers(url: str | LiveRows, count: int = 20, *, neighbours: int = 10, probes: int = PROBES) -> Outliers:
    """The ``count`` rows whose mean distance to their nearest ``neighbours`` is largest.

    Every row is compared with the rows of its nearest lists, which gives an upper bound of its distance; the rows of
    the highest bounds are then compared with all rows, until the bounds of the rest are too low to matter. Method:
    distance to nearest neighbours as the score (Ramaswamy, Rastogi, Shim, SIGMOD 2000; the mean of them: Angiulli,
    Pizzuti, PKDD 2002), pruned by bounds (Bay, Schwabacher, KDD 2003).

    probes: lists that a row is compared with for its bound.
    """
    live = LiveRows.of(url)
    total, metric = live.count, live.compared
    limits = (("count", count, MOST_CANDIDATES), ("neighbours", neighbours, 1000), ("probes", probes, 1 << 20))
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise HilbertflowError(f"{name} is {value}", where="outliers", remedy=f"give 1 to {most}")
    if total < 2:
        raise HilbertflowError("one row has no neighbours", where=live.url, remedy="add rows first")
    neighbours, count = min(neighbours, total - 1), min(count, total)
    parts = partition(live, probes)
    bound = _bounds(parts, neighbours)
    order = np.argsort(-bound, kind="stable")
    wanted = min(total, max(4 * count, 64))
    scored, nearest = np.empty(0), np.empty(0, np.int64)
    while True:
        fresh = order[len(scored) : wanted]
        values, near = _distances(parts, fresh, neighbours, metric)
        scored, nearest = np.concatenate([scored, values]), np.concatenate([nearest, near])
        best = np.argsort(-scored, kind="stable")[:count]
        exact = wanted == total or bound[order[wanted]] <= scored[best[-1]]
        if exact or wanted >= MOST_CANDIDATES:
            break
        wanted = min(total, 2 * wanted)
    chosen = scored[best]
    scores = chosen if metric == "l2" else 1 - chosen / 2
    positions, ids = order[best], tuple(live.ids(order[best]))
    return Outliers(positions, ids, scores.astype(np.float32), tuple(live.ids(nearest[best])), bool(exact), wanted)


def _bounds(parts: Partition, neighbours: int) -> F32:
    """Upper bounds (n,) of each row's mean squared distance to its neighbours; infinite where too few were met."""
    count, dim = parts.vectors.shape
    best = np.full((count, neighbours), np.inf, np.float32)
    longest = 0.0
    for block in parts.blocks():
        distance = block.squared_distances()
        distance[block.queries[:, None] == block.base] = np.inf
        if distance.shape[1] > neighbours:
            distance = np.partition(distance, neighbours - 1, axis=1)[:, :neighbours]
        both = np.concatenate([best[block.queries], distance], axis=1)
        best[block.queries] = np.partition(both, neighbours - 1, axis=1)[:, :neighbours]
        longest = max(longest, float(np.einsum("ij,ij->i", block.base_vectors, block.base_vectors).max()))
    return np.asarray(best.mean(axis=1) + 4 * (dim + 8) * np.finfo(np.float32).eps * longest, np.float32)


def _distances(parts: Partition, rows: I64, neighbours: int, metric: str) -> tuple[F32, I64]:
    """Mean squared distances (w,) of rows to their neighbours among all rows, and the nearest one, exactly."""
    scan = ExactScan(parts.vectors[rows], neighbours + 1, metric)
    for start in range(0, len(parts.vectors), READ_ROWS):
        part = parts.vectors[start : start + READ_ROWS]
        scan.feed(part, np.arange(start, start + len(part)))
    scores, found = scan.best()
    distance = scores.astype(np.float64) if metric == "l2" else 2 - 2 * scores.astype(np.float64)
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True  # among many copies of a row, itself may not be listed: any of them will do
    others = np.argsort(own, axis=1, kind="stable")[:, :neighbours]
    nearest = np.take_along_axis(found, others, 1)[:, 0] if len(rows) else np.empty(0, np.int64)
    assert (nearest != NO_ROW).all()
    return np.maximum(np.take_along_axis(distance, others, 1), 0).mean(axis=1), nearest
