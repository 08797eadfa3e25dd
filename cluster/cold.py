"""Search a collection where it lies: nothing is built, and a query reads a few byte ranges of its archive.

Opening reads the code of the rows, the centroids of the lists and the sizes of the chunks. A query then takes one round
of requests a step, and each step reads more of fewer rows:

1. the base level of the lists whose centroids are nearest;
2. the next level of the chunks that hold the best rows by it;
3. the finest lossy level of the best of those, or all the rest of their bytes where exact scores are wanted.

Rows are scored in the transform's domain (:mod:`operators.rowscan`). That lists are pruned by the query, and what a
list's second copy of its rows buys, is after SPANN (Chen et al., 2021) and SOAR (Sun et al., 2023).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import google_crc32c
import numpy as np

from cluster import probing
from cluster.chunk_cache import CACHE_BYTES
from cluster.cold_plan import Effort, plan, together, usual_nprobe
from cluster.cold_reads import GAP, ColdReads
from cluster.exact import pair_scores
from cluster.held_rows import Held
from cluster.index_kind import Overrides
from cluster.probing import Probe, lists_for
from cluster.results import NO_ROW, similarity
from cluster.vectors import F32, I64, prepared
from operators import rowtrellis
from operators.errors import HilbertflowError
from operators.rowscan import Index, RowScan, Turned
from storage.chunks import spans
from storage.collection import CollectionArchive

GROUP = 16
"""Queries that share what they fetch; more would hold more rows in memory than they save in requests."""
KEPT = 2  # candidates of the last step, as a multiple of k
HELD_IDS = 4 << 20


class Cold:
    """One open collection. Not safe for two searches at once: the bytes of both would be counted together.

    cache: bytes of what it reads that may be kept for later searches.
    """

    def __init__(self, collection: CollectionArchive, tuned: Overrides | None = None, cache: int = CACHE_BYTES) -> None:
        self.collection, self.tuned = collection, tuned or Overrides()
        self._reads, self._searched = ColdReads(collection, cache), False
        self._frames: dict[int, bytes] = {}

    def open(self) -> None:
        """Read what every search needs: done by the first one otherwise."""
        _ = self._lists, self._all_ids

    def ids(self, rows: I64) -> list[str] | None:
        """Ids of rows that the last search found; None where an archive has none by chunk, or of other rows."""
        chunks = self.collection.chunks.chunk_of(rows)
        if any(chunk not in self._frames for chunk in chunks.tolist()):
            return None
        first = self.collection.chunks.first_row
        frames = {
            chunk: self.collection.chunk_ids(self._frames[chunk], int(first[chunk + 1] - first[chunk]))
            for chunk in set(chunks.tolist())
        }
        return [frames[chunk][row - first[chunk]] for chunk, row in zip(chunks.tolist(), rows.tolist(), strict=True)]

    @cached_property
    def _all_ids(self) -> bool:
        """Whether the ids of all rows are held: a few megabytes are read when opening, more come with each answer."""
        table = self.collection.chunks
        small = "ids" in table.sizes and int(table.sizes["ids"].sum(dtype=np.int64)) <= HELD_IDS
        if small:
            every = np.arange(table.chunks)
            frames = self.collection.fetch({"ids": every}, GAP)["ids"]
            self._frames = dict(zip(every.tolist(), frames, strict=True))
        return small

    @cached_property
    def _scan(self) -> RowScan:
        return RowScan(self.collection.code, self.collection.metric)

    @cached_property
    def _lists(self) -> tuple[F32, F32]:
        """(K,) squared lengths of the centroids, and the spread of the lists."""
        table = self.collection.chunks
        held = np.bincount(table.list_of, table.residual.astype(np.float64), len(table.borders) - 1)
        each = held / np.maximum(np.diff(table.borders), 1) / self.collection.dim
        return self._scan.squares(self._scan.centroids), np.sqrt(each).astype(np.float32)

    def settings(self, asked: Overrides, k: int) -> Overrides:
        """What a search goes by: what was asked, over what was tuned, over what suits most collections.

        Lists are tuned, and usual, for the best 10 rows: more are read for more.
        """
        code, lists = self.collection.code, len(self.collection.borders) - 1
        # On a grid the exact level is a few bits a value, and levels above it may be too thin to answer from.
        finest = code.depth - 1 if code.low is None else code.depth
        usual = Overrides(**({"nprobe": usual_nprobe(lists), "refine": 8, "level": finest} | self.tuned.given()))
        wide = lists_for(usual.nprobe or 1, k, lists, self.collection.count)
        chosen = Overrides(**(usual.given() | {"nprobe": wide} | asked.given()))
        if chosen.level is not None and chosen.level > code.depth:
            raise HilbertflowError(
                f"there is no level {chosen.level}", where="search",
                remedy=f"levels are 0 to {code.depth - 1}, and {code.depth} or exact for exact scores",
            )  # fmt: skip
        return chosen

    def search(
        self, queries: F32, k: int, asked: Overrides, matches: I64 | None = None, span: tuple[int, int] | None = None
    ) -> tuple[F32, I64, Effort]:
        """Best rows of prepared queries (q, d): scores and row numbers (q, w), w = min(k, rows that may be answered).

        matches: numbers, ascending, of the rows that may be answered; None for all. span: the part of the rows that
        this process answers for, by default all; lists are divided by their first row.
        """
        settings, table = self.settings(asked, k), self.collection.chunks
        frames: dict[int, bytes] = {}
        counts = probing.eligible(table.borders, matches)
        if span is not None:
            counts[(table.borders[:-1] < span[0]) | (table.borders[:-1] >= span[1])] = 0
        width = min(k, int(counts.sum()))
        scores, rows = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        efforts = []
        for at in range(0, len(queries) if width else 0, GROUP):
            part = slice(at, at + GROUP)
            scores[part], rows[part], effort = self._group(queries[part], width, settings, counts, matches, frames)
            efforts.append(effort)
        if not self._all_ids:
            self._frames = frames
        self._searched = True
        return scores, rows, together(efforts)

    def _group(
        self, queries: F32, k: int, settings: Overrides, counts: I64, matches: I64 | None, frames: dict[int, bytes]
    ) -> tuple[F32, I64, Effort]:
        nprobe, refine, level = settings.nprobe or 1, settings.refine or 1, settings.level or 0
        code, before, turned = self.collection.code, self._traffic(), self._scan.turn(queries)
        squares, spread = self._lists
        products = np.ascontiguousarray(self._scan.products(self._scan.centroids, turned).T)
        near = probing.nearness(products, squares, spread, self._scan.metric)
        probe = Probe.of(nprobe, counts, self.collection.count, KEPT * k)
        probed = [probe.lists(of_query, counts) for of_query in near]
        mine = [self._chunks_of(lists, matches) for lists in probed]
        steps = plan(level, code.depth)
        held, rounds, kept = self._begun(_union(mine)), 0, self._reads.hits
        for number, names in enumerate(steps):
            union = _union(mine)
            wanted = {name: union for name in names if code.width(name)}
            last = number == len(steps) - 1
            if last and not self._all_ids and "ids" in self.collection.chunks.sizes:
                wanted["ids"] = union
            asked = self._traffic()[0]
            levels, others = self._read(wanted)
            rounds += self._traffic()[0] > asked
            if "ids" in others:
                frames.update(zip(union.tolist(), others.pop("ids"), strict=True))
            held = self._deepened(held, union, levels, others)
            found = self._scores(held, queries, turned, products)
            if last:
                requests, read = np.subtract(self._traffic(), before).tolist()
                rows = sum(int(counts[lists].sum()) for lists in probed)
                effort = Effort(sum(map(len, probed)), rows, rounds, requests, read, self._reads.hits - kept,
                                "exact" if level >= code.depth else f"level{level}")  # fmt: skip
                return *self._best(held, found, turned, mine, matches, k), effort
            # Where a filter has many more lists read, their rows lie closer together as seen from the query.
            keeps = [
                math.ceil(k * (refine * math.sqrt(max(1, len(lists) / nprobe)) if number == 0 else KEPT))
                for lists in probed
            ]
            mine = [self._narrowed(held, found[:, q], mine[q], matches, keep) for q, keep in enumerate(keeps)]
        raise AssertionError("a plan has a last step")

    def _read(self, wanted: Mapping[str, I64]) -> tuple[dict[str, Index], dict[str, list[bytes]]]:
        return self._reads.read(wanted, ahead=self._searched)  # many processes ask once

    def _chunks_of(self, lists: I64, matches: I64 | None) -> I64:
        """Chunks of lists that hold any row which may be answered."""
        table = self.collection.chunks
        chunks = spans(table.first_chunk[lists], table.first_chunk[lists + 1])
        if matches is None:
            return chunks
        low, high = (np.searchsorted(matches, table.first_row[chunks + end]) for end in (0, 1))
        return chunks[high > low]

    def _begun(self, chunks: I64) -> Held:
        """The rows of these chunks, known as far as their lists' centroids."""
        table = self.collection.chunks
        starts, stops = table.first_row[chunks], table.first_row[chunks + 1]
        return Held(spans(starts, stops), np.repeat(chunks, stops - starts), {})

    def _deepened(
        self, held: Held, chunks: I64, levels: Mapping[str, Index], others: Mapping[str, Sequence[bytes]]
    ) -> Held:
        """These chunks with the arrays that were read added."""
        held, table = held.of(chunks), self.collection.chunks
        if held.arrays and held.total is None:
            held = dataclasses.replace(held, total=self._total(held, np.arange(len(held.rows))))
        elif not held.arrays:
            held.arrays["level0"] = np.zeros((len(held.rows), 0), np.int8)  # where level 0 codes nothing
        for name, index in levels.items():
            held.arrays[name] = index
            if held.total is not None:
                self._scan.add(held.total, int(name[5:]), index)
        heights = (table.first_row[chunks + 1] - table.first_row[chunks]).tolist()
        for name, parts in others.items():
            each = zip(parts, heights, strict=True)
            held.arrays[name] = np.concatenate([self.collection.symbols(name, part, rows) for part, rows in each])
        return held

    def _total(self, held: Held, index: I64) -> F32:
        """Coefficients (m, r) of some of the rows, of which level 0 is known."""
        total = self._scan.centroids[self.collection.chunks.list_of[held.chunk[index]]]
        self._scan.add(total, 0, held.arrays["level0"][index])
        return total

    def _scores(self, held: Held, queries: F32, turned: Turned, products: F32) -> F32:
        """(n, q), more is nearer: exact where the rows are. products: (q, K) of queries and the centroids of lists."""
        if held.total is None and "exact" not in held.arrays:
            index, lists = held.arrays["level0"], self.collection.chunks.list_of[held.chunk]
            return self._scan.first(index, lists, products, self._lists[0], turned)
        if "exact" not in held.arrays:
            assert held.total is not None
            return self._scan.scores(held.total, turned)
        vectors = prepared(self._vectors(held), self.collection.metric)
        which, row = np.divmod(np.arange(len(queries) * len(vectors)), len(vectors))
        scores = pair_scores(queries[which], vectors[row], self.collection.metric)
        return scores.reshape(len(queries), -1).T * (1 if similarity(self.collection.metric) else -1)

    def _vectors(self, held: Held) -> F32:
        """Rows as they were archived, checked."""
        collection, table = self.collection, self.collection.chunks
        chunks, starts = np.unique(held.chunk, return_index=True)
        none = {name: np.zeros((len(held.rows), 0), np.int8) for name in collection.code.names}
        levels = {
            name: rowtrellis.symbols(array) if name.startswith("level") else array
            for name, array in (none | held.arrays).items()
        }
        lists = table.list_of[held.chunk] if len(collection.code.centroids) else None
        vectors = collection.code.decode(levels, lists, starts)
        for chunk, part in zip(chunks, np.split(vectors, starts[1:]), strict=True):
            if google_crc32c.value(part.tobytes()) != table.crc[chunk]:
                raise HilbertflowError(
                    f"rows {table.first_row[chunk]} and on do not decode to their source's bytes", where=collection.url,
                    remedy="`hilbertflow verify` names damaged objects",
                )  # fmt: skip
        return vectors

    def _narrowed(self, held: Held, scores: F32, chunks: I64, matches: I64 | None, keep: int) -> I64:
        """Chunks that hold the best `keep` rows."""
        index = held.members(chunks, matches)
        if len(index) > keep:
            near = scores[index]
            index = index[np.argpartition(near, len(near) - keep)[len(near) - keep :]]
        return np.unique(held.chunk[index])

    def _best(
        self, held: Held, found: F32, turned: Turned, mine: Sequence[I64], matches: I64 | None, k: int
    ) -> tuple[F32, I64]:
        scores = np.zeros((len(mine), k), np.float32)
        rows = np.full((len(mine), k), NO_ROW, np.int64)
        sign = 1 if similarity(self.collection.metric) else -1
        for q, chunks in enumerate(mine):
            index = held.members(chunks, matches)
            near = found[index, q]
            if "exact" not in held.arrays:  # the best few once more, by their precise lengths
                index = index[np.argsort(-near, kind="stable")[: KEPT * k]]
                total = self._total(held, index) if held.total is None else held.total[index]
                near = self._scan.scores(total, turned.take(slice(q, q + 1)), precise=True)[:, 0]
            order = np.lexsort((held.rows[index], -near))[:k]
            rows[q, : len(order)], scores[q, : len(order)] = held.rows[index[order]], sign * near[order]
        return scores, rows

    def _traffic(self) -> tuple[int, int]:
        traffic = self.collection.place.traffic
        return traffic.requests, traffic.bytes_read


def _union(parts: Sequence[I64]) -> I64:
    """All chunks of some queries, each ascending."""
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))
