"""The exact scan: every row is compared, in batches, with bounded memory. It is the oracle of every recall figure.

A float32 matrix product finds, for each batch, every row that could be among the best k (its score lies within the
product's rounding bound of the k-th best so far); those few are scored again in float64 and rounded once to float32.
The answer therefore does not depend on batch size, thread count or BLAS, and identical vectors score identically and
rank by row number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.results import similarity
from cluster.vectors import F32, I64, prepared

BATCH_ROWS = 8192
PAIRS = 1 << 22  # entries of one score matrix: 16 MB
GATHER = 1 << 15  # pairs gathered and scored in float64 at once

F64 = npt.NDArray[np.float64]


class ExactScan:
    """Running best k of (q, d) queries over batches of rows. Memory: q * k answers and one score matrix."""

    def __init__(self, queries: F32, k: int, metric: str) -> None:
        ready = prepared(queries, metric)
        step = max(1, PAIRS // max(k, BATCH_ROWS))
        self.metric, self.scanned, self._k = metric, 0, k
        self._blocks = [_Block(ready[at : at + step], k, metric) for at in range(0, len(ready), step)]

    def feed(self, vectors: F32, rows: I64) -> None:
        """Compare one batch: vectors (b, d), any scale, with their row numbers (b,) int64."""
        for at in range(0, len(rows), BATCH_ROWS):
            part = prepared(vectors[at : at + BATCH_ROWS], self.metric)
            squares = np.einsum("ij,ij->i", part, part, dtype=np.float64)
            for block in self._blocks:
                block.feed(part, squares, rows[at : at + BATCH_ROWS])
        self.scanned += len(rows)

    def best(self) -> tuple[F32, I64]:
        """Scores (q, w) float32 and rows (q, w) int64, best first, w = min(k, rows fed)."""
        if not self._blocks:
            return np.empty((0, min(self._k, self.scanned)), np.float32), np.empty(
                (0, min(self._k, self.scanned)), np.int64
            )
        return np.concatenate([b.scores for b in self._blocks]), np.concatenate([b.rows for b in self._blocks])


class _Block:
    """Some queries and their best rows so far; all have seen the same rows, so all answers have the same width."""

    def __init__(self, queries: F32, k: int, metric: str) -> None:
        self.queries, self.k, self.metric = queries, k, metric
        self.norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        self.scores: F32 = np.empty((len(queries), 0), np.float32)
        self.rows: I64 = np.empty((len(queries), 0), np.int64)

    def feed(self, vectors: F32, squares: F64, rows: I64) -> None:
        query, column = np.nonzero(self._candidates(vectors, squares))
        scores = np.empty(len(query), np.float32)
        for at in range(0, len(query), GATHER):
            pick = slice(at, at + GATHER)
            scores[pick] = pair_scores(self.queries[query[pick]], vectors[column[pick]], self.metric)
        self._merge(query, scores, rows[column], len(rows))

    def _candidates(self, vectors: F32, squares: F64) -> npt.NDArray[np.bool_]:
        """Every row whose true score may reach the k-th best: (q, b) mask."""
        longest, reach = float(np.sqrt(squares.max())), float(self.norms.max())
        wide = (longest + reach) ** 2 > 1e37  # a float32 product could overflow
        kind: type[np.floating[Any]] = np.float64 if wide else np.float32
        gain: npt.NDArray[Any] = np.matmul(self.queries.astype(kind, copy=False), vectors.astype(kind, copy=False).T)
        if self.metric == "l2":
            gain = 2 * gain - squares.astype(kind)
        bar = np.full(len(self.queries), -np.inf)
        if len(squares) >= self.k:
            bar = np.partition(gain, len(squares) - self.k, axis=1)[:, len(squares) - self.k].astype(np.float64)
        if self.rows.shape[1] == self.k:
            kth = self.scores[:, -1].astype(np.float64)
            bar = np.maximum(bar, self.norms**2 - kth if self.metric == "l2" else kth)
        bound = self.norms * longest + (self.norms**2 + longest**2 if self.metric == "l2" else 0)
        slack = 2 * (vectors.shape[1] + 8) * np.finfo(np.float32).eps * bound
        mask: npt.NDArray[np.bool_] = gain >= (bar - slack)[:, None]
        return mask

    def _merge(self, query: I64, scores: F32, rows: I64, seen: int) -> None:
        count, width = self.rows.shape
        every_query = np.concatenate([np.repeat(np.arange(count), width), query])
        every_score = np.concatenate([self.scores.reshape(-1), scores])
        every_row = np.concatenate([self.rows.reshape(-1), rows])
        order = np.lexsort((every_row, -every_score if similarity(self.metric) else every_score, every_query))
        sizes = np.bincount(every_query, minlength=count)
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        width = min(self.k, width + seen)
        kept = order[place < width]
        self.scores, self.rows = every_score[kept].reshape(count, width), every_row[kept].reshape(count, width)


def pair_scores(queries: F32, vectors: F32, metric: str) -> F32:
    """Scores of matched pairs, both (n, d) as `prepared` gives them: summed in float64, rounded once to float32."""
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        a -= b
        b = a
    with np.errstate(over="ignore"):
        scores: F32 = (a * b).sum(axis=1).astype(np.float32)
    return scores
