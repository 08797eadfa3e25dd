"""Some of the shards of a collection, in one process: what the engine holds whole and each shard actor in part."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa

from cluster.exact import BATCH_ROWS, ExactScan
from cluster.filters import parse_filter
from cluster.index_store import Build
from cluster.planner import choose
from cluster.query import Query
from cluster.results import merge
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from storage.collection import CollectionArchive

KEPT_FILTERS = 32
METADATA_ROWS = 65_536


@dataclass(frozen=True)
class Answer:
    """What one set of shards found: scores and rows (q, w), best first, and what it took.

    fingerprint: of the collection whose row numbers these are.
    """

    scores: F32
    rows: I64
    fingerprint: str
    lists_probed: int
    rows_scanned: int
    bytes_read: int
    seconds: dict[str, float]


class ShardSet:
    """Shards `group`, `group + groups`, … of every build, and an equal share of the rows for the exact tier.

    One search runs at a time (FAISS brings its own threads). Index files are loaded on the first search that needs
    them, or by `load`. The set answers from the builds it was made with, for as long as it lives.
    """

    def __init__(
        self,
        collection: CollectionArchive,
        builds: Mapping[str, Build],
        group: int = 0,
        groups: int = 1,
        threads: int | None = None,
    ) -> None:
        self.collection, self.builds = collection, dict(builds)
        self.group, self.groups, self.threads = group, groups, threads
        self._shards: dict[str, list[Shard]] = {}
        self._matches: OrderedDict[tuple[str, int, int], I64] = OrderedDict()
        self._columns: dict[tuple[str, int, int], pa.ChunkedArray] = {}
        self._lock = threading.RLock()

    def load(self, tier: str) -> list[Shard]:
        """The shards of a tier, read and checked; none for `exact`."""
        with self._lock:
            if tier not in self._shards:
                build = self.builds.get(tier)
                numbers = range(self.group, len(build.shards), self.groups) if build else range(0)
                self._shards[tier] = [Shard.load(self.collection, build, n) for n in numbers] if build else []
            return self._shards[tier]

    def search(self, queries: F32, query: Query) -> Answer:
        """Best k among this set's rows for each of (q, dim) checked queries."""
        with self._lock:
            tier, before, clock = (
                choose(query, self.builds, self.collection.url).tier,
                self.collection.bytes_read,
                _Clock(),
            )
            shards = self.load(tier)
            clock.lap("load")
            ranges = [(shard.start, shard.stop) for shard in shards] if tier != "exact" else [self._own_rows()]
            matches = [None if query.filter is None else self._matching(query.filter, *span) for span in ranges]
            clock.lap("filter")
            if self.threads is not None:
                faiss.omp_set_num_threads(self.threads)
            parts: list[tuple[F32, I64]] = [
                (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
            ]
            probed = scanned = 0
            if tier == "exact":
                scan = self._scan(queries, query.k, matches[0])
                parts.append(scan.best())
                scanned = scan.scanned * len(queries)
            else:
                ready = prepared(queries, self.collection.metric)
                for shard, matching in zip(shards, matches, strict=True):
                    scores, rows, effort = shard.search(ready, query.k, query.overrides, matching)
                    parts.append((scores, rows))
                    probed, scanned = probed + effort.lists_probed, scanned + effort.rows_scanned
            scores, rows = merge(parts, query.k, self.collection.metric) if len(parts) > 2 else parts[-1]
            clock.lap("search")
            read = self.collection.bytes_read - before
            return Answer(scores, rows, self.collection.fingerprint, probed, scanned, read, clock.laps)

    def _own_rows(self) -> tuple[int, int]:
        count = self.collection.count
        return count * self.group // self.groups, count * (self.group + 1) // self.groups

    def _scan(self, queries: F32, k: int, matches: I64 | None) -> ExactScan:
        """Stream this set's rows, or only those of `matches`, from the exact level."""
        scan, (start, stop) = ExactScan(queries, k, self.collection.metric), self._own_rows()
        for low in range(start, stop, BATCH_ROWS):
            high = min(stop, low + BATCH_ROWS)
            if matches is None:
                scan.feed(self.collection.read(low, high), np.arange(low, high))
                continue
            wanted = matches[np.searchsorted(matches, low) : np.searchsorted(matches, high)]
            if len(wanted):
                scan.feed(self.collection.take(wanted), wanted)
        return scan

    def _matching(self, text: str, start: int, stop: int) -> I64:
        """Row numbers in start … stop - 1 that a filter lets through; the last few filters are remembered."""
        key = (text, start, stop)
        if key in self._matches:
            self._matches.move_to_end(key)
            return self._matches[key]
        rule = parse_filter(text, self.collection.table(0, 0).schema)
        table = pa.table({name: self._column(name, start, stop) for name in rule.columns})
        found = rule.rows(table, stop - start) + start
        self._matches[key] = found
        if len(self._matches) > KEPT_FILTERS:
            self._matches.popitem(last=False)
        return found

    def _column(self, name: str, start: int, stop: int) -> pa.ChunkedArray:
        """A metadata column of a range of rows, kept once a filter has named it."""
        key = (name, start, stop)
        if key not in self._columns:
            parts = [
                self.collection.table(low, min(stop, low + METADATA_ROWS), (name,)).column(name)
                for low in range(start, stop, METADATA_ROWS)
            ]
            chunks = [chunk for part in parts for chunk in part.chunks]
            self._columns[key] = pa.chunked_array(chunks) if chunks else self.collection.table(0, 0).column(name)
        return self._columns[key]


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
