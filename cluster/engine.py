"""Search a collection in this process: every tier that is built, over all of its shards."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.build import open_collection
from cluster.chunk_cache import CACHE_BYTES
from cluster.device import Device, runs_on_gpu
from cluster.estimate import QUERIES, RecallEstimate, Recent, estimate_recall
from cluster.explain import explained
from cluster.index_store import Build, current_builds, indexes_of
from cluster.planner import available, choose, fresh
from cluster.query import Query, checked_vectors
from cluster.results import Results
from cluster.shard_set import ShardSet
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError
from storage.batch_log import Receipt
from storage.collection import CollectionArchive
from storage.rowlog import RowLog


class SearchEngine:
    """A collection ready to be searched. Opening reads manifests; an index is loaded when a query first needs it."""

    def __init__(
        self,
        collection: CollectionArchive,
        builds: dict[str, Build],
        threads: int | None = None,
        device: Device = "cpu",
        cache: int = CACHE_BYTES,
    ) -> None:
        if isinstance(cache, bool) or not isinstance(cache, int | np.integer) or cache < 0:
            raise HilbertflowError(f"cache is {cache!r}", where="search", remedy="give a number of bytes from 0")
        if device == "cuda":
            runs_on_gpu(device, "device")  # refused now, not by the first query
        self._threads, self._device, self._cache = threads, device, int(cache)
        self._log, self._lock = RowLog(collection), threading.Lock()
        self._held, self._recent = self._over(collection, builds), Recent()
        self._looked = False

    @classmethod
    def open(
        cls, url: str, *, threads: int | None = None, device: Device = "cpu", cache: int = CACHE_BYTES
    ) -> SearchEngine:
        """The collection at `url`, or the only one under a root.

        threads: of FAISS; None leaves its default. device: of tier `ivfpq`; a GPU takes seconds to start, which pays
        for batches and for many queries. cache: bytes, of what tier `cold` reads, that are kept for later searches.
        """
        collection = open_collection(url)
        return cls(collection, current_builds(indexes_of(collection)), threads, device, cache)

    @property
    def collection(self) -> CollectionArchive:
        """The archive that is searched; another one after a compaction and `refresh`."""
        return self._set.collection

    @property
    def builds(self) -> dict[str, Build]:
        """The indexes over it."""
        return self._set.builds

    @property
    def version(self) -> int:
        """Version of the collection that searches see: 0 as archived, one more with each batch of changes."""
        return self._set.view.version

    def refresh(self) -> bool:
        """See what others changed since: True when there was something. Reads the new batches only."""
        with self._lock:
            url, version = self._held.collection.url, self._held.view.version if self._looked else None
            self._held.refresh()
            while self._held.stale:
                now = self._log.view.base
                held = self._over(now, current_builds(indexes_of(now)))
                held.refresh()
                self._held = held
            view, self._looked = self._held.view, True
            return view.base.url != url or version not in (None, view.version)

    def upsert(self, ids: Any, vectors: Any, metadata: Any = None, key: str | None = None) -> Receipt:
        """Put rows in, replacing those whose id exists; see `storage.rowlog.RowLog.upsert`. Seen by the next search."""
        return self._changed(self._log.upsert(ids, vectors, metadata, key))

    def append(self, ids: Any, vectors: Any, metadata: Any = None, key: str | None = None) -> Receipt:
        """Put rows in whose ids are new; an id that exists is refused, and then the whole batch."""
        return self._changed(self._log.append(ids, vectors, metadata, key))

    def delete(self, ids: Any, key: str | None = None) -> Receipt:
        """Delete rows by id; seen by the next search."""
        return self._changed(self._log.delete(ids, key))

    def rows(self, ids: Sequence[str]) -> I64:
        """Row number of every id, -1 where there is none."""
        return self._set.log.rows(ids)

    def take(self, rows: I64) -> F32:
        """Exact vectors of rows, as `Results.rows` numbers them: (n, dim)."""
        return self._set.view.take(rows)

    def metadata(self, rows: I64) -> pa.Table:
        """Ids and metadata of rows, as `Results.rows` numbers them, in this order."""
        return self._set.metadata(rows)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Tiers that can answer now."""
        return available(self.builds, self.collection)

    def search(
        self, queries: Any, k: int = 10, tier: str | None = None, filter: str | None = None, **overrides: Any
    ) -> Results:
        """Find the k rows nearest to each query.

        queries: (q, dim) or (dim,) numbers. k: 1 to 10,000; more than there are rows gives all rows. tier: `exact`
        compares every row, `cold` reads lists of them where they lie, `ivfpq` and `hnsw` search an index; None or
        `auto` takes the best one built, or what is quickest without any. filter: an expression over the metadata, such
        as `package == "numpy" and lines > 20`; whenever k rows match, k rows come back. overrides: `nprobe` and
        `refine` (ivfpq, cold), `ef` (hnsw), `level` (cold, exact: the finest level compared, a
        number from 0 or `exact`), and for every tier
        `radius`: only rows within that squared distance, or of at least that similarity, at most k of them. `exact`
        finds all within it, the other tiers those that they find at their recall as k grows. Where `nprobe` or `ef` is
        left out, an index looks further for a k above 10, so that recall holds.

        Scores are similarities for `ip` and `cosine` (higher is better) and squared distances for `l2` (lower is
        better); equal scores are ordered by row number. Index tiers score by the vectors they keep (float16 or 8 bits a
        value unless built otherwise), `cold` by the finest level that it reads. Raises `HilbertflowError` for whatever
        cannot be asked.
        """
        query = Query.of(k, tier, filter, self._numbered(overrides))
        vectors = checked_vectors(queries, self.collection.dim, self.collection.metric)
        found = self.answer(vectors, query)
        self._recent.add(vectors)
        return found

    def answer(self, vectors: F32, query: Query) -> Results:
        """The same for checked vectors and a query that is made."""
        held = self._set  # another one may take its place meanwhile
        choice = choose(query, held.builds, held.collection)
        answer = held.search(vectors, query)
        began = time.perf_counter()
        ids = held.ids(answer.rows)
        explain = explained(query, choice, answer, held.builds.get(choice.tier), len(vectors))
        explain["seconds"]["ids"] = time.perf_counter() - began
        return Results(ids, answer.rows, answer.scores, False, explain)

    def estimate_recall(
        self, tier: str | None = None, queries: Any = None, k: int = 10, count: int = QUERIES, seed: int = 0,
        **overrides: Any,
    ) -> RecallEstimate:  # fmt: skip
        """Recall@k of a tier on the rows as they are now, by comparing every row for a sample of queries.

        queries: (q, dim); None takes the last ``count`` that this engine was asked, and rows of the collection while it
        was asked fewer. overrides: as of `search`. Costs one exact scan.
        """
        return estimate_recall(
            self, self._recent, Query.of(k, tier, None, self._numbered(overrides)), queries, count, seed
        )

    def sample(self, count: int, seed: int = 0) -> I64:
        """Rows that stand, at most ``count`` of them, drawn by ``seed``; ascending."""
        view = self._set.view
        every = np.concatenate([np.setdiff1d(np.arange(view.base.count), view.gone), view.base.count + view.live])
        if not len(every):
            raise HilbertflowError("the collection is empty", where=self.collection.url, remedy="add rows first")
        return np.sort(np.random.default_rng(seed).choice(every, min(count, len(every)), replace=False))

    @property
    def _set(self) -> ShardSet:
        """What is searched. Where nobody has looked yet, the collection as it is now: after a compaction that came
        between, what was opened would answer as if no row had ever changed.
        """
        if not self._looked:
            self.refresh()
        return self._held

    def _numbered(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Overrides whose level is a number: the exact one comes behind the last lossy one."""
        exact = overrides.get("level") == "exact"
        return overrides | {"level": len(self.collection.levels) - 1} if exact else overrides

    def _over(self, collection: CollectionArchive, builds: dict[str, Build]) -> ShardSet:
        builds = fresh(collection, builds)
        return ShardSet(
            collection, builds, threads=self._threads, log=self._log, device=self._device, cache=self._cache
        )

    def _changed(self, receipt: Receipt) -> Receipt:
        self.refresh()
        return receipt
