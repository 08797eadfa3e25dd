"""Inverted lists of product-quantized codes, scanned in registers, re-ranked by finer vectors.

Method: IVFADC (Jégou, Douze, Schmid, PAMI 2011) with 4-bit codes scanned by SIMD shuffles (André, Kermarrec, Le
Scouarnec, VLDB 2015), as FAISS's `IndexIVFPQFastScan`; candidates are scored again by float16 or 8-bit vectors kept
beside the codes, or by the archive's.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster.index_kind import FAISS_METRIC, Effort, IndexKind, Overrides, selector
from cluster.inverted import Inverted
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

CENTROID_ROWS = 64  # training rows a list: FAISS warns below 39 and gains little above 64
MIN_CANDIDATES = 64  # a short list of answers is re-ranked from at least so many candidates


@dataclass(frozen=True)
class IvfPq(IndexKind):
    """Options of the `ivfpq` index; None is chosen from the collection's size.

    Parameters
    ----------
    lists: inverted lists; default 1.5 * sqrt(rows), at least 39 rows a list.
    bits: bits of a code: 4 (fast scan, two dimensions a code) or 8 (where there are at most 16 dimensions).
    residual: code the difference from the list's centroid. Default: for ip and cosine, where it costs nothing to scan.
    rotation: rotate at random before coding; default only where the dimension is odd (the rotation then pads it).
    refine: what candidates are re-ranked by: fp16 (2 bytes a value), sq8 (1 byte), archive (read at the exact level),
    none.
    nprobe: lists a query reads; refine_factor: candidates re-ranked as a multiple of k.
    """

    kind: Literal["ivfpq"] = "ivfpq"
    lists: int | None = None
    bits: Literal[4, 8] | None = None
    residual: bool | None = None
    rotation: bool | None = None
    refine: Literal["fp16", "sq8", "archive", "none"] = "fp16"
    nprobe: int | None = None
    refine_factor: int | None = None

    settings: ClassVar[tuple[str, ...]] = ("nprobe", "refine")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lists", "nprobe", "refine_factor"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1 << 20:
                raise HilbertflowError(f"{name} is {value}", where="index ivfpq", remedy=f"give 1 to {1 << 20}")

    def resolved(self, count: int, dim: int, metric: str) -> Self:
        """Fill in what the recipe left open."""
        lists = self.lists or round(1.5 * math.sqrt(count))
        lists = max(1, min(lists, count // 39))
        return dataclasses.replace(
            self,
            lists=lists,
            bits=self.bits or (8 if dim <= 16 else 4),
            residual=metric != "l2" if self.residual is None else self.residual,
            rotation=dim % 2 == 1 if self.rotation is None else self.rotation or dim % 2 == 1,
            nprobe=min(self.nprobe or max(16, lists // 12), lists),
            refine_factor=self.refine_factor or 8,
        )

    def sample_rows(self, count: int) -> int:
        """Enough for the centroids, and at least 20,000 for the codebooks."""
        return min(count, max(20_000, CENTROID_ROWS * (self.lists or 1)))

    def trained(self, sample: F32, dim: int, metric: str) -> Any:
        """Centroids and codebooks by k-means with fixed seeds."""
        width = dim + dim % 2
        turn = f"RR{width}," if self.rotation else ""
        code = f"PQ{width // 2}x4fs{'r' if self.residual else ''}" if self.bits == 4 else f"PQ{width // 2}x8np"
        again = {"fp16": ",Refine(SQfp16)", "sq8": ",Refine(SQ8)"}.get(self.refine, "")
        index = faiss.index_factory(dim, f"{turn}IVF{self.lists},{code}{again}", FAISS_METRIC[metric])
        ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        if self.bits == 8:
            ivf.by_residual = bool(self.residual)
        ivf.cp.min_points_per_centroid = ivf.pq.cp.min_points_per_centroid = 1  # small collections are no mistake
        needed = max(1 << (self.bits or 4), self.lists or 1)
        if len(sample) < needed:  # k-means wants a point a centroid; repeating points changes no optimum
            sample = np.resize(sample, (needed, dim))
        index.train(sample)
        return index

    def opened(self, index: Any) -> Inverted:
        """FAISS's own structure."""
        return Inverted(index)

    def defaults(self, index: Any) -> Overrides:
        """From the recipe, or as resolved."""
        return Overrides(nprobe=self.nprobe, refine=None if self.refine == "none" else self.refine_factor)

    def search(
        self, index: Any, queries: F32, k: int, overrides: Overrides, allowed: npt.NDArray[np.uint8] | None,
        own: I64 | None = None,
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
        """Scan `nprobe` lists, more under a filter; for refine `archive` the k answers are candidates, ordered by their
        codes.
        """
        nprobe = min(overrides.nprobe or 1, self.lists or 1)
        if allowed is None:
            return self._searched(index, queries, k, overrides, nprobe, None)
        needed = index.probes(queries, nprobe, k, allowed)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        probed, scanned = 0, 0
        for number in np.unique(needed):
            some = np.flatnonzero(needed == number)
            scores[some], rows[some], effort = self._searched(index, queries[some], k, overrides, int(number), allowed)
            probed, scanned = probed + effort.lists_probed, scanned + effort.rows_scanned
        return scores, rows, Effort(probed, scanned)

    def _searched(
        self, index: Inverted, queries: F32, k: int, overrides: Overrides, nprobe: int,
        allowed: npt.NDArray[np.uint8] | None,
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
        chosen = selector(allowed)
        params = faiss.SearchParametersIVF(nprobe=nprobe, sel=chosen)
        if self.rotation:
            params = faiss.SearchParametersPreTransform(index_params=params)
        if self.refine in ("fp16", "sq8"):
            factor = self.candidates(k, overrides, index.ntotal) / k
            params = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=params)
        stats = faiss.cvar.indexIVF_stats
        stats.reset()
        scores, rows = index.index.search(queries, k, params=params)
        return scores, rows, Effort(nprobe * len(queries), int(stats.ndis))

    def candidates(self, k: int, overrides: Overrides, count: int) -> int:
        """How many are re-ranked to find the best k."""
        return max(k, min(count, max(k * (overrides.refine or 1), MIN_CANDIDATES)))

    def stored(self, index: Any, rows: I64) -> F32 | None:
        """From the refine store."""
        if self.refine not in ("fp16", "sq8"):
            return None
        vectors: F32 = faiss.downcast_index(index.index.refine_index).reconstruct_batch(rows)
        return vectors

    def ladder(self, index: Any, k: int) -> list[Overrides]:
        """Probes doubling, each with more and more candidates."""
        lists, probes = self.lists or 1, [1]
        while probes[-1] < lists:
            probes.append(min(lists, math.ceil(probes[-1] * 1.5)))
        factors = (None,) if self.refine == "none" else (2, 4, 8, 16, 32)
        return [Overrides(nprobe=p, refine=f) for p in probes for f in factors]

    def resident(self, trained: Any, count: int, dim: int) -> int:
        """Codes, numbers and finer vectors of the rows; centroids and tables of the lists."""
        width = (dim + 1) // 2
        row = width * (self.bits or 4) / 8 + 12 + {"fp16": 2, "sq8": 1}.get(self.refine, 0) * dim
        return int(count * row) + (self.lists or 1) * 4 * (dim + (width << (self.bits or 4)))

    def cost(self, dim: int, scanned: float, k: int, setting: Overrides, shards: int) -> float:
        """Centroids, codes of the probed lists, vectors of the candidates (an archived row costs its block)."""
        code = (dim + 1) // 2 * (self.bits or 4) / 8
        vector = {"fp16": 2 * dim, "sq8": dim, "archive": 64 * 4 * dim, "none": 0}[self.refine]
        candidates = max(k * (setting.refine or 1), MIN_CANDIDATES)
        return shards * (4 * dim * (self.lists or 1) + candidates * vector) + scanned * code
