"""Collections behind the endpoint: fan a query out to shard groups, merge, retry, and say when an answer is partial.

Nothing here knows Ray or HTTP: a backend is anything that answers for one shard group, in this process or in another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.batcher import Batcher
from cluster.filters import parse_filter
from cluster.identity import Ids
from cluster.index_store import Build
from cluster.planner import Choice, available, choose
from cluster.query import Query, checked_vectors
from cluster.results import NO_ROW, Results, merge
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32, I64
from storage.collection import CollectionArchive

_log = logging.getLogger("hilbertflow.serve")


class Unavailable(RuntimeError):
    """No shard group answered; the request can be sent again."""


class Backend(Protocol):
    """Answers for one shard group."""

    async def search(self, query: Query, vectors: F32) -> Answer:
        """Best rows of the group; raises when it cannot answer, after its own retries."""

    async def ready(self) -> bool:
        """Whether its shards are loaded."""


class LocalBackend:
    """A shard group in this process, searched by one thread so that the event loop stays free."""

    def __init__(self, shards: ShardSet, tier: str | None) -> None:
        self._shards, self._tier = shards, tier
        self._thread = ThreadPoolExecutor(1, "search")

    async def search(self, query: Query, vectors: F32) -> Answer:
        """Search in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._shards.search, vectors, query)

    async def ready(self) -> bool:
        """Load what queries that name no tier will need."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm)
        return True

    def _warm(self) -> None:
        tier = choose(Query(tier=self._tier), self._shards.builds, self._shards.collection.url).tier
        self._shards.load(tier)


@dataclass(frozen=True)
class Merged:
    """Answers of the groups as one: (q, w) scores and rows, which groups are missing, what it took."""

    scores: F32
    rows: I64
    missing: tuple[int, ...]
    explain: dict[str, Any]


class CollectionService:
    """One served collection."""

    def __init__(
        self, name: str, collection: CollectionArchive, builds: dict[str, Build], backends: Sequence[Backend],
        tier: str | None = None, timeout: float = 60.0, version: str = "",
    ) -> None:  # fmt: skip
        self.name, self.collection, self.builds, self.tier = name, collection, builds, tier
        self.version = version or collection.fingerprint[:12]
        self._backends, self._timeout, self._ids = tuple(backends), timeout, Ids(collection)
        self._batcher: Batcher[Query, F32, Merged] = Batcher(self._fan_out)

    def checked(self, vectors: Any, query: Query) -> tuple[F32, Query, Choice]:
        """Everything that can be wrong with a query, found before any shard is asked: raises `HilbertflowError`."""
        if query.tier is None and self.tier is not None and not query.overrides.given():
            query = Query(query.k, self.tier, query.filter, query.overrides)
        choice = choose(query, self.builds, f"collection {self.name!r}")
        query = Query(query.k, choice.tier, query.filter, query.overrides)
        if query.filter is not None:
            parse_filter(query.filter, self.collection.table(0, 0).schema)
        return checked_vectors(vectors, self.collection.dim), query, choice

    async def search(self, vectors: Any, query: Query) -> Results:
        """Answer (q, dim) query vectors; `partial` when a group did not answer, `Unavailable` when none did."""
        began = time.perf_counter()
        checked, query, choice = self.checked(vectors, query)
        merged, place = await self._batcher.submit(query, checked)
        rows, scores = merged.rows[place], merged.scores[place]
        ids = await asyncio.to_thread(self._ids.of, rows) if rows.size > 100_000 else self._ids.of(rows)
        explain = {"tier": choice.tier, "reason": choice.reason, **merged.explain}
        explain["seconds"] = merged.explain["seconds"] | {"whole": time.perf_counter() - began}
        if merged.missing:
            explain["missing_groups"] = list(merged.missing)
        return Results(ids, rows, scores, bool(merged.missing), explain)

    async def metadata(self, rows: I64) -> list[list[dict[str, Any] | None]]:
        """Metadata of (q, w) rows, ids left out; None where there is no row."""
        distinct, back = np.unique(rows[rows != NO_ROW], return_inverse=True)
        if not len(distinct):
            return [[None] * rows.shape[1] for _ in rows]
        table: pa.Table = await asyncio.to_thread(self.collection.metadata, distinct)
        known = table.drop_columns([name for name in ("id",) if name in table.column_names]).to_pylist()
        found: npt.NDArray[np.object_] = np.full(rows.shape, None, object)
        found[rows != NO_ROW] = [known[i] for i in back]
        out: list[list[dict[str, Any] | None]] = found.tolist()
        return out

    async def missing(self) -> list[int]:
        """Groups that are not ready."""
        states = await asyncio.gather(*(self._ready(backend) for backend in self._backends))
        return [number for number, state in enumerate(states) if not state]

    def about(self) -> dict[str, Any]:
        """What `GET /v1/collections/{c}` tells."""
        indexes = {
            kind: {
                "build": build.build, "shards": len(build.shards), "bytes": build.bytes,
                "settings": build.tuned.given(),
                "recall_at_10": next((t["recall"] for t in build.trials if t.get("chosen")), None),
            }
            for kind, build in self.builds.items()
        }  # fmt: skip
        schema = self.collection.table(0, 0).schema
        return {
            "name": self.name, "count": self.collection.count, "dim": self.collection.dim,
            "metric": self.collection.metric, "tiers": list(available(self.builds)), "tier": self.tier or "auto",
            "groups": len(self._backends), "fingerprint": self.collection.fingerprint, "version": self.version,
            "indexes": indexes,
            "columns": {field.name: str(field.type) for field in schema},
        }  # fmt: skip

    async def _ready(self, backend: Backend) -> bool:
        try:
            return await asyncio.wait_for(backend.ready(), self._timeout)
        except Exception:
            return False

    async def _fan_out(self, query: Query, vectors: F32) -> Merged:
        calls = [asyncio.wait_for(backend.search(query, vectors), self._timeout) for backend in self._backends]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        # Only answers about the rows that this service knows: a group may be ahead while a version is swapped.
        now = self.collection.fingerprint
        answers = [reply for reply in replies if isinstance(reply, Answer) and reply.fingerprint == now]
        missing = tuple(number for number, reply in enumerate(replies) if not any(reply is a for a in answers))
        for number in missing:
            _log.warning("shard group %d of %s did not answer: %r", number, self.name, replies[number])
        if not answers:
            reasons = {type(reply).__name__ for reply in replies}
            raise Unavailable(f"no shard of {self.name!r} answered ({', '.join(sorted(reasons))})")
        scores, rows = answers[0].scores, answers[0].rows
        if len(answers) > 1:
            scores, rows = merge([(a.scores, a.rows) for a in answers], query.k, self.collection.metric)
        explain = {
            "groups": len(self._backends), "batched": len(vectors),
            "lists_probed": sum(a.lists_probed for a in answers), "rows_scanned": sum(a.rows_scanned for a in answers),
            "bytes_read": sum(a.bytes_read for a in answers),
            "seconds": {name: max(a.seconds.get(name, 0.0) for a in answers) for name in answers[0].seconds},
        }  # fmt: skip
        return Merged(scores, rows, missing, explain)
