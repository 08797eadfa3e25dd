"""A navigable small-world graph (Malkov, Yashunin, PAMI 2018), built by FAISS, walked over short codes.

FAISS links the leading principal components of the vectors at 8 bits each (`IndexHNSWSQ`); the vectors themselves lie
beside them in a store that the nearest are compared by. Any FAISS can search the file; `cluster.walk` does it faster.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster.graph import Graph, eight_bits
from cluster.index_kind import FAISS_METRIC, Effort, IndexKind, Overrides
from cluster.probing import TUNED_K
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

SAMPLE_ROWS = 20_000
HEAD_SHARE, HEAD_UNIT = 0.95, 64  # of the variance that heads keep; dimensions by which they grow (a cache line)
BYTES = {"flat": 4, "fp16": 2, "sq8": 1}  # a value


@dataclass(frozen=True)
class Hnsw(IndexKind):
    """Options of the `hnsw` index.

    Parameters
    ----------
    links: edges of a node (twice as many on the ground level); 4 to 128.
    ef_construction: width of the search that finds a new node's edges.
    ef: width of a query's search; refine_factor: nodes compared by their stored vectors, as a multiple of k.
    head: leading principal components that the graph is walked by; None keeps 95 % of the variance.
    store: how vectors are kept: flat (4 bytes a value), fp16 (2), sq8 (1, ranges of the sample).
    """

    kind: Literal["hnsw"] = "hnsw"
    links: int = 16
    ef_construction: int = 200
    ef: int = 64
    refine_factor: int = 4
    head: int | None = None
    store: Literal["flat", "fp16", "sq8"] = "fp16"

    settings: ClassVar[tuple[str, ...]] = ("ef", "refine")
    ordered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (
            ("links", 4, 128), ("ef_construction", 8, 4096), ("ef", 1, 1 << 20), ("refine_factor", 1, 1 << 20),
            ("head", 1, 1 << 16),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise HilbertflowError(f"{name} is {value}", where="index hnsw", remedy=f"give {low} to {high}")

    def resolved(self, count: int, dim: int, metric: str) -> Self:
        """Nothing is left open."""
        return self

    def sample_rows(self, count: int) -> int:
        """Principal components and each dimension's range."""
        return min(count, SAMPLE_ROWS)

    def trained(self, sample: F32, dim: int, metric: str, gpu: bool = False) -> Any:
        """Principal components, ranges, an empty graph."""
        rotation = principal(sample, self.head)
        turn = faiss.LinearTransform(dim, len(rotation), False)
        faiss.copy_array_to_vector(rotation.ravel(), turn.A)
        turn.is_trained = True
        graph = faiss.IndexHNSWSQ(len(rotation), faiss.ScalarQuantizer.QT_8bit, self.links, FAISS_METRIC[metric])
        graph.hnsw.efConstruction = self.ef_construction
        eight_bits(faiss.downcast_index(graph.storage), turn.apply(sample))
        base = faiss.IndexPreTransform(turn, graph)
        if self.store == "flat":
            store = faiss.IndexFlat(dim, FAISS_METRIC[metric])
        elif self.store == "fp16":
            store = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, FAISS_METRIC[metric])
        else:
            store = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, FAISS_METRIC[metric])
            eight_bits(store, sample)
        graph.is_trained = base.is_trained = store.is_trained = True
        return faiss.IndexRefine(base, store)  # Python keeps what it is made of alive

    def opened(self, index: Any, gpu: bool = False) -> Any:
        """The arrays that are walked."""
        return Graph.of(index)

    def defaults(self, index: Any) -> Overrides:
        """From the recipe."""
        return Overrides(ef=self.ef, refine=self.refine_factor)

    def for_rows(self, tuned: Overrides, k: int, count: int) -> Overrides:
        """A graph search of width k is at its worst near its rim, so it is a quarter wider than the rows wanted."""
        if tuned.ef is None or k <= TUNED_K:
            return tuned
        return dataclasses.replace(tuned, ef=max(tuned.ef, k + math.ceil((k - TUNED_K) / 4)))

    def search(
        self, index: Any, queries: F32, k: int, overrides: Overrides, allowed: npt.NDArray[np.uint8] | None,
        own: I64 | None = None,
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
        """Best-first search of width max(ef, k), the nearest of it compared by their stored vectors."""
        width = max(overrides.ef or 1, k)
        again = min(width, k * (overrides.refine or 1))
        scores, rows, compared = index.search(queries, k, width, again, allowed, faiss.omp_get_max_threads(), own)
        return scores, rows, Effort(0, compared)

    def stored(self, index: Any, rows: I64) -> F32 | None:
        """From the store."""
        vectors: F32 = index.vectors(rows)
        return vectors

    def ladder(self, index: Any, k: int) -> list[Overrides]:
        """Widths growing by half, the nearest of each compared again."""
        widths, ef = [], max(k, 8)
        while ef < 4096:
            widths += [Overrides(ef=ef, refine=refine) for refine in (2, 4, 8) if refine == 2 or refine * k < 2 * ef]
            ef = ef * 3 // 2
        return widths

    def resident(self, trained: Any, count: int, dim: int) -> int:
        """Links, heads, vectors, and three numbers a row; each shard's axes of the heads."""
        head = int(faiss.downcast_index(trained.base_index).index.d)
        return count * (2 * self.links * 4 + head + BYTES[self.store] * dim + 12) + self.shards * 4 * dim * head

    def cost(self, dim: int, scanned: float, k: int, setting: Overrides, shards: int) -> float:
        """Heads of the nodes visited, stored vectors of those compared again."""
        again = min(setting.ef or k, k * (setting.refine or 1))
        return scanned * min(self.head or dim, dim) + shards * again * dim * BYTES[self.store]


def principal(sample: F32, head: int | None) -> F32:
    """Directions of greatest variance of a sample (n, d): (h, d) float32, orthonormal rows, greatest first.

    head: how many; None takes the fewest, in steps of 64, that hold 95 % of the variance.
    """
    dim = sample.shape[1]
    wide = sample.astype(np.float64)
    wide -= wide.mean(axis=0)
    values, vectors = np.linalg.eigh(wide.T @ wide)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    if head is None:
        needed = int(np.searchsorted(np.cumsum(values), HEAD_SHARE * values.sum())) + 1
        head = -(-needed // HEAD_UNIT) * HEAD_UNIT
    kept: F32 = np.ascontiguousarray(vectors[: min(head, dim)], np.float32)
    return kept
