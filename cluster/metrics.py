"""Counters of one ingress process, in Prometheus' text format."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cluster.recent import Recent
from cluster.results import Results
from cluster.service import CollectionService

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


@dataclass(frozen=True)
class _Counters:
    """What an answer of one tier of one collection is counted by, looked up once: that takes longer than counting."""

    queries: Counter
    batch: Histogram
    work: tuple[tuple[Counter, str], ...]


class Metrics:
    """Everything `/metrics` tells; every ingress replica counts for itself.

    recent: by collection, what was asked in the last minute; recalls: by collection, the newest estimate of each tier.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own, space = self.registry, "hilbertflow"
        self.requests = Counter("requests", "HTTP requests", ["route", "status"], space, registry=own)
        self.latency = Histogram(
            "request_seconds", "Time to answer", ["route"], space, registry=own, buckets=_SECONDS
        )  # fmt: skip
        self.queries = Counter("queries", "Queries answered", ["collection", "tier"], space, registry=own)
        self.partial = Counter("partial_answers", "Answers that lacked a shard", ["collection"], space, registry=own)
        self.batch = Histogram(
            "batch_queries", "Queries searched together", ["collection"], space, registry=own, buckets=_SIZES
        )  # fmt: skip
        self.scanned = Counter("rows_scanned", "Codes and vectors compared", ["collection"], space, registry=own)
        self.read = Counter("storage_read_bytes", "Bytes read from storage", ["collection"], space, registry=own)
        self.fetched = Counter("storage_requests", "Requests to storage", ["collection"], space, registry=own)
        self.hits = Counter("cache_hits", "Reads that memory answered", ["collection"], space, registry=own)
        self.changes = Counter("rows_changed", "Ids that changes named", ["collection", "op"], space, registry=own)
        self.rows = Gauge("collection_rows", "Rows of a collection", ["collection", "version"], space, registry=own)
        self.recent: dict[str, Recent] = {}
        self._replying: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._answering: dict[tuple[str, str], _Counters] = {}
        self.recalls: dict[str, dict[str, float]] = {}
        self.recall = Gauge("recall_at_10", "Recall when tuned", ["collection", "tier"], space, registry=own)
        self.estimate = Gauge(
            "recall_estimate", "Recall of queries asked, by comparing all rows", ["collection", "tier"], space,
            registry=own,
        )  # fmt: skip

    def describe(self, service: CollectionService, instead: CollectionService | None = None) -> None:
        """Record what is known of a collection when it is opened, perhaps instead of an older version of it."""
        if instead is not None:
            self.rows.remove(instead.name, instead.version)
            for tier in instead.about()["indexes"]:
                with contextlib.suppress(KeyError):
                    self.recall.remove(instead.name, tier)
        self.rows.labels(service.name, service.version).set(service.view.count)
        for tier, about in service.about()["indexes"].items():
            if about["recall_at_10"] is not None:
                self.recall.labels(service.name, tier).set(about["recall_at_10"])

    def replied(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = route, status
        if (counters := self._replying.get(key)) is None:
            counters = self._replying[key] = self.requests.labels(route, status), self.latency.labels(route)
        counters[0].inc()
        counters[1].observe(seconds)

    def answered(self, collection: str, results: Results) -> None:
        """Count one answered search; its share of a batch's work."""
        queries, explain = len(results.rows), results.explain
        share = queries / max(1, explain["batched"])
        key = collection, explain["tier"]
        if (counters := self._answering.get(key)) is None:
            counters = self._answering[key] = self._counters(*key)
        self.recent.setdefault(collection, Recent()).add(queries, explain["seconds"]["whole"], results.partial)
        counters.batch.observe(explain["batched"])
        counters.queries.inc(queries)
        for counter, name in counters.work:
            if explain[name]:
                counter.inc(explain[name] * share)
        if results.partial:
            self.partial.labels(collection).inc(queries)

    def _counters(self, collection: str, tier: str) -> _Counters:
        work = {
            "rows_scanned": self.scanned,
            "bytes_read": self.read,
            "requests": self.fetched,
            "cache_hits": self.hits,
        }
        children = tuple((counter.labels(collection), name) for name, counter in work.items())
        return _Counters(self.queries.labels(collection, tier), self.batch.labels(collection), children)

    def estimated(self, collection: str, recalls: dict[str, float]) -> None:
        """Keep the newest estimate of each tier."""
        self.recalls.setdefault(collection, {}).update(recalls)
        for tier, recall in recalls.items():
            self.estimate.labels(collection, tier).set(recall)

    def changed(self, service: CollectionService, op: str, rows: int) -> None:
        """Count a change of rows, and how many there are now."""
        self.changes.labels(service.name, op).inc(rows)
        self.rows.labels(service.name, service.version).set(service.view.count)

    def text(self) -> bytes:
        """As Prometheus scrapes it."""
        return generate_latest(self.registry)
