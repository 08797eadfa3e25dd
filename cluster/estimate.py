"""How good a tier is on the collection as it is now: some queries answered again by comparing every row."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.query import Query, checked_vectors
from cluster.results import NO_ROW
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

if TYPE_CHECKING:
    from cluster.engine import SearchEngine

QUERIES = 64
KEPT, KEPT_OF_ONE = 256, 4  # queries remembered, and at most so many of one batch


class Recent:
    """The last queries that were asked, a few of each batch: what an estimate should be made of."""

    def __init__(self) -> None:
        self._kept: deque[F32] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, queries: F32) -> None:
        """Remember some of a batch, evenly."""
        step = -(-len(queries) // KEPT_OF_ONE) or 1
        with self._lock:
            self._kept.extend(query.copy() for query in queries[::step])

    def last(self, count: int) -> F32 | None:
        """The last ``count`` of them; None while there are fewer."""
        with self._lock:
            return np.stack(list(self._kept)[-count:]) if len(self._kept) >= count else None


@dataclass(frozen=True)
class RecallEstimate:
    """Set recall at k of a tier, over so many queries.

    low, high: an interval that covers the true mean with 95 % (normal, from the spread between queries). of: `queries`
    (given), `recent` (asked of this engine) or `rows` (rows of the collection, each left out of its own answer).
    """

    tier: str
    k: int
    queries: int
    of: str
    recall: float
    low: float
    high: float


def estimate_recall(
    engine: SearchEngine, recent: Recent, query: Query, queries: Any, count: int, seed: int
) -> RecallEstimate:
    """Answer queries by a tier and exactly, and compare; see `SearchEngine.estimate_recall`."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10_000:
        raise HilbertflowError(f"count is {count!r}", where="estimate_recall", remedy="give 1 to 10,000 queries")
    of, own = "queries", np.empty(0, np.int64)
    if queries is not None:
        asked = checked_vectors(queries, engine.collection.dim, engine.collection.metric)
    elif (last := recent.last(count)) is not None:
        of, asked = "recent", last
    else:
        of, own = "rows", engine.sample(count, seed)
        asked = engine.take(own)
    k = query.k
    wide = dataclasses.replace(query, k=k + (of == "rows"))
    found, true = engine.answer(asked, wide), engine.answer(asked, Query(wide.k, "exact", query.filter))
    shares = np.array(
        [
            _share(found.rows[i], true.rows[i], int(own[i]) if len(own) else NO_ROW, k)
            for i in range(len(asked))
        ]
    )  # fmt: skip
    spread = 1.96 * float(shares.std(ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else 1.0
    mean = float(shares.mean())
    return RecallEstimate(
        found.explain["tier"], k, len(asked), of, round(mean, 4), round(max(0.0, mean - spread), 4),
        round(min(1.0, mean + spread), 4),
    )  # fmt: skip


def _share(found: I64, true: I64, own: int, k: int) -> float:
    """Part of the true rows of one query that were found, its own row aside."""
    wanted = true[(true != NO_ROW) & (true != own)][:k]
    got = found[(found != NO_ROW) & (found != own)][:k]
    return float(np.isin(wanted, got).mean()) if len(wanted) else 1.0
