"""Sums over the values of a matrix from which it is known again, taken in one pass and in any pieces.

A matrix W (rows, columns) is looked at through 32 probes, vectors of signs. Along a row that is y = W·r, and the
products of the probes summed over the rows, Σ y·yᵀ with rows of unit length, are a sketch of WᵀW: they do not change
when rows are permuted, change sign or are scaled, which is what can be done to the neurons of a layer without changing
what it computes. The columns of a matrix are neurons too (of the layer before), so the same is taken of W's columns.
The products of both, Σ s·y, are a linear sketch of W (Alon, Matias, Szegedy, 1996): of two matrices they tell the
distance.

The sign of place i in probe k is that of a random vector at i times an entry of a Hadamard matrix, H[i mod 32, k]. So
all probes of a row are Hᵀu, where u are 32 *buckets* to which each value is added once, with its sign (a count sketch:
Charikar, Chen, Farach-Colton, 2002), and whatever is linear or quadratic in y is gathered in u, at a thirty-second of
the additions, and turned by H at the end.

Where an axis is the residual stream, whose dimensions may be permuted or rotated in the whole model at once, a second
set of probes turns with it: orthonormal combinations of the embeddings of the first tokens (:func:`anchors`).

All sums are loops in a fixed order, so that a matrix has the same sketch on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from operators.sketch_sums import (
    GROUP,
    PROBES,
    add_up,
    combine,
    count_columns,
    count_rows,
    fill,
    hadamard,
    orthonormal,
    overlap,
)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
MOMENTS = 8
"""Count, sums of the values' powers 1 to 4, zeros, values of the magnitude of the one before, largest magnitude."""
LINEAR = 512
FIXED, ANCHORED = 0, 1
WIDE = 2048
"""Matrices with more columns keep fewer probes along them, so that what a piece holds stays small."""


@dataclass(frozen=True)
class Matrix:
    """Which sums a tensor gets.

    Parameters
    ----------
    rows, columns: of the tensor as a matrix; all axes but the first are its columns.
    first: only so many rows are looked at: a table of embeddings has a row a token, always in the same order.
    along_rows, along_columns: whether rows, and columns, are taken as neurons.
    anchored_rows, anchored_columns: whether the other axis is the residual stream, so that anchors look along it.
    """

    rows: int
    columns: int
    along_rows: bool = True
    along_columns: bool = True
    anchored_rows: bool = False
    anchored_columns: bool = False
    first: int = 0

    @property
    def seen(self) -> int:
        """Rows that are looked at."""
        return min(self.rows, self.first) if self.first else self.rows

    @property
    def column_probes(self) -> int:
        """Probes of each column, a power of two."""
        return PROBES if self.columns <= WIDE else 16 if self.columns <= 2 * WIDE else 8


@dataclass
class Sums:
    """Sums over some of a matrix's values; those of disjoint pieces are added with :meth:`add`.

    Parameters
    ----------
    matrix: what they are of.
    moments: (8,) as :data:`MOMENTS` says.
    rows: (2, 32, 32) products over whole rows of unit length, of buckets and of anchored probes.
    linear: (512,) of the linear sketch: signs of the rows, 16 sets of them, times every bucket.
    columns: (2, probes, columns) of each column, buckets and anchored probes; squares: (columns,) of its length.
    broken: by number, rows of which only a part was seen: buckets and anchored probes (2, 32) and squared length.
    """

    matrix: Matrix
    moments: F64 = field(default_factory=lambda: np.zeros(MOMENTS))
    rows: F64 = field(default_factory=lambda: np.zeros((2, PROBES, PROBES)))
    linear: F64 = field(default_factory=lambda: np.zeros(LINEAR))
    columns: F32 = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    squares: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    broken: dict[int, tuple[F32, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.matrix.along_columns and not self.squares.size:
            self.columns = np.zeros((2, self.matrix.column_probes, self.matrix.columns), np.float32)
            self.squares = np.zeros(self.matrix.columns, np.float32)

    def add(self, other: Sums) -> None:
        """Add the sums over other values of the same matrix; a row that is whole now is counted."""
        self.moments[:-1] += other.moments[:-1]
        self.moments[-1] = max(self.moments[-1], other.moments[-1])
        self.rows += other.rows
        self.linear += other.linear
        self.columns = self.columns + other.columns
        self.squares = self.squares + other.squares
        for row, (probes, square) in other.broken.items():
            before = self.broken.get(row)
            self.broken[row] = (probes, square) if before is None else (before[0] + probes, before[1] + square)

    def close(self) -> None:
        """Count the rows that came in parts; called when all pieces are added."""
        for row, (probes, square) in sorted(self.broken.items()):
            group = np.zeros((GROUP, 2, PROBES), np.float32)
            group[0] = probes
            count_rows(group, np.array([square]), row, self.rows, self.linear)
        self.broken = {}


def sums(matrix: Matrix, values: F32, start: int, anchor: F32 | None) -> Sums:
    """Sums over the consecutive values ``start …`` of a matrix in C order; what is not finite counts as zero.

    anchor: (length of the residual stream, 32) of :func:`anchors`, or None.
    """
    found = Sums(matrix)
    flat, n = np.ascontiguousarray(values, np.float32).reshape(-1), matrix.columns
    if matrix.first:
        flat = flat[: max(0, matrix.first * n - start)]
    if not flat.size or not n:
        return found
    first, last = start // n, (start + flat.size - 1) // n
    head, tail = np.zeros((2, 2, PROBES), np.float32), np.zeros(2)
    nothing = np.zeros((0, PROBES), np.float32)
    along = anchor if matrix.anchored_rows and anchor is not None else nothing
    across = anchor if matrix.anchored_columns and anchor is not None else nothing
    add_up(
        _read_only(flat), start, n, _flips(n), _read_only(along), _read_only(across), matrix.along_columns,
        found.moments, found.rows, found.linear, found.columns, found.squares, head, tail,
    )  # fmt: skip
    if start % n or start + flat.size < (first + 1) * n:
        found.broken[first] = head[0], float(tail[0])
    if last != first and (start + flat.size) % n:
        found.broken[last] = head[1], float(tail[1])
    return found


def compile_sums() -> None:
    """Compile :func:`sums`, which takes seconds, once here and not in every process that begins with it at once."""
    sums(Matrix(1, 1), np.zeros(1, np.float32), 0, None)


def _read_only(array: F32) -> F32:
    """The array, of one type to the compiled code wherever it comes from."""
    seen = array.view()
    seen.flags.writeable = False
    return seen


def signs(length: int) -> F32:
    """The fixed probes along an axis: (length, 32) of 1 and −1, the same for every axis of the length or longer."""
    place, probe = np.arange(length)[:, None] % PROBES, np.arange(PROBES)
    odd = np.bitwise_count(place & probe) & 1
    return np.where(odd, -1, 1).astype(np.float32) * _flips(length)[:, None]


@lru_cache(maxsize=32)
def _flips(length: int) -> F32:
    """The random sign of each place: (length,)."""
    out = np.empty(length, np.float32)
    fill(out)
    return out


def anchors(embeddings: F32) -> F32:
    """Probes that turn with the residual stream: (width, 32) orthonormal, from the embeddings of the first tokens.

    embeddings: (tokens, width). Each probe is a random combination of the tokens less their mean; they are made
    orthonormal by the modified Gram-Schmidt process. Whatever orthogonal map the embeddings undergo, the probes do too.
    """
    tokens = np.nan_to_num(np.asarray(embeddings, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    width = tokens.shape[1]
    combined = np.zeros((width, PROBES))
    combine(tokens - tokens.mean(axis=0), combined)
    orthonormal(combined)
    return combined.astype(np.float32)


def centred(products: F64, total: float, length: int, basis: int) -> F64:
    """Products of probes less what a matrix of independent values would have: fixed probes are not quite orthogonal."""
    if basis == ANCHORED or not length:
        return products
    probes = len(products)
    return products - total / length * _overlaps(length)[:probes, :probes]


def row_products(found: Sums, basis: int) -> F64:
    """Σ y·yᵀ over the rows at unit length (32, 32)."""
    return _turned(found.rows[basis]) if basis == FIXED else found.rows[basis]


def column_products(found: Sums, basis: int) -> tuple[F64, float]:
    """Σ z·zᵀ over the columns at unit length (probes, probes), and how many columns are not all zero."""
    probes = found.matrix.column_probes
    out, count = np.zeros((probes, probes)), np.zeros(1)
    if found.matrix.along_columns:
        count_columns(np.ascontiguousarray(found.columns[basis].T), found.squares, out, count)
    return _turned(out) if basis == FIXED else out, float(count[0])


def linear_sketch(found: Sums) -> F64:
    """Signs of the rows, 16 sets of them, times every fixed probe, (512,)."""
    out = found.linear.reshape(-1, PROBES).copy()
    hadamard(out)
    return out.reshape(-1)


def _turned(buckets: F64) -> F64:
    """H·B·H of the products of buckets (n, n)."""
    out = buckets.copy()
    hadamard(out)
    out = np.ascontiguousarray(out.T)
    hadamard(out)
    return out


@lru_cache(maxsize=64)
def _overlaps(length: int) -> F64:
    out = np.zeros((PROBES, PROBES))
    overlap(signs(length), out)
    return out
