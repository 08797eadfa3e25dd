"""A graph of neighbours in memory: what `cluster.walk` searches, unpacked from FAISS's structures.

The file is FAISS's own: `IndexRefine(IndexPreTransform(LinearTransform, IndexHNSWSQ), store)`. In memory only the
ground level is kept, nodes are numbered in breadth-first order so that neighbours lie near each other, and codes begin
on cache lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster import walk
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError
from operators.threads import thread_pool

ENTRIES = 16
SCAN_WIDTH = 5  # a walk that keeps so many times the root of the rows costs more than comparing all of them
QUERIES_A_THREAD = 8


@dataclass(frozen=True)
class Graph:
    """n nodes, h of d dimensions walked; arrays as `cluster.walk.search` describes them.

    turn: FAISS's transform of queries (q, d) to their heads (q, h); middle: (h,) float32, what is taken off a head.
    """

    product: bool
    turn: Any
    middle: F32
    head_step: F32
    links: npt.NDArray[np.int32]
    codes: npt.NDArray[np.uint8]
    bias: F32
    entries: npt.NDArray[np.int32]
    order: npt.NDArray[np.int32]
    stored: npt.NDArray[Any]
    low: F32
    step: F32

    @classmethod
    def of(cls, index: Any) -> Self:
        """Unpack a FAISS index of this structure, checked by `cluster.artefact.check_shard`."""
        try:
            base = faiss.downcast_index(index.base_index)
            turn = faiss.downcast_VectorTransform(base.chain.at(0))
            small = faiss.downcast_index(base.index)
            return cls._unpacked(index, turn, small, faiss.downcast_index(small.storage))
        except (AttributeError, ValueError, IndexError) as error:
            raise HilbertflowError(
                f"is no graph of neighbours ({type(error).__name__})", remedy="build the index again"
            ) from None

    @classmethod
    def _unpacked(cls, index: Any, turn: Any, small: Any, storage: Any) -> Self:
        n, d, h = index.ntotal, index.d, small.d
        product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        kept = faiss.LinearTransform(d, h, False)  # the other one is freed with the index
        faiss.copy_array_to_vector(faiss.vector_to_array(turn.A), kept.A)
        kept.is_trained = True
        ground = int(small.hnsw.cum_nneighbor_per_level.at(1))
        offsets = faiss.vector_to_array(small.hnsw.offsets).astype(np.int64)[:n]
        edges = faiss.rev_swig_ptr(small.hnsw.neighbors.data(), small.hnsw.neighbors.size())
        links = edges[offsets[:, None] + np.arange(ground)]
        levels = faiss.vector_to_array(small.hnsw.levels)
        entries = np.argsort(-levels, kind="stable")[: min(ENTRIES, ground)]
        order = walk.breadth_first(links, entries[0]) if n else np.empty(0, np.int32)
        place = _inverse(order)
        links = np.where(links[order] >= 0, place[links[order]], np.int32(-1))
        head_low, head_step = steps(storage)
        codes = _aligned(_codes(storage, n, h)[order])
        stored, low, step = _numbers(faiss.downcast_index(index.refine_index), n, d)
        stored = _aligned(stored[order])
        centre = np.zeros(d, np.float32) if product else walk.mean(stored, low, step)
        middle = kept.apply(centre[None])[0]
        bias = np.zeros(n, np.float32)
        if not product:
            bias = walk.tails(centre, middle, codes, head_low, head_step, stored, low, step)
        return cls(
            product, kept, middle, head_step, _aligned(links), codes, bias, place[entries], order, stored, low, step
        )

    @property
    def ntotal(self) -> int:
        """Nodes, which are the shard's rows."""
        return len(self.order)

    @property
    def bytes(self) -> int:
        """Resident bytes of all arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def search(
        self, queries: F32, k: int, width: int, again: int, allowed: npt.NDArray[np.uint8] | None, threads: int,
        own: I64 | None = None,
    ) -> tuple[F32, I64, int]:  # fmt: skip
        """Best k rows of each query: scores and rows (q, k), -1 where fewer were met; and nodes compared.

        width: nodes kept on the way, of those that may be answered; again: those of them compared by the stored
        vectors; allowed: bitmap of the rows that may be answered; threads: that share the batch; own: (q,) a row that
        each walk passes by as if it were not there, -1 for none.
        """
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        bitmap = np.empty(0, np.uint8) if allowed is None else allowed
        eligible = self.ntotal if allowed is None else int(np.bitwise_count(allowed).sum())
        widest = int(SCAN_WIDTH * math.sqrt(eligible))
        width = min(width, max(self.ntotal, 1))
        first = math.ceil(width * math.sqrt(self.ntotal / max(eligible, 1)))
        absent = np.empty(0, np.int32) if own is None else np.where(own >= 0, self._place[own], np.int32(-1))
        graph = (
            self.middle, self.head_step, self.links, self.codes, self.bias, self.entries, self.order, self.stored,
            self.low, self.step, self.product, width, first, widest, again, bitmap,
        )  # fmt: skip

        def part(low: int, high: int) -> int:
            batch = queries[low:high]
            return int(
                walk.search(batch, self.turn.apply(batch), *graph, absent[low:high], scores[low:high], rows[low:high])
            )

        parts = max(1, min(threads, len(queries) // QUERIES_A_THREAD))
        borders = [len(queries) * i // parts for i in range(parts + 1)]
        if parts == 1:
            return scores, rows, part(0, len(queries))
        return scores, rows, sum(thread_pool("walk", 32, _alone).map(part, borders[:-1], borders[1:]))

    def vectors(self, rows: I64) -> F32:
        """Stored vectors (n, d) of these rows."""
        numbers = self.stored[self._place[rows]]
        if numbers.dtype == np.uint16:
            return numbers.view(np.float16).astype(np.float32)
        values: F32 = self.low + self.step * numbers.astype(np.float32)
        return values

    @cached_property
    def _place(self) -> npt.NDArray[np.int32]:
        return _inverse(self.order)


def steps(quantizer: Any) -> tuple[F32, F32]:
    """Smallest decoded value and step of each dimension of FAISS's 8-bit scalar quantizer."""
    trained = faiss.vector_to_array(quantizer.sq.trained)
    low, span = trained.reshape(2, quantizer.d)
    return low + span / 510, span / 255


def eight_bits(quantizer: Any, sample: F32) -> None:
    """Train FAISS's 8-bit scalar quantizer so that its codes decode to the ends of each dimension's range.

    FAISS decodes to the middle of its cells; here the cells are placed so that the first and last middles are the
    range's ends, and small whole numbers come back as they are. Dimensions that vary little get a 64th of the widest.
    """
    quantizer.train(sample)
    low, high = sample.min(axis=0), sample.max(axis=0)
    span = np.maximum(high - low, max(float((high - low).max()) / 64, 1e-30))
    low = np.where(span > high - low, (low + high - span) / 2, low)
    faiss.copy_array_to_vector(np.concatenate([low - span / 510, span]).astype(np.float32), quantizer.sq.trained)


def _alone() -> None:
    """In a thread that walks, FAISS turns the thread's own queries only."""
    faiss.omp_set_num_threads(1)


def _inverse(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place


def _codes(index: Any, n: int, width: int) -> npt.NDArray[np.uint8]:
    codes: npt.NDArray[np.uint8] = faiss.vector_to_array(index.codes).reshape(n, width)
    return codes


def _numbers(index: Any, n: int, d: int) -> tuple[npt.NDArray[Any], F32, F32]:
    """The numbers that a store keeps, and how they become values."""
    plain = np.zeros(d, np.float32), np.ones(d, np.float32)
    if isinstance(index, faiss.IndexFlat):
        return _codes(index, n, 4 * d).view(np.float32), *plain
    if index.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        return _codes(index, n, 2 * d).view(np.uint16), *plain
    return _codes(index, n, d), *steps(index)


def _aligned(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins on a cache line."""
    room = np.empty(rows.nbytes + walk.LINE, np.uint8)
    start = -room.ctypes.data % walk.LINE
    copy = room[start : start + rows.nbytes].view(rows.dtype).reshape(rows.shape)
    copy[...] = rows
    return copy
