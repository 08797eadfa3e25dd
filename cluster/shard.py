"""One shard in memory: an index over a contiguous range of rows; k rows come back whenever k match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.device import Device, runs_on_gpu, say_once
from cluster.exact import BATCH_ROWS, ExactScan, pair_scores
from cluster.index_kind import Effort, IndexKind, Overrides, bitmap, overlaid
from cluster.index_store import Build, indexes_of, load_shard
from cluster.ivfpq import IvfPq
from cluster.results import NO_ROW, merge
from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

FEW_ROWS = 4096  # so many rows are compared one by one faster than an index finds them under a filter
FEW_SHARE = 0.02


@dataclass(frozen=True)
class Shard:
    """Rows start … stop - 1 of a collection under one index.

    Not safe for two searches at once (FAISS's counters are shared); whoever serves it lets one run at a time.
    """

    collection: CollectionArchive
    build: Build
    index: Any
    start: int
    stop: int

    @classmethod
    def load(cls, collection: CollectionArchive, build: Build, number: int, device: Device = "cpu") -> Shard:
        """Read shard `number` of a build, checked; an `ivfpq` one is searched on `device`, others on the CPU.

        Raises `HilbertflowError` for `cuda` where no GPU can take it; `auto` says so and stays on the CPU.
        """
        index = _opened(build.kind, load_shard(indexes_of(collection), build, number), device, collection.url)
        return cls(collection, build, index, build.shards[number].start, build.shards[number].stop)

    def search(
        self, queries: F32, k: int, overrides: Overrides, matches: I64 | None = None, own: I64 | None = None
    ) -> tuple[F32, I64, Effort]:
        """Best rows of prepared queries (q, d): scores and global row numbers (q, w), w = min(k, rows that may be
        answered).

        `matches` holds the global numbers, ascending, of the rows that a filter lets through; None lets all through.
        `own` holds the global number of each query's own row, where queries are rows (see `IndexKind.search`).

        Where the index reaches fewer than w rows, those queries look further: rows of a shard lie near one another, so
        it may hold none of a query's nearest lists, and reads the next ones (`IndexKind.wider`). Where that does not
        help (a filter, a graph in pieces) they are answered by comparing every row that matches.
        """
        count = self.stop - self.start
        local = (
            None
            if matches is None
            else matches[np.searchsorted(matches, self.start) : np.searchsorted(matches, self.stop)] - self.start
        )
        eligible = count if local is None else len(local)
        width = min(k, eligible)
        if width == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), Effort()
        if local is not None and eligible <= max(FEW_ROWS, k, int(count * FEW_SHARE)):
            scores, rows = self._compare(queries, width, local)
            return scores, rows + self.start, Effort(0, len(queries) * eligible)
        usual = overlaid(self.build.kind.defaults(self.index), self.build.tuned)
        effective = overlaid(self.build.kind.for_rows(usual, k, self.build.count), overrides)
        if own is not None:
            own = np.where((own >= self.start) & (own < self.stop), own - self.start, NO_ROW)
        scores, rows, effort = self._indexed(queries, width, effective, local, own)
        short = np.flatnonzero(rows[:, -1] == NO_ROW)  # where there are fewer, the last are missing
        while len(short) and (wider := self.build.kind.wider(effective)) is not None:
            effective, some = wider, None if own is None else own[short]
            scores[short], rows[short], more = self._indexed(queries[short], width, effective, local, some)
            effort = Effort(effort.lists_probed + more.lists_probed, effort.rows_scanned + more.rows_scanned)
            short = short[rows[short, -1] == NO_ROW]
        if len(short):
            scores[short], rows[short] = self._compare(queries[short], width, local)
            effort = Effort(effort.lists_probed, effort.rows_scanned + len(short) * eligible)
        return scores, rows + self.start, effort

    def _indexed(
        self, queries: F32, k: int, overrides: Overrides, local: I64 | None, own: I64 | None
    ) -> tuple[F32, I64, Effort]:
        kind, allowed = self.build.kind, None if local is None else bitmap(local, self.stop - self.start)
        if not (isinstance(kind, IvfPq) and kind.refine == "archive"):
            scores, rows, effort = kind.search(self.index, queries, k, overrides, allowed, own)
            return *((scores, rows) if kind.ordered else merge([(scores, rows)], k, self.build.metric)), effort
        wide = kind.candidates(k, overrides, self.index.ntotal)
        _, rows, effort = kind.search(self.index, queries, wide, overrides, allowed, own)
        query, column = np.nonzero(rows != NO_ROW)
        wanted, place = np.unique(rows[query, column], return_inverse=True)
        vectors = self._vectors(wanted)
        scores = np.full(rows.shape, np.nan, np.float32)
        scores[query, column] = pair_scores(queries[query], vectors[place], self.build.metric)
        return *merge([(scores, rows)], k, self.build.metric), effort

    def _compare(self, queries: F32, k: int, local: I64 | None) -> tuple[F32, I64]:
        """Every row of `local` (None: of the shard) against every query."""
        rows = np.arange(self.stop - self.start) if local is None else local
        scan = ExactScan(queries, k, self.build.metric)
        for at in range(0, len(rows), BATCH_ROWS):
            scan.feed(self._vectors(rows[at : at + BATCH_ROWS]), rows[at : at + BATCH_ROWS])
        return scan.best()

    def _vectors(self, local: I64) -> F32:
        stored = self.build.kind.stored(self.index, local)
        return prepared(self.collection.take(local + self.start), self.build.metric) if stored is None else stored


def _opened(kind: IndexKind, index: Any, device: Device, url: str) -> Any:
    if not isinstance(kind, IvfPq) or not runs_on_gpu(device, "device"):
        return kind.opened(index)
    try:
        if kind.for_gpu() != kind:
            raise HilbertflowError(
                "its ivfpq index has codes for the CPU", where=url, remedy="build it with index.device: cuda"
            )
        return kind.opened(index, gpu=True)
    except HilbertflowError as error:
        if device == "cuda":
            raise
        say_once(f"device: auto keeps an index on the CPU: {error}")
        return kind.opened(index)
