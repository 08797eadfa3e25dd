"""Collections behind the endpoint: fan a query out to shard groups, merge, retry, and say when an answer is partial.

Nothing here knows Ray or HTTP: a backend is anything that answers for one shard group, in this process or in another.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.batcher import Batcher
from cluster.filters import parse_filter
from cluster.identity import Ids
from cluster.index_store import Build
from cluster.planner import Choice, available, choose
from cluster.query import Query, checked_vectors
from cluster.radius import within
from cluster.results import NO_ROW, Results, merge
from cluster.shard_set import Answer
from cluster.thumbnails import Thumbnails
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError
from storage.batch_log import Receipt
from storage.collection import CollectionArchive
from storage.rowlog import RowLog, View

KEPT_QUERIES = 64  # the last ones, one of each request, for the estimate of recall
ROUNDS = 4  # groups that answered about different versions of the rows are asked so often to agree

_log = logging.getLogger("hilbertflow.serve")


class Unavailable(RuntimeError):
    """No shard group answered; the request can be sent again."""


class Backend(Protocol):
    """Answers for one shard group."""

    async def search(self, query: Query, vectors: F32, version: int) -> Answer:
        """Best rows of the group at this version of the rows, or a later one; raises when it cannot, after retries."""

    async def ready(self) -> bool:
        """Whether its shards are loaded."""


@dataclass(frozen=True)
class Merged:
    """Answers of the groups as one: (q, w) ids, rows and scores, which groups are missing, what it took."""

    ids: npt.NDArray[np.object_]
    rows: I64
    scores: F32
    missing: tuple[int, ...]
    explain: dict[str, Any]


class CollectionService:
    """One served collection: an archive, the indexes over it, and the log of its changed rows.

    version: names archive and indexes; log: shared with backends in this process, so that they see the same rows.
    asked: some of the last queries, as `cluster.recall_watch` takes them. thumbnails: show rows made of pictures.
    """

    def __init__(
        self, name: str, collection: CollectionArchive, builds: dict[str, Build], backends: Sequence[Backend],
        tier: str | None = None, timeout: float = 60.0, version: str = "", log: RowLog | None = None,
        thumbnails: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.collection, self.builds, self.tier = name, collection, builds, tier
        self.version = version or collection.fingerprint[:12]
        self.log = log or RowLog(collection)
        self.thumbnails = Thumbnails.of(collection) if thumbnails else None
        self._view = View.of(collection)
        self._schema = collection.table(0, 0).schema
        self._backends, self._timeout, self._ids = tuple(backends), timeout, Ids(collection)
        self._planned: Callable[[Query], tuple[Query, Choice]] = lru_cache(maxsize=1024)(self._plan)
        self._batcher: Batcher[tuple[Query, int], F32, Merged] = Batcher(self._fan_out)
        self.asked: deque[tuple[F32, Query]] = deque(maxlen=KEPT_QUERIES)

    @property
    def view(self) -> View:
        """The rows that are answered: as last seen, of this archive."""
        newest = self.log.view
        if newest is not self._view and newest.base.url == self.collection.url:
            self._view = newest
        return self._view

    @property
    def stale(self) -> bool:
        """Whether a compaction made another archive, which has to be opened in place of this one."""
        return self.log.view.base.url != self.collection.url

    async def follow(self) -> None:
        """See what other processes changed since."""
        await asyncio.to_thread(self.log.refresh)

    async def change(
        self, op: Literal["upsert", "append", "delete"], ids: Any, vectors: Any, metadata: Any, key: str | None
    ) -> Receipt:
        """Put rows in or delete them; on storage when this returns, and seen by the next search."""
        if op == "delete":
            return await asyncio.to_thread(self.log.delete, ids, key)
        return await asyncio.to_thread(getattr(self.log, op), ids, vectors, metadata, key)

    def checked(self, vectors: Any, query: Query) -> tuple[F32, Query, Choice]:
        """Everything that can be wrong with a query, found before any shard is asked: raises `HilbertflowError`."""
        query, choice = self._planned(query)
        return checked_vectors(vectors, self.collection.dim, self.collection.metric), query, choice

    def _plan(self, query: Query) -> tuple[Query, Choice]:
        """The query with its tier; clients ask in the same way again and again."""
        if query.tier is None and self.tier is not None and not query.overrides.given():
            query = dataclasses.replace(query, tier=self.tier)
        choice = choose(query, self.builds, self.collection, f"collection {self.name!r}")
        if query.filter is not None:
            parse_filter(query.filter, self._schema)
        return dataclasses.replace(query, tier=choice.tier), choice

    async def search(self, vectors: Any, query: Query, version: int = 0, remembered: bool = True) -> Results:
        """Answer (q, dim) query vectors at `version` of the rows or a later one.

        `partial` when a group did not answer; `Unavailable` when none did. remembered: in `asked`.
        """
        began = time.perf_counter()
        checked, query, choice = self.checked(vectors, query)
        if version > self.view.version:
            await self.follow()
            if version > self.view.version:
                raise HilbertflowError(
                    f"there is no version {version} yet", where="version", remedy=f"the newest is {self.view.version}"
                )  # fmt: skip
        if remembered and choice.tier != "exact" and query.filter is None and query.radius is None:
            self.asked.append((checked[0], query))
        merged, place = await self._batcher.submit((query, self.view.version), checked)
        explain = {"tier": choice.tier, "reason": choice.reason, **merged.explain}
        explain["seconds"] = merged.explain["seconds"] | {"whole": time.perf_counter() - began}
        if merged.missing:
            explain["missing_groups"] = list(merged.missing)
        return Results(merged.ids[place], merged.rows[place], merged.scores[place], bool(merged.missing), explain)

    async def metadata(self, rows: I64) -> list[list[dict[str, Any] | None]]:
        """Metadata of (q, w) rows, ids left out; None where there is no row."""
        distinct, back = np.unique(rows[rows != NO_ROW], return_inverse=True)
        if not len(distinct):
            return [[None] * rows.shape[1] for _ in rows]
        if len(self._schema) == 1:  # only ids
            return [[None if row == NO_ROW else {} for row in some] for some in rows.tolist()]
        known = await asyncio.to_thread(self._described, distinct)
        found: npt.NDArray[np.object_] = np.full(rows.shape, None, object)
        found[rows != NO_ROW] = [known[i] for i in back]
        out: list[list[dict[str, Any] | None]] = found.tolist()
        return out

    def _described(self, rows: I64) -> list[dict[str, Any]]:
        """Metadata of rows, some at a time: making Python objects of them keeps others from their turn."""
        table: pa.Table = self.view.table(rows)
        table = table.drop_columns([name for name in ("id",) if name in table.column_names])
        return [row for at in range(0, len(rows), 1024) for row in table.slice(at, 1024).to_pylist()]

    @property
    def groups(self) -> int:
        """How many shard groups a query is sent to."""
        return len(self._backends)

    async def missing(self) -> list[int]:
        """Groups that are not ready."""
        states = await asyncio.gather(*map(self.ready, range(self.groups)))
        return [number for number, state in enumerate(states) if not state]

    async def ready(self, group: int) -> bool:
        """Whether the shards of a group are loaded."""
        try:
            return await asyncio.wait_for(self._backends[group].ready(), self._timeout)
        except Exception as error:  # whatever keeps it from saying so: it is not ready
            _log.debug("shard group %d of %s is not ready: %s: %s", group, self.name, type(error).__name__, error)
            return False

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
        view = self.view
        return {
            "name": self.name, "count": view.count, "dim": self.collection.dim,
            "metric": self.collection.metric, "tiers": list(available(self.builds, self.collection)),
            "tier": self.tier or "auto",
            "groups": len(self._backends), "fingerprint": self.collection.fingerprint, "version": self.version,
            "rows_version": view.version, "indexes": indexes,
            "columns": {field.name: str(field.type) for field in self._schema},
        }  # fmt: skip

    async def _fan_out(self, key: tuple[Query, int], vectors: F32) -> Merged:
        query, version = key
        replies: list[Answer | BaseException] = []
        for _ in range(ROUNDS):
            view = self.view
            version = max(version, view.version)
            calls = [self._ask(backend, query, vectors, version) for backend in self._backends]
            replies = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
            ahead = max((reply.version for reply in replies if isinstance(reply, Answer)), default=version)
            if ahead == version == view.version:
                break
            await self.follow()  # another process wrote rows meanwhile: all are asked again, about those as well
            version = ahead
        now = self.collection.fingerprint
        # Only answers about the rows that this service knows: a group may be ahead while a version is swapped.
        answers = [
            reply for reply in replies
            if isinstance(reply, Answer) and reply.fingerprint == now and reply.version == view.version
        ]  # fmt: skip
        missing = tuple(number for number, reply in enumerate(replies) if not any(reply is a for a in answers))
        for number in missing:
            _log.warning("shard group %d of %s did not answer: %s", number, self.name, type(replies[number]).__name__)
        if not answers:
            reasons = {type(reply).__name__ for reply in replies}
            raise Unavailable(f"no shard of {self.name!r} answered ({', '.join(sorted(reasons))})")
        whole = _together(answers, query.k, self.collection.metric)
        scores, rows = whole.scores, whole.rows
        if query.radius is not None:
            scores, rows = within(scores, rows, query.radius, self.collection.metric)
        large = rows.size > 100_000
        ids = await asyncio.to_thread(self._ids.of, rows, view) if large else self._ids.of(rows, view)
        explain = {
            "groups": len(self._backends), "batched": len(vectors), "version": view.version,
            "log_rows": whole.log_rows, "lists_probed": whole.lists_probed, "rows_scanned": whole.rows_scanned,
            "bytes_read": whole.bytes_read, "requests": whole.requests, "cache_hits": whole.cache_hits,
            "rounds": whole.rounds, "level": whole.level, "seconds": whole.seconds,
        }  # fmt: skip
        return Merged(ids, rows, scores, missing, explain)

    async def _ask(self, backend: Backend, query: Query, vectors: F32, version: int) -> Answer | BaseException:
        try:
            async with asyncio.timeout(self._timeout):
                return await backend.search(query, vectors, version)
        except Exception as error:
            return error


def _together(answers: Sequence[Answer], k: int, metric: str) -> Answer:
    """Answers of groups about the same version as one: the best of all, their work added up, the longest times."""
    first = answers[0]
    if len(answers) == 1:
        return first
    scores, rows = merge([(a.scores, a.rows) for a in answers], k, metric)
    return dataclasses.replace(
        first, scores=scores, rows=rows, lists_probed=sum(a.lists_probed for a in answers),
        rows_scanned=sum(a.rows_scanned for a in answers), bytes_read=sum(a.bytes_read for a in answers),
        seconds={name: max(a.seconds.get(name, 0.0) for a in answers) for name in first.seconds},
        log_rows=sum(a.log_rows for a in answers), requests=sum(a.requests for a in answers),
        rounds=max(a.rounds for a in answers), cache_hits=sum(a.cache_hits for a in answers),
    )  # fmt: skip
