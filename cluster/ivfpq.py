"""Inverted lists of product-quantized codes, scanned in registers, re-ranked by finer vectors.

Method: IVFADC (Jégou, Douze, Schmid, PAMI 2011) with 4-bit codes scanned by SIMD shuffles (André, Kermarrec, Le
Scouarnec, VLDB 2015), as FAISS's `IndexIVFPQFastScan`; candidates are scored again by float16 or 8-bit vectors kept
beside the codes, or by the archive's. A GPU scans codes of 8 bits (`GpuIndexIVFPQ`; Johnson, Douze, Jégou, IEEE Trans.
Big Data 2021).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster.device import codes_of, gpu_copy, gpu_means, gpu_search, takes
from cluster.index_kind import FAISS_METRIC, Effort, IndexKind, Overrides, selector
from cluster.inverted import Inverted
from cluster.probing import lists_for
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

CENTROID_ROWS = 64  # training rows a list: FAISS warns below 39 and gains little above 64
SMALL_DIM = 16  # up to it, codes of 8 bits lose less than those of 4 and cost little
FEW_GONE = 0.01  # of the rows: so many that were deleted or replaced are sifted out of what a GPU finds
WIDER = 4  # times the lists are read again for queries that met too few rows
FAST_ROWS = 32  # of a block of codes for the fast scan
MIN_CANDIDATES = 64  # a short list of answers is re-ranked from at least so many candidates


@dataclass(frozen=True)
class IvfPq(IndexKind):
    """Options of the `ivfpq` index; None is chosen from the collection's size.

    Parameters
    ----------
    lists: inverted lists; default 1.5 * sqrt(rows), at least 39 rows a list.
    bits: bits of a code: 4 (fast scan, two dimensions a code) or 8 (four dimensions a code, or more where that makes
        over 96 codes; two where there are at most 16 dimensions). Default: 4, but 8 for a GPU and for few dimensions.
    residual: code the difference from the list's centroid. Default: for ip and cosine, where it costs nothing to scan,
        and for a GPU.
    rotation: rotate at random before coding; default only where codes do not divide the dimension (it then pads it).
    refine: what candidates are re-ranked by: fp16 (2 bytes a value), sq8 (1 byte), archive (read at the exact level),
    none.
    nprobe: lists a query for 10 rows reads, more for more; refine_factor: candidates re-ranked as a multiple of k.
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
    trains_on_gpu: ClassVar[bool] = True

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
        laid_out = dataclasses.replace(self, bits=self.bits or (8 if dim <= SMALL_DIM else 4))
        return dataclasses.replace(
            laid_out,
            lists=lists,
            residual=metric != "l2" if self.residual is None else self.residual,
            rotation=bool(self.rotation) or laid_out.width(dim) != dim,
            nprobe=min(self.nprobe or max(16, lists // 12), lists),
            refine_factor=self.refine_factor or 8,
        )

    def for_gpu(self) -> Self | None:
        """Codes of 8 bits of residuals; None where other codes are asked for."""
        if self.bits == 4 or self.residual is False:
            return None
        return dataclasses.replace(self, bits=8, residual=True)

    def codes(self, dim: int) -> int:
        """Codes of a vector of `dim` values."""
        return (dim + 1) // 2 if self.bits == 4 else codes_of(dim, 2 if dim <= SMALL_DIM else 4)

    def width(self, dim: int) -> int:
        """Dimensions that are coded: `dim`, padded until its codes divide it."""
        codes = self.codes(dim)
        return codes * -(-dim // codes)

    def sample_rows(self, count: int) -> int:
        """Enough for the centroids, and at least 20,000 for the codebooks."""
        return min(count, max(20_000, CENTROID_ROWS * (self.lists or 1)))

    def untrained(self, dim: int, metric: str) -> Any:
        """FAISS's structure for these options, before anything is learned."""
        turn = f"RR{self.width(dim)}," if self.rotation else ""
        code = f"PQ{self.codes(dim)}" + ("x8np" if self.bits == 8 else "x4fsr" if self.residual else "x4fs")
        again = {"fp16": ",Refine(SQfp16)", "sq8": ",Refine(SQ8)"}.get(self.refine, "")
        index = faiss.index_factory(dim, f"{turn}IVF{self.lists},{code}{again}", FAISS_METRIC[metric])
        ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        if self.bits == 8:
            ivf.by_residual = bool(self.residual)
        ivf.cp.min_points_per_centroid = ivf.pq.cp.min_points_per_centroid = 1  # small collections are no mistake
        return index

    def trained(self, sample: F32, dim: int, metric: str, gpu: bool = False) -> Any:
        """Centroids and codebooks by k-means with fixed seeds."""
        index = self.untrained(dim, metric)
        needed = max(1 << (self.bits or 4), self.lists or 1)
        if len(sample) < needed:  # k-means wants a point a centroid; repeating points changes no optimum
            sample = np.resize(sample, (needed, dim))
        with gpu_means(index) if gpu else contextlib.nullcontext():
            index.train(sample)
        return index

    def opened(self, index: Any, gpu: bool = False) -> Inverted:
        """FAISS's own structure, and its copy on a GPU."""
        return Inverted(index, gpu_copy(index) if gpu else None)

    def defaults(self, index: Any) -> Overrides:
        """From the recipe, or as resolved."""
        return Overrides(nprobe=self.nprobe, refine=None if self.refine == "none" else self.refine_factor)

    def for_rows(self, tuned: Overrides, k: int, count: int) -> Overrides:
        """More lists, see `cluster.probing.lists_for`; candidates are a multiple of k as it is."""
        if tuned.nprobe is None:
            return tuned
        return dataclasses.replace(tuned, nprobe=lists_for(tuned.nprobe, k, self.lists or 1, count))

    def wider(self, settings: Overrides) -> Overrides | None:
        """Four times the lists, until all are read: another shard holds the lists near some queries."""
        nprobe, lists = settings.nprobe or 1, self.lists or 1
        return None if nprobe >= lists else dataclasses.replace(settings, nprobe=min(lists, WIDER * nprobe))

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
        gone = index.ntotal - int(np.bitwise_count(allowed).sum())
        twice = takes(self.candidates(2 * k, overrides, index.ntotal), nprobe, filtered=False)
        on_gpu = index.on_gpu is not None and twice and gone <= FEW_GONE * index.ntotal
        return (self._sifted if on_gpu else self._filtered)(index, queries, k, overrides, nprobe, allowed)

    def _sifted(
        self, index: Inverted, queries: F32, k: int, overrides: Overrides, nprobe: int,
        allowed: npt.NDArray[np.uint8],
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
        """For a GPU, which takes no selector: twice as many are found, and those sifted out that may not be answered.

        Queries that have fewer than k left go to the CPU.
        """
        scores, rows, effort = self._searched(index, queries, 2 * k, overrides, nprobe, None)
        kept = np.append(np.unpackbits(allowed, count=index.ntotal, bitorder="little").astype(np.bool_), False)[rows]
        best = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        scores, rows, kept = (np.take_along_axis(values, best, axis=1) for values in (scores, rows, kept))
        short = np.flatnonzero(~kept.all(axis=1))
        if len(short):
            scores[short], rows[short], more = self._filtered(index, queries[short], k, overrides, nprobe, allowed)
            effort = Effort(effort.lists_probed + more.lists_probed, effort.rows_scanned + more.rows_scanned)
        return scores, rows, effort

    def _filtered(
        self, index: Inverted, queries: F32, k: int, overrides: Overrides, nprobe: int,
        allowed: npt.NDArray[np.uint8],
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
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
        width = k
        if self.refine in ("fp16", "sq8"):
            width = self.candidates(k, overrides, index.ntotal)
            params = faiss.IndexRefineSearchParameters(k_factor=width / k, base_index_params=params)
        if index.on_gpu is not None and takes(width, nprobe, allowed is not None):
            scores, rows = gpu_search(index.on_gpu, queries, k, params)
            probed = nprobe * len(queries)
            return scores, rows, Effort(probed, probed * index.ntotal // (self.lists or 1))  # a GPU does not count
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
        """Codes, numbers and finer vectors of the rows; each shard's centroids and codebooks.

        FAISS lays codes for its fast scan in blocks of 32 rows, the last one of a list half full on average, and gives
        every list a power of two of bytes, which is 1 / ln 2 times what it needs on average.
        """
        codes, bits, lists = self.codes(dim), self.bits or 4, self.shards * (self.lists or 1)
        row = codes * bits / 8
        held = (count + lists * FAST_ROWS / 2) * row / math.log(2) if bits == 4 else count * row
        tabulated = bits == 8 and self.residual and trained.metric_type == faiss.METRIC_L2
        learned = lists * 4 * (dim + (codes << bits if tabulated else 0)) + self.shards * 4 * (self.width(dim) << bits)
        return int(held + count * (12 + {"fp16": 2, "sq8": 1}.get(self.refine, 0) * dim) + learned)

    def cost(self, dim: int, scanned: float, k: int, setting: Overrides, shards: int) -> float:
        """Centroids, codes of the probed lists, vectors of the candidates (an archived row costs its block)."""
        code = self.codes(dim) * (self.bits or 4) / 8
        vector = {"fp16": 2 * dim, "sq8": dim, "archive": 64 * 4 * dim, "none": 0}[self.refine]
        candidates = max(k * (setting.refine or 1), MIN_CANDIDATES)
        return shards * (4 * dim * (self.lists or 1) + candidates * vector) + scanned * code
