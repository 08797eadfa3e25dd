"""Clusters of a collection, each with the rows that stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError
from pipelines.uses.live_rows import LiveRows
from pipelines.uses.partition import READ_ROWS
from storage.fs import Location

ROWS_A_CLUSTER, LEAST_SAMPLE, SEED = 256, 20_000, 20260101
TRIES, TRIED_CLUSTERS = 10, 500  # a start is cheap for few clusters, and matters there


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Parameters
    ----------
    number: as in the column ``cluster`` of the written table.
    size: rows. score: their mean cosine similarity to the centroid, for ``l2`` mean squared distance.
    positions, ids, scores: the representatives, nearest to the centroid first.
    centroid: (d,) float32.
    """

    number: int
    size: int
    score: float
    positions: I64
    ids: tuple[str, ...]
    scores: F32
    centroid: F32


def find_clusters(
    url: str | LiveRows, k: int, *, representatives: int = 3, out: str | None = None
) -> tuple[Cluster, ...]:
    """Cut a collection into ``k`` clusters, the largest first, by k-means on a sample and two passes over all rows.

    FAISS's k-means from k-means++ starts, the best of several, on at most 256 rows a cluster (20,000 at least);
    spherical unless the collection is ``l2``. One pass over all rows moves the centroids to their rows' mean, the last
    one assigns and finds the representatives. The same collection gives the same clusters.

    out: a Parquet file of ``id``, ``cluster`` and ``score`` for every row, written whole or not at all.
    """
    live = LiveRows.of(url)
    count, metric = live.count, live.compared
    if not 1 <= k <= min(count, 65_536):
        raise HilbertflowError(
            f"{k} clusters of {count} rows", where="clusters", remedy=f"give 1 to {min(count, 65_536)}"
        )
    if not 1 <= representatives <= 1000:
        raise HilbertflowError(f"{representatives} representatives", where="clusters", remedy="give 1 to 1000")
    sample = prepared(live.sample(min(count, max(ROWS_A_CLUSTER * k, LEAST_SAMPLE))), metric)
    tries = max(1, min(TRIES, TRIED_CLUSTERS // k))
    trained = faiss.Kmeans(
        sample.shape[1], k, niter=25, nredo=tries, seed=SEED, spherical=metric != "l2", min_points_per_centroid=1,
        max_points_per_centroid=max(ROWS_A_CLUSTER, -(-len(sample) // k)),
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )  # fmt: skip
    trained.train(sample)
    centroids = _moved(live, np.asarray(trained.centroids, np.float32).reshape(k, -1), metric)
    tally = _Tally(k, representatives, metric)
    if out is None:
        for rows, own, scores in _assigned(live, centroids, metric):
            tally.add(rows, own, scores)
    else:
        _write(live, out, tally.add, _assigned(live, centroids, metric))
    means = tally.sums / np.maximum(tally.sizes, 1)
    return tuple(
        Cluster(int(c), int(tally.sizes[c]), float(means[c]), rows, tuple(live.ids(rows)), scores, centroids[c])
        for c in np.argsort(-tally.sizes, kind="stable")
        for rows, scores in [tally.best(int(c))]
    )


class _Tally:
    """Sizes, sums of scores and best rows of clusters, as rows come in."""

    def __init__(self, k: int, wanted: int, metric: str) -> None:
        self.sizes, self.sums, self._sign = np.zeros(k, np.int64), np.zeros(k), 1 if metric == "l2" else -1
        self._wanted = wanted
        self._kept: list[tuple[F32, I64]] = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in range(k)]

    def add(self, rows: I64, own: I64, scores: F32) -> None:
        self.sizes += np.bincount(own, minlength=len(self.sizes))
        self.sums += np.bincount(own, scores, minlength=len(self.sums))
        for cluster in np.unique(own):
            mine = own == cluster
            kept = self._kept[cluster]
            both = np.concatenate([kept[0], scores[mine]]), np.concatenate([kept[1], rows[mine]])
            best = np.argsort(self._sign * both[0], kind="stable")[: self._wanted]
            self._kept[cluster] = both[0][best], both[1][best]

    def best(self, cluster: int) -> tuple[I64, F32]:
        scores, rows = self._kept[cluster]
        return rows, scores


def _assigned(live: LiveRows, centroids: F32, metric: str) -> Iterator[tuple[I64, I64, F32]]:
    """Row numbers, clusters and scores (b,) of every row, batch by batch."""
    for start in range(0, live.count, READ_ROWS):
        part = prepared(live.read(start, min(live.count, start + READ_ROWS)), metric)
        yield np.arange(start, start + len(part)), *_own(part, centroids, metric)


def _own(part: F32, centroids: F32, metric: str) -> tuple[I64, F32]:
    """The nearest centroid of each row and the score to it."""
    half = 0.5 * np.einsum("ij,ij->i", centroids, centroids) if metric == "l2" else 0
    own = (part @ centroids.T - half).argmax(axis=1)
    if metric == "l2":
        return own, np.square(part - centroids[own]).sum(axis=1)
    return own, np.einsum("ij,ij->i", part, centroids[own])


def _moved(live: LiveRows, centroids: F32, metric: str) -> F32:
    """Centroids at the mean of all of their rows; one without rows stays."""
    sums, sizes = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    for start in range(0, live.count, READ_ROWS):
        part = prepared(live.read(start, min(live.count, start + READ_ROWS)), metric)
        own, _ = _own(part, centroids, metric)
        order = np.argsort(own, kind="stable")
        found, at, many = np.unique(own[order], return_index=True, return_counts=True)
        sums[found] += np.add.reduceat(part[order], at, axis=0, dtype=np.float64)
        sizes[found] += many
    moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    return prepared(moved.astype(np.float32), metric)


def _write(
    live: LiveRows, out: str, add: Callable[[I64, I64, F32], None],
    batches: Iterator[tuple[I64, I64, F32]],
) -> None:  # fmt: skip
    schema = pa.schema([("id", pa.string()), ("cluster", pa.int32()), ("score", pa.float32())])
    with Location(out).create() as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows, own, scores in batches:
            add(rows, own, scores)
            ids = live.table(rows).column("id").cast(pa.string())
            writer.write_table(pa.table([ids, pa.array(own, pa.int32()), scores], schema=schema))
