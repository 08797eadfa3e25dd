"""Any flat codebook as a tree of nested codebooks: its cells are merged, cheapest first, and codes split into layers.

Merging two cells costs what it adds to the squared error, ``n·m/(n+m)·|a - b|²`` (Ward, "Hierarchical grouping to
optimize an objective function", 1963), so the order of merges is the order in which detail matters least. Cutting the
order at 16, 64, 256 cells gives three nested codebooks, the last of which is the flat one, unchanged. A layer tells
which child of the cell above holds the value; by the chain rule the layers together hold no more than the flat code.

Merges are found along chains of nearest neighbours (Murtagh, "A survey of recent advances in hierarchical clustering
algorithms", 1983): the same tree as trying all pairs, in O(K²·d) time and O(K·d) memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Codes = npt.NDArray[np.integer[Any]]
MOST = 1 << 20
"""Cells of a codebook at most."""


@dataclass(frozen=True, eq=False)
class CodeTree:
    """Nested codebooks. Cells of a layer are numbered so that the children of a cell are neighbours.

    Parameters
    ----------
    first: for each layer, int32 (cells above + 1,): the children of cell i are ``first[i] … first[i + 1] - 1``; the
        first layer has one cell above it.
    points: for each layer, float32 (cells, d): what a cell decodes to. The last layer's are the flat codebook's.
    leaf: int32 (K,): the flat code of each cell of the last layer.
    """

    first: tuple[I32, ...]
    points: tuple[F32, ...]
    leaf: I32

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.first)

    @property
    def size(self) -> int:
        """Cells of the flat codebook."""
        return len(self.leaf)

    def children(self, layer: int) -> int:
        """The most children that a cell above the layer has: symbols are below this."""
        return int(np.diff(self.first[layer]).max())

    def encode(self, codes: Codes) -> list[I32]:
        """Symbols of every layer, each of the shape of ``codes``, which are flat codes (any shape)."""
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < self.size:
            raise HilbertflowError(f"codes outside 0 to {self.size - 1}", where="code tree")
        place = np.empty(self.size, np.int32)
        place[self.leaf] = np.arange(self.size, dtype=np.int32)
        cell, symbols = place[codes], []
        for layer in range(self.depth - 1, -1, -1):
            above = np.searchsorted(self.first[layer], cell, side="right").astype(np.int32) - 1
            symbols.append(cell - self.first[layer][above])
            cell = above
        return symbols[::-1]

    def cells(self, symbols: Sequence[Codes]) -> I32:
        """The cell of layer ``len(symbols) - 1`` that the symbols of all layers to it name."""
        cell = np.zeros(np.shape(symbols[0]), np.int32)
        for layer, symbol in enumerate(symbols):
            low, high = self.first[layer][cell], self.first[layer][cell + 1]
            cell = low + np.asarray(symbol, np.int32)
            if ((cell < low) | (cell >= high)).any():
                raise HilbertflowError(f"a symbol of layer {layer} names no cell", where="code tree",
                                       remedy="the layer is damaged or of another tree")  # fmt: skip
        return cell

    def decode(self, symbols: Sequence[Codes]) -> F32:
        """Values (…, d) float32 from the symbols of layers 0 to some k."""
        if not 1 <= len(symbols) <= self.depth:
            raise HilbertflowError(f"{len(symbols)} layers of {self.depth}", where="code tree")
        return self.points[len(symbols) - 1][self.cells(symbols)]

    def codes(self, symbols: Sequence[Codes]) -> I32:
        """The flat codes back from the symbols of all layers."""
        if len(symbols) != self.depth:
            raise HilbertflowError(f"{len(symbols)} layers of {self.depth}", where="code tree", remedy="give them all")
        return self.leaf[self.cells(symbols)]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What an archive stores: the shape of the tree and the points of every layer."""
        shape = {f"tree_first{layer}": first for layer, first in enumerate(self.first)}
        points = {f"tree_points{layer}": points for layer, points in enumerate(self.points)}
        return shape | points | {"tree_leaf": self.leaf}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Inverse of :meth:`to_arrays`; checks what it is given."""
        depth = sum(name.startswith("tree_first") for name in arrays)
        first = tuple(np.asarray(arrays[f"tree_first{i}"], np.int32) for i in range(depth))
        points = tuple(np.asarray(arrays[f"tree_points{i}"], np.float32) for i in range(depth))
        leaf = np.asarray(arrays["tree_leaf"], np.int32)
        above = [1, *(len(p) for p in points[:-1])]
        good = depth > 0 and len(leaf) == len(points[-1]) and np.array_equal(np.sort(leaf), np.arange(len(leaf)))
        for borders, cells, layer in zip(first, above, points, strict=True):
            good = good and len(borders) == cells + 1 and borders[0] == 0 and borders[-1] == len(layer)
            good = good and bool((np.diff(borders) > 0).all()) and layer.shape[1:] == points[0].shape[1:]
        if not good:
            raise HilbertflowError("the code tree is malformed", where="code tree", remedy="the archive is damaged")
        return cls(first, points, leaf)


def build(
    codebook: F32, widths: Sequence[int] | int | Literal["clusters", "values"], counts: Codes | None = None,
    layers: int = 3,
) -> CodeTree:  # fmt: skip
    """The tree of a codebook.

    Parameters
    ----------
    codebook: float32 (K, d), finite, 1 ≤ K ≤ 2²⁰; equal entries are allowed.
    widths: bits that each layer adds: layer i has ``2**(widths[0] + … + widths[i])`` cells, the last layer all of them.
        One number: so many bits a layer. ``clusters``: ``layers`` layers of equal width. ``values``: ``layers`` layers,
        cut so that of the values that counts tell of, equal shares come to their final cell in each.
    counts: (K,) values in each cell, 0 allowed; None for equal ones.
    layers: for the two rules.
    """
    codebook = np.ascontiguousarray(codebook, np.float32)
    if codebook.ndim != 2 or not 1 <= len(codebook) <= MOST or not np.isfinite(codebook).all():
        raise HilbertflowError(f"a codebook of shape {codebook.shape}", where="code tree",
                               remedy=f"give 1 to {MOST} finite points of equal length")  # fmt: skip
    size = len(codebook)
    weight = np.ones(size) if counts is None else np.maximum(np.asarray(counts, np.float64), 0.0)
    if weight.shape != (size,):
        raise HilbertflowError(f"{weight.size} counts for {size} cells", where="code tree")
    # An empty cell must not merge for nothing with a far one: it counts as half a value.
    left, right = merges(codebook, np.maximum(weight, 0.5))
    cuts = _cuts(widths, size, layers, weight, left, right)
    labels = [_labels(left, right, size, cells) for cells in cuts]
    return _numbered(codebook, weight, labels)


def merges(codebook: F32, weight: F64) -> tuple[I32, I32]:
    """All K - 1 merges, cheapest first: two members (flat codes) of the clusters that each joins, int32 (K - 1,)."""
    left, right, cost = _chain(np.ascontiguousarray(codebook.T), weight.astype(np.float32))
    order = np.argsort(cost, kind="stable")
    return left[order], right[order]


def _cuts(widths: Sequence[int] | int | str, size: int, layers: int, weight: F64, left: I32, right: I32) -> list[int]:
    bits = max(0.0, float(np.log2(size)))
    if widths == "values":
        return _value_cuts(size, layers, weight, left, right)
    if widths == "clusters":
        cuts = [round(2 ** (bits * (i + 1) / layers)) for i in range(layers)]
    else:
        steps: list[int] = []
        if isinstance(widths, int):
            steps = [widths] * max(1, int(np.ceil(bits / max(1, widths))))
        elif not isinstance(widths, str):
            steps = [int(width) for width in widths]
        if not steps or any(not 1 <= width <= 20 for width in steps):
            raise HilbertflowError(f"widths {widths!r}", where="code tree",
                                   remedy="give bits a layer, 1 to 20, or clusters or values")  # fmt: skip
        cuts = [1 << min(20, sum(steps[: i + 1])) for i in range(len(steps))]
    cuts = sorted({min(cells, size) for cells in cuts} | {size})
    return cuts if len(cuts) == 1 or cuts[0] > 1 else cuts[1:]


def _value_cuts(size: int, layers: int, weight: F64, left: I32, right: I32) -> list[int]:
    """Cells of each layer such that equal shares of the values come to their final cell in each."""
    steps = np.arange(size - 1)
    joined = np.full(size, size - 1)  # the merge that a code first takes part in: until then it is alone in its cell
    np.minimum.at(joined, left, steps)
    np.minimum.at(joined, right, steps)
    alone = np.cumsum(np.bincount(joined, weight, size)[::-1])  # [m - 1]: values alone when m cells are left
    wanted = alone[-1] * np.arange(1, layers) / layers
    return sorted({*(max(2, int(m) + 1) for m in np.searchsorted(alone, wanted)), size})


def _labels(left: I32, right: I32, size: int, cells: int) -> I32:
    """The cluster (any number) of each code when so many are left."""
    root = np.arange(size, dtype=np.int32)
    _join(root, left[: size - cells], right[: size - cells])
    return root


def _numbered(codebook: F32, weight: F64, labels: Sequence[I32]) -> CodeTree:
    """The tree of nested labellings, coarse to fine, the last one all different; heavier children come first."""
    size, above = len(codebook), np.zeros(len(codebook), np.int64)
    first, points = [], []
    for label in labels:
        _, group = np.unique(label, return_inverse=True)
        mass = np.bincount(group, weight)
        parent = np.zeros(len(mass), np.int64)
        parent[group] = above
        order = np.lexsort((-mass, parent))  # by the cell above, then by weight
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        cells = int(above.max()) + 1
        first.append(np.concatenate([[0], np.cumsum(np.bincount(parent, minlength=cells))]).astype(np.int32))
        above = number[group]
        points.append(_means(codebook, np.maximum(weight, 1e-9), above, len(mass)))
    leaf = np.empty(size, np.int32)
    leaf[above] = np.arange(size)
    points[-1] = codebook[leaf]  # not a mean of one: the very points
    return CodeTree(tuple(first), tuple(points), leaf)


def _means(codebook: F32, weight: F64, cell: I64, cells: int) -> F32:
    mass = np.bincount(cell, weight, cells)
    sums = [np.bincount(cell, weight * column, cells) for column in codebook.T.astype(np.float64)]
    return np.asarray(np.array(sums).T / mass[:, None], np.float32)


@njit(cache=True, nogil=True)
def _join(root, left, right):  # type: ignore[no-untyped-def]
    for at in range(left.size):
        a, b = left[at], right[at]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        root[max(a, b)] = min(a, b)
    for i in range(root.size):
        while root[i] != root[root[i]]:
            root[i] = root[root[i]]


@njit(cache=True, nogil=True, fastmath=True)
def _chain(points, weight):  # type: ignore[no-untyped-def]
    """Merges in the order in which chains of nearest neighbours find them; ``points`` (d, K) is used up.

    The clusters that are left lie at the front of the arrays, so that a scan reads them in one go.
    """
    dim, size = points.shape
    left, right = np.empty(size - 1, np.int32), np.empty(size - 1, np.int32)
    cost = np.empty(size - 1, np.float32)
    member = np.arange(size).astype(np.int32)  # a code of each cluster
    height = np.zeros(size, np.float32)
    distance = np.empty(size, np.float32)
    chain = np.empty(size, np.int32)
    length, alive = 0, size
    for done in range(size - 1):
        if length == 0:
            chain[0] = 0
            length = 1
        while True:
            top = chain[length - 1]
            before = chain[length - 2] if length > 1 else -1
            distance[:alive] = 0
            for k in range(dim):
                value = points[k, top]
                for j in range(alive):
                    gap = points[k, j] - value
                    distance[j] += gap * gap
            own = weight[top]
            for j in range(alive):
                distance[j] *= own * weight[j] / (own + weight[j])
            distance[top] = np.inf
            best = before if before >= 0 else (1 if top == 0 else 0)
            least = distance[best]
            for j in range(alive):
                if distance[j] < least:
                    least, best = distance[j], j
            if best == before:
                break
            chain[length] = best
            length += 1
        length -= 2
        a, b = min(top, before), max(top, before)
        left[done], right[done] = member[a], member[b]
        # Rounding must not let a merge look cheaper than those it builds on.
        height[a] = max(least, max(height[a], height[b]))
        cost[done] = height[a]
        total = weight[a] + weight[b]
        for k in range(dim):
            points[k, a] = (weight[a] * points[k, a] + weight[b] * points[k, b]) / total
        weight[a] = total
        alive -= 1
        if b != alive:  # the last cluster takes the free place
            for k in range(dim):
                points[k, b] = points[k, alive]
            weight[b], member[b], height[b] = weight[alive], member[alive], height[alive]
            for i in range(length):
                if chain[i] == alive:
                    chain[i] = b
    return left, right, cost
