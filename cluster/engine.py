"""Search a collection in this process: every tier that is built, over all of its shards."""

from __future__ import annotations

import time
from typing import Any

from cluster.build import open_collection
from cluster.identity import Ids
from cluster.index_store import Build, current_builds, indexes_of
from cluster.planner import available, choose, fresh
from cluster.query import Query, checked_vectors
from cluster.results import Results
from cluster.shard_set import ShardSet
from storage.collection import CollectionArchive


class SearchEngine:
    """A collection ready to be searched. Opening reads manifests; an index is loaded when a query first needs it."""

    def __init__(self, collection: CollectionArchive, builds: dict[str, Build], threads: int | None = None) -> None:
        self.collection, self.builds = collection, fresh(collection, builds)
        self._set, self._ids = ShardSet(collection, self.builds, threads=threads), Ids(collection)

    @classmethod
    def open(cls, url: str, *, threads: int | None = None) -> SearchEngine:
        """The collection at `url`, or the only one under a root. threads: of FAISS; None leaves its default."""
        collection = open_collection(url)
        return cls(collection, current_builds(indexes_of(collection)), threads)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Tiers that can answer now."""
        return available(self.builds)

    def search(
        self, queries: Any, k: int = 10, tier: str | None = None, filter: str | None = None, **overrides: int
    ) -> Results:
        """Find the k rows nearest to each query.

        queries: (q, dim) or (dim,) numbers. k: 1 to 10,000; more than there are rows gives all rows. tier: `exact`
        compares every row, `ivfpq` and `hnsw` search an index; None or `auto` takes the best one built. filter: an
        expression over the metadata, such as `package == "numpy" and lines > 20`; whenever k rows match, k rows come
        back. overrides: `nprobe` and `refine` (ivfpq), `ef` (hnsw).

        Scores are similarities for `ip` and `cosine` (higher is better) and squared distances for `l2` (lower is
        better); equal scores are ordered by row number. Index tiers score by the vectors they keep (float16 or 8 bits a
        value unless built otherwise). Raises `HilbertflowError` for whatever cannot be asked.
        """
        query = Query.of(k, tier, filter, overrides)
        vectors = checked_vectors(queries, self.collection.dim)
        choice = choose(query, self.builds, self.collection.url)
        answer = self._set.search(vectors, query)
        began = time.perf_counter()
        ids = self._ids.of(answer.rows)
        explain = {
            "tier": choice.tier, "reason": choice.reason, "shards": len(self._set.load(choice.tier)) or 1,
            "lists_probed": answer.lists_probed, "rows_scanned": answer.rows_scanned, "bytes_read": answer.bytes_read,
            "seconds": answer.seconds | {"ids": time.perf_counter() - began},
        }  # fmt: skip
        return Results(ids, answer.rows, answer.scores, False, explain)
