"""Recommendations: rows like some that are liked, and not like those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.engine import SearchEngine
from cluster.query import MAX_K
from cluster.results import NO_ROW, similarity
from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError

MOST_LIKED = 1000


@dataclass(frozen=True)
class Recommendations:
    """Rows, the best of each liked one first, then the second of each, and so on.

    Parameters
    ----------
    ids: of the rows. metadata: ``id`` and the other columns of the same rows.
    scores: to the liked row that each is nearest to, in the collection's own measure.
    because: the id of that liked row.
    partial: some shard did not answer.
    """

    ids: tuple[str, ...]
    scores: F32
    because: tuple[str, ...]
    metadata: pa.Table
    partial: bool = False


def recommend(
    url: str, like: Sequence[str], unlike: Sequence[str] = (), k: int = 10, *, tier: str | None = None,
    filter: str | None = None,
) -> Recommendations:  # fmt: skip
    """The ``k`` rows nearest to any of the liked ones, but for those that are nearer to a disliked one.

    Each liked row is searched by itself and has its turn, so that several tastes stay several: the mean of a poem and
    a train timetable is like neither, and the rows near to one taste may all be nearer than those near to another.
    Rows named on either side are left out. Looks as deep as it must for ``k`` rows, 10,000 rows of each liked one at
    most.

    like, unlike: ids. tier, filter: as in a search.
    """
    if isinstance(like, str) or isinstance(unlike, str):
        raise HilbertflowError("one text is not a list of ids", where="recommend", remedy="give [id]")
    if not like or len(like) + len(unlike) > MOST_LIKED:
        raise HilbertflowError(
            f"{len(like)} liked and {len(unlike)} disliked ids", where="recommend",
            remedy=f"give at least one liked, {MOST_LIKED} in all at most",
        )  # fmt: skip
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise HilbertflowError(f"k is {k!r}", where="recommend", remedy=f"give 1 to {MAX_K:,}")
    if both := sorted(set(like) & set(unlike)):
        raise HilbertflowError(f"{both[0]!r} is liked and disliked", where="recommend", remedy="say one of both")
    engine = SearchEngine.open(url)
    metric = engine.collection.metric
    liked, disliked = (_rows(engine, list(dict.fromkeys(ids))) for ids in (like, unlike))
    queries = engine.take(liked)
    against = prepared(engine.take(disliked), metric)
    named = np.concatenate([liked, disliked])
    depth = k + len(named)
    while True:
        depth = min(depth, MAX_K)
        found = engine.search(queries, depth, tier, filter)
        rows, scores, because = _nearest_liked(found.rows, found.scores, liked, metric)
        keep = ~np.isin(rows, named)
        rows, scores, because = rows[keep], scores[keep], because[keep]
        if len(against) and len(rows):
            good = _nearer(prepared(engine.take(rows), metric), prepared(queries, metric), against, metric)
            rows, scores, because = rows[good], scores[good], because[good]
        if len(rows) >= k or depth == MAX_K or found.rows.shape[1] < depth:
            turn = _in_turn(because)[:k]
            rows, scores, because = rows[turn], scores[turn], because[turn]
            table, reasons = engine.metadata(rows), engine.metadata(because)
            ids, reason_ids = (tuple(some.column("id").to_pylist()) for some in (table, reasons))
            return Recommendations(ids, scores, reason_ids, table, found.partial)
        depth *= 4


def _rows(engine: SearchEngine, ids: list[str]) -> I64:
    rows = engine.rows(ids) if ids else np.empty(0, np.int64)
    if (rows == NO_ROW).any():
        name = ids[int((rows == NO_ROW).argmax())]
        raise HilbertflowError(f"no row has the id {name[:80]!r}", where=engine.collection.url)
    return rows


def _nearest_liked(rows: I64, scores: F32, liked: I64, metric: str) -> tuple[I64, F32, I64]:
    """Each row found once, with its best score and the liked row that gave it, best first."""
    cost = (-scores if similarity(metric) else scores).reshape(-1)
    flat, source = rows.reshape(-1), np.repeat(liked, rows.shape[1])
    order = np.lexsort((flat, cost))
    order = order[flat[order] != NO_ROW]
    _, first = np.unique(flat[order], return_index=True)
    best = order[np.sort(first)]
    return flat[best], scores.reshape(-1)[best], source[best]


def _in_turn(because: I64) -> I64:
    """Order (n,) in which the best row of each liked one comes first, then the second of each, given best first."""
    order = np.argsort(because, kind="stable")
    _, start, sizes = np.unique(because[order], return_index=True, return_counts=True)
    place = np.empty(len(because), np.int64)
    place[order] = np.arange(len(because)) - np.repeat(start, sizes)
    return np.argsort(place, kind="stable")


def _nearer(vectors: F32, liked: F32, disliked: F32, metric: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each row is nearer to some liked row than to every disliked one."""

    def best(others: F32) -> F32:
        gain = vectors @ others.T
        if metric == "l2":
            gain = 2 * gain - np.einsum("ij,ij->i", others, others)
        return np.asarray(gain.max(axis=1), np.float32)

    return np.asarray(best(liked) >= best(disliked), np.bool_)
