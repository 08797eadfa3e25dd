"""Find the cheapest search settings that reach a target recall, measured on rows held out as queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cluster.artefact import SEED
from cluster.exact import BATCH_ROWS, ExactScan
from cluster.index_kind import Overrides
from cluster.index_store import Build
from cluster.results import NO_ROW, merge, recall
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from storage.collection import CollectionArchive

QUERIES = 256
NEIGHBOURS = 10
MARGIN = 0.01  # two standard errors of a recall near 0.95 over 256 queries: fresh queries should reach the target too


def tune(collection: CollectionArchive, build: Build) -> Build:
    """The build with `tuned` settings and the `trials` that led to them; recall@10 against the exact scan.

    Queries are rows drawn with a fixed seed, each left out of its own answer. Cost is counted, not timed (bytes of
    codes, vectors and centroids that a query touches), so that the same build is tuned alike on any machine. Shards are
    loaded one at a time. When no setting reaches the target the most thorough one is taken; its recall stands in
    `trials`.
    """
    target, k = build.kind.target_recall or 0.0, min(NEIGHBOURS, collection.count - 1)
    if k == 0:
        return build
    own = np.sort(np.random.default_rng(SEED).choice(collection.count, min(QUERIES, collection.count), replace=False))
    queries = prepared(collection.take(own), collection.metric)
    truth = _without(_exact(collection, queries, k + 1), own, k)
    ladder: list[Overrides] = []
    found: list[list[tuple[F32, I64]]] = []
    work: list[int] = []
    for number in range(len(build.shards)):
        shard = Shard.load(collection, build, number)
        if not ladder:
            ladder = build.kind.ladder(shard.index, k)
            found, work = [[] for _ in ladder], [0] * len(ladder)
        for i, setting in enumerate(ladder):
            scores, rows, effort = shard.search(queries, k + 1, setting)
            found[i].append((scores, rows))
            work[i] += effort.rows_scanned
    trials: list[dict[str, Any]] = []
    for setting, parts, scanned in zip(ladder, found, work, strict=True):
        reached = recall(_without(merge(parts, k + 1, build.metric)[1], own, k), truth)
        cost = build.kind.cost(build.dim, scanned / len(own), k, setting, len(build.shards))
        trials.append({**setting.given(), "recall": round(reached, 4), "kilobytes": round(cost / 1000, 1)})
    enough = [i for i, trial in enumerate(trials) if trial["recall"] >= min(target + MARGIN, 1.0)]
    best = (
        min(enough, key=lambda i: trials[i]["kilobytes"])
        if enough
        else max(range(len(trials)), key=lambda i: trials[i]["recall"])
    )
    trials[best]["chosen"] = True
    return dataclasses.replace(build, tuned=ladder[best], trials=tuple(trials))


def _exact(collection: CollectionArchive, queries: F32, k: int) -> I64:
    scan = ExactScan(queries, k, collection.metric)
    at = 0
    for vectors in collection.iter_batches("exact", BATCH_ROWS):
        scan.feed(vectors, np.arange(at, at + len(vectors)))
        at += len(vectors)
    return scan.best()[1]


def _without(rows: I64, own: I64, k: int) -> I64:
    """Rows (q, k + 1) without each query's own row: (q, k)."""
    kept = np.where(rows == own[:, None], NO_ROW, rows)
    order = np.argsort(kept == NO_ROW, axis=1, kind="stable")
    return np.take_along_axis(kept, order, 1)[:, :k]
