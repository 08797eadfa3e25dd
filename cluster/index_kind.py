"""What every kind of index is: a frozen dataclass whose fields are its recipe options, around one FAISS structure.

A kind resolves its open options from the size of the collection, trains once on a sample, and searches an index that
holds one shard's rows under local numbers 0 … n - 1. It knows nothing of files, shards or Ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Self

import faiss
import numpy as np
import numpy.typing as npt

from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

FAISS_METRIC = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT, "cosine": faiss.METRIC_INNER_PRODUCT}
MAX_OVERRIDE = 1_000_000


@dataclass(frozen=True)
class Overrides:
    """How hard one query looks; None leaves the kind's default.

    nprobe: inverted lists read (`ivfpq`, `cold`). ef: width of the graph search (`hnsw`). refine: candidates re-ranked,
    as a multiple of k (`ivfpq`, `cold`). level: the finest level read, that behind the last lossy one being exact
    (`cold`, `exact`).
    """

    nprobe: int | None = None
    ef: int | None = None
    refine: int | None = None
    level: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            least = 0 if name == "level" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_OVERRIDE:
                remedy = f"give a whole number from {least} to {MAX_OVERRIDE}"
                raise HilbertflowError(f"{name} is {value!r}", where="search", remedy=remedy)

    def given(self) -> dict[str, int]:
        """The overrides that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@lru_cache(maxsize=1024)
def overlaid(*layers: Overrides) -> Overrides:
    """Each setting of the last layer that has it."""
    return Overrides(**{name: value for layer in layers for name, value in layer.given().items()})


@dataclass(frozen=True)
class Effort:
    """What one search of one shard cost: lists or graph nodes visited and codes compared."""

    lists_probed: int = 0
    rows_scanned: int = 0


@dataclass(frozen=True)
class IndexKind(ABC):
    """Options common to all kinds.

    Parameters
    ----------
    kind: name in the registry; also the name of the search tier.
    shards: contiguous row ranges, each its own index file and its own actor when served.
    target_recall: recall@10 that the search defaults are tuned to after the build; None keeps the kind's defaults.
    """

    kind: str
    shards: int = field(default=1, kw_only=True)
    target_recall: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 4096:
            raise HilbertflowError(f"shards is {self.shards}", where=f"index {self.kind}", remedy="give 1 to 4096")
        if self.target_recall is not None and not 0 < self.target_recall <= 1:
            raise HilbertflowError(
                f"target_recall is {self.target_recall}",
                where=f"index {self.kind}",
                remedy="give a share above 0, up to 1",
            )

    settings: ClassVar[tuple[str, ...]]
    """Names of the overrides that it takes."""

    trains_on_gpu: ClassVar[bool] = False
    """Whether its training has a form for a GPU."""

    ordered: ClassVar[bool] = False
    """Whether answers of `search` come with equal scores ordered by row."""

    @abstractmethod
    def resolved(self, count: int, dim: int, metric: str) -> Self:
        """The same with every open option chosen for `count` rows of `dim` values."""

    def for_gpu(self) -> Self | None:
        """The same in a form that a GPU holds; None where there is none."""
        return None

    @abstractmethod
    def sample_rows(self, count: int) -> int:
        """Rows that training wants of `count`; 0 when nothing is learned."""

    @abstractmethod
    def trained(self, sample: F32, dim: int, metric: str, gpu: bool = False) -> Any:
        """An empty FAISS index with all that is learned from a prepared `sample` (n, dim): same sample, same bytes.

        gpu: learn on one, where the kind has a form for it; sums are rounded otherwise there, so the bytes are others.
        """

    def opened(self, index: Any, gpu: bool = False) -> Any:
        """What `search` and `stored` take, of a shard's FAISS index that was filled or read and checked.

        gpu: copy it to one, where the kind has a form for it and was built in it.
        """
        return index

    @abstractmethod
    def defaults(self, index: Any) -> Overrides:
        """Search settings in force when a query names none."""

    @abstractmethod
    def for_rows(self, tuned: Overrides, k: int, count: int) -> Overrides:
        """Settings that were tuned to find the best 10, widened so that of `count` rows the best k are found as well.

        None stays None, and at 10 or fewer nothing changes. What a caller asks for is laid over it.
        """

    def wider(self, settings: Overrides) -> Overrides | None:
        """Settings for queries that these found too few rows for; None where every row should be compared instead."""
        return None

    @abstractmethod
    def search(
        self, index: Any, queries: F32, k: int, overrides: Overrides, allowed: npt.NDArray[np.uint8] | None,
        own: I64 | None = None,
    ) -> tuple[F32, I64, Effort]:  # fmt: skip
        """Best k local rows of prepared queries (q, d): scores and rows (q, k), -1 where fewer were reached.

        `allowed` is a little-endian bitmap of the local rows that may be answered; None allows all. `own` names, where
        queries are rows themselves, each one's local row (-1 for none), which must not lead to its neighbours; it may
        be among the answers.
        """

    @abstractmethod
    def resident(self, trained: Any, count: int, dim: int) -> int:
        """Bytes of memory that `count` rows of `dim` values take in all shards, given the trained, empty index."""

    @abstractmethod
    def stored(self, index: Any, rows: I64) -> F32 | None:
        """Vectors (n, d) of local rows as the index keeps them for re-ranking; None when it keeps none."""

    @abstractmethod
    def ladder(self, index: Any, k: int) -> list[Overrides]:
        """Settings from cheap to thorough, for tuning."""

    @abstractmethod
    def cost(self, dim: int, scanned: float, k: int, setting: Overrides, shards: int) -> float:
        """Bytes that one query touches in all shards together when it compares `scanned` codes or nodes."""


def selector(allowed: npt.NDArray[np.uint8] | None) -> Any:
    """FAISS's selector of a bitmap, or None."""
    return None if allowed is None else faiss.IDSelectorBitmap(allowed)


def bitmap(rows: I64, count: int) -> npt.NDArray[np.uint8]:
    """Little-endian bitmap of `count` bits with those of `rows` set."""
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return np.packbits(mask, bitorder="little")
