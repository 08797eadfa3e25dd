"""FAISS's inverted lists in memory, with what a filtered search asks of them: how many rows of each list match."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cluster.probing import Probe
from cluster.vectors import F32, I64

GROWTH = 1.5  # queries are searched together whose numbers of lists lie within this factor


@dataclass(frozen=True)
class Inverted:
    """One shard's index: `IndexIVFPQ(FastScan)`, with or without a rotation before it and a finer store behind it.

    on_gpu: a copy of it for those searches that a GPU takes.
    """

    index: Any
    on_gpu: Any = None

    @property
    def ntotal(self) -> int:
        """Rows that it holds."""
        return int(self.index.ntotal)

    def probes(self, queries: F32, nprobe: int, k: int, allowed: npt.NDArray[np.uint8]) -> I64:
        """Nearest lists that each query (q, d) must read to meet rows of the bitmap `allowed` as it does without one.

        See `cluster.probing`. The numbers are those of a geometric ladder, so that few of them differ.
        """
        rows = np.flatnonzero(np.unpackbits(allowed, count=self.ntotal, bitorder="little"))
        eligible = np.bincount(self._list_of[rows], minlength=self._ivf.nlist).astype(np.int64)
        probe, lists = Probe.of(nprobe, eligible, self.ntotal, k), np.int64(self._ivf.nlist)
        distances, ranked = self._ivf.quantizer.search(self._turned(queries), int(lists))
        needed = np.empty(len(queries), np.int64)
        sign = np.float32(-1 if self._ivf.metric_type == faiss.METRIC_L2 else 1)
        for q, (distance, order) in enumerate(zip(distances, ranked, strict=True)):
            near, place = np.empty(lists, np.float32), np.empty(lists, np.int64)
            near[order], place[order] = sign * distance, np.arange(lists)
            needed[q] = place[probe.lists(near, eligible)].max(initial=nprobe - 1) + 1
        if len(queries) > 1:
            needed = np.ceil(GROWTH ** np.ceil(np.log(needed) / np.log(GROWTH))).astype(np.int64)
        return np.minimum(needed, lists)

    def _turned(self, queries: F32) -> F32:
        base = faiss.downcast_index(getattr(self.index, "base_index", self.index))
        turned: F32 = base.chain.at(0).apply(queries) if isinstance(base, faiss.IndexPreTransform) else queries
        return turned

    @cached_property
    def _ivf(self) -> Any:
        return faiss.downcast_index(faiss.extract_index_ivf(self.index))

    @cached_property
    def _list_of(self) -> npt.NDArray[np.int32]:
        """List of every row."""
        of, lists = np.empty(self.ntotal, np.int32), self._ivf.invlists
        for number in range(self._ivf.nlist):
            if size := lists.list_size(number):
                of[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return of
