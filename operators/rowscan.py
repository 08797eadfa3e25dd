"""Scores of coded rows without decoding them: queries are turned into the transform's domain instead.

A row is ``mean + coefficients · axes``, so its inner product with a query is ``query · mean + coefficients · (axes ·
query)``: one small product a row, and no inverse transform. Coefficients are float32 here, which is plenty for ranking
and reports; what must come out bit for bit alike is decoded by :class:`operators.rowcode.RowCode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.klt import AXIS
from operators.rowcode import RowCode

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Index = npt.NDArray[np.signedinteger[Any]]
"""Lattice indices of the coded coefficients of rows, as :func:`operators.rowtrellis.index` gives them."""


@dataclass(frozen=True, eq=False)
class Turned:
    """Queries in the transform's domain.

    turned: float32 (q, r); at_mean: float32 (q,), product with the mean; squares: float32 (q,), squared lengths.
    """

    turned: F32
    at_mean: F32
    squares: F32

    def take(self, which: npt.NDArray[Any] | slice) -> Turned:
        """Some of the queries."""
        return Turned(self.turned[which], self.at_mean[which], self.squares[which])


@dataclass(frozen=True, eq=False)
class RowScan:
    """Scores rows of one code.

    metric: ``ip`` and ``cosine`` score by the inner product, of rows brought to unit length where the source's are;
    ``l2`` by the squared distance, negated: more is nearer.
    """

    code: RowCode
    metric: str

    @cached_property
    def _axes(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.ldexp(self.code.klt.basis, -AXIS))

    @cached_property
    def _parts(self) -> tuple[F32, F32]:
        """Axes (r, d) and mean (d,) in single precision."""
        return np.ascontiguousarray(self._axes, np.float32), self._mean.astype(np.float32)

    @cached_property
    def _mean(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.ldexp(self.code.klt.mean.astype(np.float64), -self.code.klt.shift))

    @cached_property
    def _lengths(self) -> tuple[F32, F32, float]:
        """Squared length of each axis, its product with the mean, and the mean's squared length."""
        return (np.einsum("ij,ij->i", self._axes, self._axes).astype(np.float32),
                (self._axes @ self._mean).astype(np.float32), float(self._mean @ self._mean))  # fmt: skip

    @cached_property
    def centroids(self) -> F32:
        """Coefficients (K, r) of the lists' centroids; (1, r) of zeros where there are no lists."""
        stored = self.code.centroids if len(self.code.centroids) else np.zeros((1, self.code.klt.rank), np.int32)
        return np.ldexp(stored.astype(np.float32), -self.code.klt.shift)

    @cached_property
    def _columns(self) -> tuple[tuple[I64, F32], ...]:
        """Of each level: the coefficients that it codes, and what one step of a symbol's index is worth."""
        found = []
        for steps in self.code.steps:
            coded = np.flatnonzero(steps > 0)
            found.append((coded, np.ldexp(steps[coded].astype(np.float32), -self.code.klt.shift)))
        return tuple(found)

    @cached_property
    def _first(self) -> tuple[F32, F32]:
        """What an index of level 0 adds to a row's squared length: (K, c) by list, and (c,) with the index's square."""
        (columns, worth), (lengths, at_mean, _) = self._columns[0], self._lengths
        around = 2 * (self.centroids[:, columns] * lengths[columns] + at_mean[columns]) * worth
        return np.ascontiguousarray(around, np.float32), lengths[columns] * worth * worth

    def turn(self, queries: F32) -> Turned:
        """Queries (q, d) float32 in the domain of the coefficients."""
        axes, mean = self._parts
        turned = np.empty((len(axes), len(queries)), np.float32)
        _products(axes, queries, np.zeros_like(mean), mean, np.float32(0), turned, np.empty(len(axes), np.float32))
        return Turned(np.ascontiguousarray(turned.T), queries @ mean, np.einsum("ij,ij->i", queries, queries))

    def add(self, total: F32, level: int, index: Index) -> None:
        """Add a level's indices (n, c) to coefficients (n, r), which begin as those of the rows' centroids."""
        columns, worth = self._columns[level]
        _add(index, worth, columns, total)

    def scores(self, total: F32, queries: Turned, precise: bool = False) -> F32:
        """(n, q) float32, more is nearer, of coefficients (n, r).

        The stored axes are not quite at right angles. ``precise`` takes that into account in the lengths of the rows,
        which costs as much as decoding them; it matters for fine levels and the best few rows only.
        """
        lengths, at_mean, mean = self._lengths
        out = np.empty((len(total), len(queries.turned)), np.float32)
        squares = np.empty(len(total), np.float32)
        _products(total, queries.turned, lengths, 2 * at_mean, np.float32(mean), out, squares)
        out += queries.at_mean
        if precise:
            _squares(total, *self._parts, squares)
        if self.code.klt.unit:
            out /= np.sqrt(np.maximum(squares, 1e-12))[:, None]
            squares = np.ones_like(squares)
        return 2 * out - squares[:, None] - queries.squares if self.metric == "l2" else out

    def first(self, index: Index, lists: npt.NDArray[np.integer[Any]], near: F32, squares: F32, queries: Turned) -> F32:
        """Scores (n, q), as :meth:`scores` gives them, of rows of which the first level alone is known.

        index: (n, c) of level 0; lists: (n,) the list of each row; near: float32 (q, K) inner products of the queries
        and the lists' centroids; squares: (K,) squared lengths of those. The coefficients that level 0 leaves out are
        the centroid's, so that a row costs what it codes, and no coefficients are laid out.
        """
        columns, worth = self._columns[0]
        around, own = self._first
        asked = np.ascontiguousarray(queries.turned[:, columns] * worth)
        out, length = np.empty((len(index), len(asked)), np.float32), np.empty(len(index), np.float32)
        _first(
            index, np.asarray(lists, np.int64), around, own, asked, np.ascontiguousarray(near.T), squares, out, length
        )
        if self.code.klt.unit:
            out /= np.sqrt(np.maximum(length, 1e-12))[:, None]
            length = np.ones_like(length)
        return 2 * out - length[:, None] - queries.squares if self.metric == "l2" else out

    def squares(self, total: F32) -> F32:
        """Squared lengths (n,) of the rows with these coefficients."""
        lengths, at_mean, mean = self._lengths
        return np.asarray((total * (total * lengths + 2 * at_mean)).sum(axis=1) + mean, np.float32)

    def products(self, total: F32, queries: Turned) -> F32:
        """Inner products (n, q) of rows and queries, whatever the metric."""
        (lengths, at_mean, mean), out = self._lengths, np.empty((len(total), len(queries.turned)), np.float32)
        _products(total, queries.turned, lengths, at_mean, np.float32(mean), out, np.empty(len(total), np.float32))
        return out + queries.at_mean


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _products(total, queries, lengths, linear, constant, out, squares):  # type: ignore[no-untyped-def]
    """Inner products with the queries, and squared lengths of the rows."""
    for i in range(total.shape[0]):
        row = total[i]
        length = np.float32(0)
        for j in range(row.size):
            length += row[j] * (row[j] * lengths[j] + linear[j])
        squares[i] = length + constant
        for q in range(queries.shape[0]):
            query, product = queries[q], np.float32(0)
            for j in range(row.size):
                product += row[j] * query[j]
            out[i, q] = product


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _squares(total, axes, mean, out):  # type: ignore[no-untyped-def]
    """Squared lengths of the rows with these coefficients. A BLAS would start threads for it, and wait for them."""
    for i in range(total.shape[0]):
        row = mean.copy()
        for j in range(axes.shape[0]):
            for d in range(row.size):
                row[d] += total[i, j] * axes[j, d]
        length = np.float32(0)
        for d in range(row.size):
            length += row[d] * row[d]
        out[i] = length


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _first(index, lists, around, own, queries, near, squares, out, length):  # type: ignore[no-untyped-def]
    """Inner products with queries (q, c), and squared lengths, of rows that are their list's and what indices add.

    near: (K, q) products and squares: (K,) squared lengths of the lists; around: (K, c) what the squared length gains
    with each index, own: (c,) with its square.
    """
    values = np.empty(index.shape[1], np.float32)
    for row in range(index.shape[0]):
        mine = lists[row]
        gained, at = np.float32(0), around[mine]
        for j in range(values.size):
            value = np.float32(index[row, j])
            values[j] = value
            gained += value * (value * own[j] + at[j])
        length[row] = squares[mine] + gained
        for q in range(queries.shape[0]):
            query, product = queries[q], np.float32(0)
            for j in range(values.size):
                product += values[j] * query[j]
            out[row, q] = near[mine, q] + product


@njit(cache=True, nogil=True)
def _add(index, worth, columns, total):  # type: ignore[no-untyped-def]
    width = columns.size
    if width and columns[-1] == width - 1:  # the leading ones, as usual: the compiler can take them side by side
        for row in range(index.shape[0]):
            mine, asked = total[row], index[row]
            for j in range(width):
                mine[j] += np.float32(asked[j]) * worth[j]
        return
    for row in range(index.shape[0]):
        for j in range(width):
            total[row, columns[j]] += np.float32(index[row, j]) * worth[j]
