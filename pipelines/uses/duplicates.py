"""Near-duplicates: groups of rows that hang together by pairs within a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from cluster.exact import pair_scores
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError
from pipelines.uses.live_rows import LiveRows
from pipelines.uses.partition import READ_ROWS, Block, partition

THRESHOLD = 0.95  # of cosine similarity
PROBES = 32


@dataclass(frozen=True)
class Group:
    """Rows that hang together, of which the first stands for all.

    Parameters
    ----------
    positions: ascending, as `LiveRows` numbers rows. ids: of the same rows. scores: cosine similarity to the first, or
        squared distance.
    """

    positions: I64
    ids: tuple[str, ...]
    scores: F32


@dataclass(frozen=True)
class Duplicates:
    """Groups of two and more, the largest first.

    Parameters
    ----------
    rows: of the collection. threshold: that was asked for.
    pairs: found within it, pairs of identical rows counted once a copy. compared: pairs of rows that were compared.
    cut: rows that were compared with fewer lists than could hold a duplicate of theirs; with 0 the groups are exact.
    """

    groups: tuple[Group, ...]
    rows: int
    threshold: float
    pairs: int
    compared: int
    cut: int

    @property
    def spare(self) -> int:
        """Rows that would go if one of each group stayed."""
        return sum(len(group.ids) - 1 for group in self.groups)


def find_duplicates(url: str | LiveRows, threshold: float | None = None, *, probes: int = PROBES) -> Duplicates:
    """Group the near-duplicates of a collection: connected components of the pairs within a threshold.

    threshold: least cosine similarity of a pair, 0.95 unless given; for an ``l2`` collection the largest squared
    distance, which must be given. probes: lists that a row is compared with at most; 0 finds every pair, at the price
    of more comparisons.

    Streams the archive once; see `pipelines.uses.partition`. Identical rows are told by their bytes first.
    """
    live = LiveRows.of(url)
    metric = live.compared
    limit = _checked(threshold, metric)
    radius = math.sqrt(limit if metric == "l2" else 2 - 2 * limit)
    if probes < 0:
        raise HilbertflowError(f"probes is {probes}", where="duplicates", remedy="give 1 or more, or 0 for all")
    parts = partition(live, probes, radius)
    parent = np.arange(live.count)
    copy = _unite_copies(parts.vectors, parent)
    pairs, compared = int(copy.sum()), 0
    for block in parts.blocks(copy):
        left, right = _within(block, metric, limit)
        new = left < right  # the other way round it was, or will be, met as well, unless the probes end there
        pairs += int(new.sum())
        compared += len(block.queries) * len(block.base)
        _unite(parent, left, right)
    groups = tuple(
        Group(rows, tuple(live.ids(rows)), scores) for rows, scores in _groups(parent, parts.vectors, metric)
    )
    return Duplicates(groups, live.count, limit, pairs, compared, parts.cut)


def _checked(threshold: float | None, metric: str) -> float:
    if threshold is None:
        if metric == "l2":
            raise HilbertflowError(
                "this collection is compared by distance", where="duplicates",
                remedy="give --threshold, the largest squared distance of a duplicate",
            )  # fmt: skip
        return THRESHOLD
    low, high = (0.0, math.inf) if metric == "l2" else (0.0, 1.0)
    if not low <= threshold <= high or math.isinf(threshold):
        raise HilbertflowError(
            f"threshold is {threshold}", where="duplicates",
            remedy="give a squared distance from 0" if metric == "l2" else "give a cosine similarity from 0 to 1",
        )  # fmt: skip
    return float(threshold)


def _within(block: Block, metric: str, limit: float) -> tuple[I64, I64]:
    """Rows (p,) and (p,) of the pairs of a block within the limit, scored in float64 where float32 leaves a doubt."""
    largest = limit if metric == "l2" else 2 - 2 * limit
    lengths = np.einsum("ij,ij->i", block.base_vectors, block.base_vectors).max(initial=0)
    lengths += np.einsum("ij,ij->i", block.query_vectors, block.query_vectors).max(initial=0)
    slack = (block.base_vectors.shape[1] + 8) * np.finfo(np.float32).eps * float(lengths)
    query, base = np.nonzero(block.squared_distances() <= largest + slack)
    different = block.queries[query] != block.base[base]
    query, base = query[different], base[different]
    kept = np.empty(len(query), np.bool_)
    for at in range(0, len(query), READ_ROWS):
        part = slice(at, at + READ_ROWS)
        scores = pair_scores(block.query_vectors[query[part]], block.base_vectors[base[part]], metric)
        kept[part] = scores <= np.float32(limit) if metric == "l2" else scores >= np.float32(limit)
    return block.queries[query[kept]], block.base[base[kept]]


def _unite_copies(vectors: F32, parent: I64) -> npt.NDArray[np.bool_]:
    """Unite rows of equal bytes with the first such row; (n,) bool, the rows that are copies."""
    first: dict[int, int] = {}
    copy = np.zeros(len(vectors), np.bool_)
    for start in range(0, len(vectors), READ_ROWS):
        for row, values in enumerate(vectors[start : start + READ_ROWS], start):
            other = first.setdefault(hash(values.tobytes()), row)
            if other != row and np.array_equal(vectors[other], values):
                parent[row], copy[row] = other, True
    return copy


def _groups(parent: I64, vectors: F32, metric: str) -> list[tuple[I64, F32]]:
    roots = _roots(parent)
    sizes = np.bincount(roots, minlength=len(roots))
    member = np.flatnonzero(sizes[roots] > 1)
    member = member[np.argsort(roots[member], kind="stable")]
    borders = np.flatnonzero(np.diff(roots[member])) + 1
    groups: list[tuple[I64, F32]] = []
    for rows in np.split(member, borders) if len(member) else []:
        first = np.broadcast_to(vectors[rows[0]], (len(rows), vectors.shape[1]))
        groups.append((rows, pair_scores(np.asarray(first), vectors[rows], metric)))
    return sorted(groups, key=lambda group: (-len(group[0]), int(group[0][0])))


@njit(cache=True)
def _unite(parent, left, right):  # type: ignore[no-untyped-def]
    for i in range(len(left)):
        a, b = left[i], right[i]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        else:
            parent[a] = b


@njit(cache=True)
def _roots(parent):  # type: ignore[no-untyped-def]
    out = np.empty_like(parent)
    for i in range(len(parent)):
        a = i
        while parent[a] != a:
            a = parent[a]
        out[i] = a
    return out
