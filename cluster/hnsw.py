"""A navigable small-world graph over stored vectors (Malkov, Yashunin, PAMI 2018), as FAISS's `IndexHNSW`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster.index_kind import FAISS_METRIC, Effort, IndexKind, Overrides, selector
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

_STORES = {"flat": None, "fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}


@dataclass(frozen=True)
class Hnsw(IndexKind):
    """Options of the `hnsw` index.

    Parameters
    ----------
    links: edges of a node (twice as many on the ground level); 4 to 128.
    ef_construction: width of the search that finds a new node's edges.
    ef: width of a query's search.
    store: how vectors are kept: flat (4 bytes a value), fp16 (2), sq8 (1, trained on the sample).
    """

    kind: Literal["hnsw"] = "hnsw"
    links: int = 16
    ef_construction: int = 200
    ef: int = 64
    store: Literal["flat", "fp16", "sq8"] = "flat"

    settings: ClassVar[tuple[str, ...]] = ("ef",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("links", 4, 128), ("ef_construction", 8, 4096), ("ef", 1, 1 << 20)):
            if not low <= getattr(self, name) <= high:
                raise HilbertflowError(
                    f"{name} is {getattr(self, name)}", where="index hnsw", remedy=f"give {low} to {high}"
                )

    def resolved(self, count: int, dim: int, metric: str) -> Self:
        """Nothing is left open."""
        return self

    def sample_rows(self, count: int) -> int:
        """Only 8-bit stores learn anything (each dimension's range)."""
        return min(count, 20_000) if self.store == "sq8" else 0

    def trained(self, sample: F32, dim: int, metric: str) -> Any:
        """An empty graph."""
        quantizer = _STORES[self.store]
        if quantizer is None:
            index = faiss.IndexHNSWFlat(dim, self.links, FAISS_METRIC[metric])
        else:
            index = faiss.IndexHNSWSQ(dim, quantizer, self.links, FAISS_METRIC[metric])
            index.train(sample if len(sample) else np.zeros((1, dim), np.float32))
        index.hnsw.efConstruction = self.ef_construction
        return index

    def defaults(self, index: Any) -> Overrides:
        """From the recipe."""
        return Overrides(ef=self.ef)

    def search(
        self, index: Any, queries: F32, k: int, overrides: Overrides, allowed: npt.NDArray[np.uint8] | None
    ) -> tuple[F32, I64, Effort]:
        """Best-first search of width max(ef, k)."""
        chosen = selector(allowed)
        params = faiss.SearchParametersHNSW(efSearch=max(overrides.ef or 1, k), sel=chosen)
        stats = faiss.cvar.hnsw_stats
        stats.reset()
        scores, rows = index.search(queries, k, params=params)
        return scores, rows, Effort(0, int(stats.ndis))

    def stored(self, index: Any, rows: I64) -> F32 | None:
        """From the graph's own vectors."""
        vectors: F32 = faiss.downcast_index(index.storage).reconstruct_batch(rows)
        return vectors

    def ladder(self, index: Any, k: int) -> list[Overrides]:
        """Widths growing by half."""
        widths, ef = [], max(k, 8)
        while ef < 4096:
            widths.append(Overrides(ef=ef))
            ef = ef * 3 // 2
        return widths

    def cost(self, dim: int, scanned: float, k: int, setting: Overrides, shards: int) -> float:
        """The vectors of the nodes visited."""
        return scanned * dim * {"flat": 4, "fp16": 2, "sq8": 1}[self.store]
