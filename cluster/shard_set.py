"""Some of the shards of a collection, in one process: what the engine holds whole and each shard actor in part."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.chunk_cache import CACHE_BYTES
from cluster.cold import Cold
from cluster.cold_plan import Effort
from cluster.device import Device
from cluster.exact import BATCH_ROWS, ExactScan
from cluster.identity import Ids
from cluster.index_store import Build, cold_settings
from cluster.lean_memory import lean_memory
from cluster.matching import Matching
from cluster.planner import choose
from cluster.query import Query
from cluster.radius import grown, within
from cluster.results import merge
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from storage.collection import CollectionArchive
from storage.handle import Level
from storage.rowlog import RowLog, View

KEPT_VIEWS = 8  # versions that a search can still ask for: groups of one collection must answer about the same
Parts = list[tuple[F32, I64]]


@dataclass(frozen=True)
class Answer:
    """What one set of shards found: scores and rows (q, w), best first, and what it took.

    fingerprint: of the archive whose row numbers these are; version: of the collection, as `storage.rowlog` counts.
    bytes_read and requests: of the search itself, not of loading an index or opening the collection. rounds: of
    requests that had to wait for one another, and level: the finest read, where rows were read in place. cache_hits:
    reads that memory answered instead.
    """

    scores: F32
    rows: I64
    fingerprint: str
    lists_probed: int
    rows_scanned: int
    bytes_read: int
    seconds: dict[str, float]
    version: int = 0
    log_rows: int = 0
    requests: int = 0
    rounds: int = 0
    level: str = ""
    cache_hits: int = 0


class ShardSet:
    """Shards `group`, `group + groups`, … of every build, and an equal share of the rows for the exact tier.

    Rows that later batches replaced or deleted are not answered; group 0 compares the rows of those batches as well.
    `refresh` goes on to the newest version. After a compaction the set is `stale`: it answers the version that it
    knows, and whoever made it opens the collection again.

    One search runs at a time (FAISS brings its own threads). Index files are loaded on the first search that needs
    them, or by `load`; those of tier `ivfpq` are searched on `device`. Of what tier `cold` reads, `cache` bytes are
    kept for later searches. The set answers from the builds it was made with, for as long as it lives.
    """

    def __init__(
        self,
        collection: CollectionArchive,
        builds: Mapping[str, Build],
        group: int = 0,
        groups: int = 1,
        threads: int | None = None,
        log: RowLog | None = None,
        device: Device = "cpu",
        cache: int = CACHE_BYTES,
    ) -> None:
        lean_memory()
        self.collection, self.builds = collection, dict(builds)
        self.group, self.groups, self.threads, self.device = group, groups, threads, device
        self.log, self.stale = log or RowLog(collection), False
        self._view: View | None = None
        self._views: OrderedDict[int, View] = OrderedDict()
        self._shards: dict[str, list[Shard]] = {}
        self._matching, self._ids, self._cache = Matching(collection), Ids(collection), cache
        self._cold = Cold(collection, cache=cache)
        self._lock = threading.RLock()
        known = self.builds
        self._tier_of: Callable[[Query], str] = lru_cache(maxsize=1024)(lambda q: choose(q, known, collection).tier)

    @property
    def view(self) -> View:
        """The version that is answered."""
        if self._view is None:
            self.refresh()
        assert self._view is not None
        return self._view

    def refresh(self) -> int:
        """Go on to the newest version of this archive's rows; returns its number."""
        with self._lock:
            self.log.refresh()
            view = self.log.view
            self.stale = view.base.url != self.collection.url
            if not self.stale:
                self._view = self._views[view.version] = view
                while len(self._views) > KEPT_VIEWS:
                    self._views.popitem(last=False)
            elif self._view is None:
                self._view = View.of(self.collection)
            assert self._view is not None
            return self._view.version

    def at(self, version: int) -> bool:
        """Whether exactly this version can be answered without looking at storage."""
        return version in self._views

    def ids(self, rows: I64) -> npt.NDArray[np.object_]:
        """Ids in the shape of `rows`, of the archive and of the log; None where there is no row."""
        return self._ids.of(rows, self.view, self._cold.ids if "cold" in self._shards else None)

    def metadata(self, rows: I64) -> pa.Table:
        """Ids and metadata of rows of either kind, in this order."""
        return self.view.table(rows)

    def load(self, tier: str) -> list[Shard]:
        """The shards of a tier, read and checked; none for `exact`, and none for `cold`, which is opened."""
        with self._lock:
            if tier not in self._shards:
                build = self.builds.get(tier)
                numbers = range(self.group, len(build.shards), self.groups) if build else range(0)
                self._shards[tier] = (
                    [Shard.load(self.collection, build, n, self.device) for n in numbers] if build else []
                )
                if tier == "cold":
                    self._cold = Cold(self.collection, cold_settings(self.collection), cache=self._cache)
                    self._cold.open()
            return self._shards[tier]

    def search(self, queries: F32, query: Query, version: int | None = None) -> Answer:
        """Best k among this set's rows for each of (q, dim) checked queries.

        version: of the rows; where it is no longer held, the newest is answered. None takes the one last seen.
        """
        with self._lock:
            if version is not None and version > self.view.version:
                self.refresh()
            view = self._views.get(self.view.version if version is None else version, self.view)
            tier = self._tier_of(query)
            traffic, clock = self.collection.place.traffic, _Clock()
            self.load(tier)
            clock.lap("load")
            requests, read, hits = traffic.requests, traffic.bytes_read, traffic.hits
            slots = self._matching.slots(query.filter, view) if self.group == 0 else view.live[:0]
            if self.threads is not None:
                faiss.omp_set_num_threads(self.threads)
            answer = {"exact": self._every_row, "cold": self._in_place}.get(tier, self._indexed)
            efforts: list[Effort] = []

            def best(k: int) -> tuple[F32, I64]:
                wider = query if k == query.k else dataclasses.replace(query, k=k)
                parts, effort = answer(queries, wider, view, slots, clock, tier)
                efforts.append(effort)
                clock.lap("search")
                return merge(parts, k, self.collection.metric) if len(parts) > 1 else parts[0]

            if query.radius is None:
                scores, rows = best(query.k)
            elif tier == "exact":  # one pass over the archive finds them all
                scores, rows = within(*best(query.k), query.radius, self.collection.metric)
            else:
                scores, rows = grown(best, query.k, query.radius, self.collection.metric)
            return Answer(
                scores, rows, self.collection.fingerprint, sum(e.lists_probed for e in efforts),
                sum(e.rows_scanned for e in efforts), traffic.bytes_read - read, clock.laps, view.version, len(slots),
                traffic.requests - requests, sum(e.rounds for e in efforts), efforts[-1].level,
                traffic.hits - hits + sum(e.cache_hits for e in efforts),
            )  # fmt: skip

    def _every_row(
        self, queries: F32, query: Query, view: View, slots: I64, clock: _Clock, tier: str
    ) -> tuple[Parts, Effort]:
        matches = self._matching.rows(query.filter, view, *self._own_rows())
        clock.lap("filter")
        level = self._level(query.overrides.level)
        scan, rounds = self._scan(queries, query.k, matches, level)
        _compare_log(scan, view, slots)
        return [scan.best()], Effort(rows_scanned=scan.scanned * len(queries), rounds=rounds, level=str(level))

    def _level(self, asked: int | None) -> Level:
        """The level that an exact scan compares; the number behind the last lossy one is exact."""
        levels = self.collection.levels
        return "exact" if asked is None or asked == len(levels) - 1 else self.collection.check_level(asked)

    def _in_place(
        self, queries: F32, query: Query, view: View, slots: I64, clock: _Clock, tier: str
    ) -> tuple[Parts, Effort]:
        matches = self._matching.rows(query.filter, view, 0, self.collection.count)
        clock.lap("filter")
        span = None if self.groups == 1 else self._own_rows()
        ready = prepared(queries, self.collection.metric)
        asked = query.overrides
        if query.radius is not None and asked.level is None:  # a score tells whether a row is within
            asked = dataclasses.replace(asked, level=self.collection.code.depth)
        scores, rows, effort = self._cold.search(ready, query.k, asked, matches, span)
        late, compared = self._late(queries, query, view, slots)
        return [(scores, rows), *late], dataclasses.replace(effort, rows_scanned=effort.rows_scanned + compared)

    def _indexed(
        self, queries: F32, query: Query, view: View, slots: I64, clock: _Clock, tier: str
    ) -> tuple[Parts, Effort]:
        shards = self.load(tier)
        matches = [self._matching.rows(query.filter, view, shard.start, shard.stop) for shard in shards]
        clock.lap("filter")
        ready, probed, scanned = prepared(queries, self.collection.metric), 0, 0
        parts = [] if shards else [(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))]
        for shard, matching in zip(shards, matches, strict=True):
            scores, rows, effort = shard.search(ready, query.k, query.overrides, matching)
            parts.append((scores, rows))
            probed, scanned = probed + effort.lists_probed, scanned + effort.rows_scanned
        late, compared = self._late(queries, query, view, slots)
        return parts + late, Effort(probed, scanned + compared)

    def _late(self, queries: F32, query: Query, view: View, slots: I64) -> tuple[Parts, int]:
        """Rows of later batches, compared one by one: their best, and how many comparisons that took."""
        if not len(slots):
            return [], 0
        scan = ExactScan(queries, query.k, self.collection.metric)
        _compare_log(scan, view, slots)
        return [scan.best()], scan.scanned * len(queries)

    def _own_rows(self) -> tuple[int, int]:
        count = self.collection.count
        return count * self.group // self.groups, count * (self.group + 1) // self.groups

    def _scan(self, queries: F32, k: int, matches: I64 | None, level: Level) -> tuple[ExactScan, int]:
        """Stream this set's rows, or only those of `matches`, at a level; also counts the batches, which are rounds."""
        scan, (start, stop), rounds = ExactScan(queries, k, self.collection.metric), self._own_rows(), 0
        for low in range(start, stop, BATCH_ROWS):
            high = min(stop, low + BATCH_ROWS)
            if matches is None:
                scan.feed(self.collection.read(low, high, level), np.arange(low, high))
                rounds += 1
                continue
            wanted = matches[np.searchsorted(matches, low) : np.searchsorted(matches, high)]
            if len(wanted):
                scan.feed(self.collection.take(wanted, level), wanted)
                rounds += 1
        return scan, rounds


def _compare_log(scan: ExactScan, view: View, slots: I64) -> None:
    """Compare these rows of the log as well."""
    count = view.base.count
    if len(slots) == len(view.vectors):
        scan.feed(view.vectors, slots + count)
        return
    for at in range(0, len(slots), BATCH_ROWS):
        some = slots[at : at + BATCH_ROWS]
        scan.feed(view.vectors[some], some + count)


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = self.laps.get(name, 0.0) + now - self._last, now
