"""Find the cheapest search settings that reach a target recall, measured on rows held out as queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cluster.artefact import SEED
from cluster.cold import Cold
from cluster.cold_plan import usual_nprobe
from cluster.exact import BATCH_ROWS, ExactScan
from cluster.index_kind import Overrides
from cluster.index_store import Build
from cluster.probing import TUNED_K
from cluster.results import NO_ROW, merge, recall
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from storage.collection import CollectionArchive

QUERIES = 256
NEIGHBOURS = TUNED_K
COLD_SHARES = (0.25, 0.5, 0.75, 1, 1.5, 2.25, 3.5)  # of the usual number of lists
COLD_REFINES, COLD_EXACT = (4, 8, 16), (16, 48)
MARGIN = 0.01  # two standard errors of a recall near 0.95 over 256 queries: fresh queries should reach the target too


@dataclass(frozen=True)
class Questions:
    """Rows asked as queries: their numbers, vectors and exact answers without themselves, (q,), (q, d) and (q, k)."""

    own: I64
    queries: F32
    truth: I64

    @classmethod
    def of(cls, collection: CollectionArchive) -> Self:
        """Drawn with a fixed seed; answered by comparing every row."""
        k = max(0, min(NEIGHBOURS, collection.count - 1))
        random = np.random.default_rng(SEED)
        own = np.sort(random.choice(collection.count, min(QUERIES, collection.count), replace=False))
        queries = prepared(collection.take(own), collection.metric)
        return cls(own, queries, _without(_exact(collection, queries, k + 1), own, k))

    @property
    def k(self) -> int:
        """Neighbours asked for."""
        return int(self.truth.shape[1])

    def recall(self, rows: I64) -> float:
        """Of answers (q, k + 1) that may hold the queries themselves."""
        return round(recall(_without(rows, self.own, self.k), self.truth), 4)


def tune(collection: CollectionArchive, build: Build, asked: Questions | None = None) -> Build:
    """The build with `tuned` settings and the `trials` that led to them; recall@10 against the exact scan.

    A query is a row, left out of its own answer and passed by on the way to it, as if it had been held out when the
    index was built. Cost is counted, not timed (bytes of codes, vectors and centroids that a query touches), so that
    the same build is tuned alike on any machine. Shards are loaded one at a time. When no setting reaches the target
    the most thorough one is taken; its recall stands in `trials`.
    """
    asked = asked or Questions.of(collection)
    k = asked.k
    if k == 0:
        return build
    ladder: list[Overrides] = []
    found: list[list[tuple[F32, I64]]] = []
    work: list[int] = []
    for number in range(len(build.shards)):
        shard = Shard.load(collection, build, number)
        if not ladder:
            ladder = build.kind.ladder(shard.index, k)
            found, work = [[] for _ in ladder], [0] * len(ladder)
        for i, setting in enumerate(ladder):
            scores, rows, effort = shard.search(asked.queries, k + 1, setting, own=asked.own)
            found[i].append((scores, rows))
            work[i] += effort.rows_scanned
    trials: list[dict[str, Any]] = []
    for setting, parts, scanned in zip(ladder, found, work, strict=True):
        reached = asked.recall(merge(parts, k + 1, build.metric)[1])
        cost = build.kind.cost(build.dim, scanned / len(asked.own), k, setting, len(build.shards))
        trials.append({**setting.given(), "recall": reached, "kilobytes": round(cost / 1000, 1)})
    best = cheapest(trials, build.kind.target_recall or 0.0)
    return dataclasses.replace(build, tuned=ladder[best], trials=tuple(trials))


def tune_cold(collection: CollectionArchive, target: float, asked: Questions) -> tuple[Overrides, list[dict[str, Any]]]:
    """Settings of the tier `cold` that reach the target for the fewest bytes read, and what was tried."""
    cold, lists = Cold(collection, cache=0), len(collection.borders) - 1
    probes = sorted({min(lists, max(1, round(usual_nprobe(lists) * share))) for share in COLD_SHARES})
    ladder = [Overrides(nprobe=n, refine=refine) for n in probes for refine in COLD_REFINES]
    # Where the levels tell neighbours apart too poorly, the best are compared by their exact values.
    ladder += [Overrides(nprobe=n, refine=refine, level=collection.code.depth) for n in probes for refine in COLD_EXACT]
    cold.open()
    trials = []
    for setting in ladder:
        _, rows, effort = cold.search(asked.queries, asked.k + 1, setting)
        kilobytes = round(effort.bytes_read / len(asked.own) / 1000, 1)
        trials.append({**setting.given(), "recall": asked.recall(rows), "kilobytes": kilobytes})
    return ladder[cheapest(trials, target)], trials


def cheapest(trials: list[dict[str, Any]], target: float) -> int:
    """Place of the cheapest trial that reaches a target, else of the best one; it is marked as chosen."""
    enough = [i for i, trial in enumerate(trials) if reaches(trial, target)]
    best = (
        min(enough, key=lambda i: float(trials[i]["kilobytes"]))
        if enough
        else max(range(len(trials)), key=lambda i: float(trials[i]["recall"]))
    )
    trials[best]["chosen"] = True
    return best


def reaches(trial: Mapping[str, Any], target: float) -> bool:
    """Whether a trial reaches a target so well that fresh queries should too."""
    return bool(trial["recall"] >= min(target + MARGIN, 1.0))


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
