"""In what order the rows of a collection lie: inverted lists along a tour of their centroids, or a Hilbert curve.

A query reads the lists whose centroids are nearest to it, so rows of a list lie together, and lists that are read
together lie side by side: a tour visits the centroids from one to its neighbour and so turns many small reads into few.
A row may be *spilled*: stored a second time, in the list that best makes up for its first one's error, so that fewer
lists need be read. Without training beyond principal components, rows can be ordered along a Hilbert curve through
those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_BLOCK = 4096


def train(sample: F32, count: int, rounds: int = 12, seed: int = 0) -> F32:
    """Centroids (count, d) float32 of the sample by Lloyd's k-means; an empty cluster takes half of the largest.

    Parameters
    ----------
    sample: float32 (n, d), n ≥ count.
    count: of centroids, 1 to n.
    """
    if not 1 <= count <= len(sample):
        raise HilbertflowError(f"{count} lists of {len(sample)} rows", where="lists", remedy="use fewer lists")
    rng = np.random.default_rng(seed)
    centroids = np.ascontiguousarray(sample[np.sort(rng.permutation(len(sample))[:count])], np.float32)
    for _ in range(rounds):
        mine = nearest(sample, centroids)[:, 0]
        sizes = np.bincount(mine, minlength=count)
        sums = np.zeros((count, sample.shape[1]), np.float64)
        order = np.argsort(mine, kind="stable")
        filled = np.flatnonzero(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        sums[filled] = np.add.reduceat(sample[order], starts[filled], axis=0, dtype=np.float64)
        centroids = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
        _refill(centroids, sizes)
    return centroids


def nearest(rows: F32, centroids: F32, count: int = 1) -> I32:
    """The ``count`` nearest centroids (n, count) int32 of each row in squared distance, nearest first."""
    count = min(count, len(centroids))
    half = 0.5 * np.einsum("ij,ij->i", centroids, centroids)
    out = np.empty((len(rows), count), np.int32)
    for start in range(0, len(rows), _BLOCK):
        with np.errstate(over="ignore", invalid="ignore"):  # rows near the end of float32 may lie in any list
            score = rows[start : start + _BLOCK] @ centroids.T - half
        if count == 1:
            out[start : start + _BLOCK, 0] = score.argmax(axis=1)
            continue
        near = np.argpartition(score, score.shape[1] - count, axis=1)[:, -count:]
        best = np.argsort(-np.take_along_axis(score, near, axis=1), axis=1, kind="stable")
        out[start : start + _BLOCK] = np.take_along_axis(near, best, axis=1)
    return out


def spill(
    rows: F32, centroids: F32, first: npt.NDArray[np.integer[Any]], emphasis: float = 1.0, among: int = 32
) -> I32:
    """A second list (n,) int32 for each row, never its first.

    It is a near one whose residual is not parallel to the first list's: where a query is far from the one centroid
    because of that residual, it is near to the other (SOAR: Sun et al., "Improved indexing for approximate nearest
    neighbor search", 2023). The cost is ``|r'|² + emphasis · (r' · r/|r|)²``.
    """
    if len(centroids) < 2:
        raise HilbertflowError("spilling needs two lists", where="lists", remedy="use more lists, or spill none")
    out = np.empty(len(rows), np.int32)
    near = nearest(rows, centroids, among)
    for start in range(0, len(rows), 512):
        part = slice(start, start + 512)
        own = rows[part] - centroids[first[part]]
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
        other = rows[part, None, :] - centroids[near[part]]
        along = np.einsum("nkd,nd->nk", other, own)
        cost = np.einsum("nkd,nkd->nk", other, other) + emphasis * along * along
        cost[near[part] == np.asarray(first[part])[:, None]] = np.inf
        out[part] = np.take_along_axis(near[part], cost.argmin(axis=1)[:, None], axis=1)[:, 0]
    return out


def tour(centroids: F32, neighbours: int = 16, rounds: int = 30) -> I32:
    """The centroids (K,) int32 in an order in which each is near to the next.

    A greedy walk to the nearest centroid not yet visited, shortened by reversing stretches of it (2-opt) until that
    helps no more.
    """
    count = len(centroids)
    if count < 3:
        return np.arange(count, dtype=np.int32)
    near = nearest(centroids, centroids, min(neighbours + 1, count))
    path: I32 = _walk(np.ascontiguousarray(centroids, np.float32), near)
    _untangle(np.ascontiguousarray(centroids, np.float32), near, path, rounds)
    return path


def along(lists: npt.NDArray[np.integer[Any]], path: I32) -> tuple[I64, I64]:
    """Rows (n,) in the order of the tour and, for each list, the (K + 1,) borders of the lists along it.

    ``borders[i]`` is where list ``path[i]`` begins. Rows of a list keep their order.
    """
    place: I64 = np.empty(len(path), np.int64)
    place[path] = np.arange(len(path))
    where = place[lists]
    sizes = np.bincount(where, minlength=len(path))
    return np.argsort(where, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def hilbert(values: F32, bits: int = 8) -> I64:
    """Rows (n,) in the order of a Hilbert curve through their values (n, k), k·bits ≤ 64: principal components, say.

    Each column is cut at its quantiles, so that the curve spends its turns where rows are.
    """
    rank = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")
    cells = (rank * (1 << bits) // max(len(values), 1)).astype(np.uint32)
    return np.asarray(np.argsort(hilbert_keys(cells, bits), kind="stable"), np.int64)


def hilbert_keys(cells: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint64]:
    """Places (n,) along a Hilbert curve of cells (n, k), numbers below 2**bits, k·bits ≤ 64.

    The method is that of Skilling, "Programming the Hilbert curve", 2004.
    """
    count, width = cells.shape
    if width * bits > 64 or not 1 <= bits <= 16:
        raise HilbertflowError(f"{width} columns of {bits} bits", where="lists", remedy="64 bits in all at most")
    axes = cells.T.copy()
    top = np.uint32(1) << np.uint32(bits - 1)
    q = top
    while q > 1:  # undo the excess turns
        low = np.uint32(q - 1)
        for i in range(width):
            set_ = (axes[i] & q) != 0
            swap = np.where(set_, 0, (axes[0] ^ axes[i]) & low).astype(np.uint32)
            axes[0] ^= np.where(set_, low, swap)
            axes[i] ^= swap
        q >>= np.uint32(1)
    for i in range(1, width):  # Gray code
        axes[i] ^= axes[i - 1]
    flip = np.zeros(count, np.uint32)
    q = top
    while q > 1:
        flip ^= np.where((axes[width - 1] & q) != 0, np.uint32(q - 1), np.uint32(0))
        q >>= np.uint32(1)
    axes ^= flip
    key = np.zeros(count, np.uint64)
    for bit in range(bits - 1, -1, -1):
        for i in range(width):
            key = (key << np.uint64(1)) | ((axes[i] >> np.uint32(bit)) & 1).astype(np.uint64)
    return key


def _refill(centroids: F32, sizes: I64) -> None:
    """Move each empty centroid beside the largest, which the two then share."""
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        sign = np.where(np.arange(centroids.shape[1]) % 2, np.float32(1e-3), np.float32(-1e-3))
        centroids[empty] = centroids[largest] * (1 + sign)
        centroids[largest] *= 1 - sign
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]


@njit(cache=True, nogil=True)
def _distance(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(a.size):
        d = np.float64(a[i]) - np.float64(b[i])
        total += d * d
    return np.sqrt(total)


@njit(cache=True, nogil=True)
def _walk(centroids, near):  # type: ignore[no-untyped-def]
    count = len(centroids)
    path, seen, at = np.empty(count, np.int32), np.zeros(count, np.bool_), 0
    for step in range(count):
        path[step], seen[at] = at, True
        best, least = -1, np.inf
        for other in near[at]:
            if not seen[other]:
                best = other  # nearest first
                break
        if best < 0:
            for other in range(count):
                if not seen[other]:
                    far = _distance(centroids[at], centroids[other])
                    if far < least:
                        best, least = other, far
        at = best
    return path


@njit(cache=True, nogil=True)
def _untangle(centroids, near, path, rounds):  # type: ignore[no-untyped-def]
    count = len(path)
    place = np.empty(count, np.int64)
    for i in range(count):
        place[path[i]] = i
    for _ in range(rounds):
        better = False
        for a in range(count):
            i = place[a]
            if i + 1 >= count:
                continue
            here = _distance(centroids[a], centroids[path[i + 1]])
            for b in near[a]:
                j = place[b]
                if j <= i + 1:
                    continue
                joined = _distance(centroids[a], centroids[b])
                if joined >= here:
                    break
                # a … next, b … after  becomes  a … b, next … after
                gain = here - joined
                if j + 1 < count:
                    gain += _distance(centroids[b], centroids[path[j + 1]])
                    gain -= _distance(centroids[path[i + 1]], centroids[path[j + 1]])
                if gain > 1e-9:
                    low, high = i + 1, j
                    while low < high:
                        path[low], path[high] = path[high], path[low]
                        low += 1
                        high -= 1
                    for k in range(i + 1, j + 1):
                        place[path[k]] = k
                    better = True
                    break
        if not better:
            break
