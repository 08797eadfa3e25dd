"""Sums over the values of a matrix from which it is known again, taken in one pass and in any pieces.

A matrix W (rows, columns) is looked at through 32 probes, vectors of signs. Along a row that is y = W·r, and the
products of the probes summed over the rows, Σ y·yᵀ with rows of unit length, are a sketch of WᵀW: they do not change
when rows are permuted, change sign or are scaled, which is what can be done to the neurons of a layer without changing
what it computes. The columns of a matrix are neurons too (of the layer before), so the same is taken of W's columns.
The products of both, Σ s·y, are a linear sketch of W (Alon, Matias, Szegedy, 1996): of two matrices they tell the
distance.

Where an axis is the residual stream, whose dimensions may be permuted or rotated in the whole model at once, a second
set of probes turns with it: orthonormal combinations of the embeddings of the first tokens (:func:`anchors`).

All sums are loops in a fixed order, so that a matrix has the same sketch on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
PROBES = 32
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
        """Probes of each column."""
        return PROBES if self.columns <= WIDE else max(8, PROBES * WIDE // self.columns // 8 * 8)


@dataclass
class Sums:
    """Sums over some of a matrix's values; those of disjoint pieces are added with :meth:`add`.

    Parameters
    ----------
    matrix: what they are of.
    moments: (8,) as :data:`MOMENTS` says.
    rows: (2, 32, 32) products of the probes over whole rows of unit length, by fixed and anchored probes.
    linear: (512,) of the linear sketch: signs of the rows, 16 sets of them, times every probe.
    columns: (2, columns, probes) of each column; squares: (columns,) of its length.
    broken: by number, rows of which only a part was seen: probes (2, 32) and squared length.
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
            self.columns = np.zeros((2, self.matrix.columns, self.matrix.column_probes), np.float32)
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
            _count_row(probes, square, row, self.rows, self.linear)
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
    _pass(
        _read_only(flat), start, n, signs(n), _read_only(along), _read_only(across), matrix.along_rows,
        matrix.along_columns, found.moments, found.rows, found.linear, found.columns, found.squares, head, tail,
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


@lru_cache(maxsize=32)
def signs(length: int) -> F32:
    """The fixed probes along an axis: (length, 32) of 1 and −1, the same for every axis of the length or longer."""
    out = np.empty((length, PROBES), np.float32)
    _fill(out)
    return out


def anchors(embeddings: F32) -> F32:
    """Probes that turn with the residual stream: (width, 32) orthonormal, from the embeddings of the first tokens.

    embeddings: (tokens, width). Each probe is a random combination of the tokens less their mean; they are made
    orthonormal by the modified Gram-Schmidt process. Whatever orthogonal map the embeddings undergo, the probes do too.
    """
    tokens = np.nan_to_num(np.asarray(embeddings, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    width = tokens.shape[1]
    combined = np.zeros((width, PROBES))
    _combine(tokens - tokens.mean(axis=0), combined)
    _orthonormal(combined)
    return combined.astype(np.float32)


def centred(products: F64, total: float, length: int, basis: int) -> F64:
    """Products of probes less what a matrix of independent values would have: fixed probes are not quite orthogonal."""
    if basis == ANCHORED or not length:
        return products
    probes = len(products)
    return products - total / length * _overlaps(length)[:probes, :probes]


def column_products(found: Sums, basis: int) -> tuple[F64, float]:
    """Σ z·zᵀ over the columns at unit length (probes, probes), and how many columns are not all zero."""
    probes = found.matrix.column_probes
    out, count = np.zeros((probes, probes)), np.zeros(1)
    if found.matrix.along_columns:
        _count_columns(found.columns[basis], found.squares, out, count)
    return out, float(count[0])


@lru_cache(maxsize=64)
def _overlaps(length: int) -> F64:
    out = np.zeros((PROBES, PROBES))
    _overlap(signs(length), out)
    return out


@njit(cache=True, nogil=True)
def _word(number):  # type: ignore[no-untyped-def]
    """32 bits of a number: the finalizer of splitmix64 (Steele, Lea, Flood, 2014)."""
    z = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _fill(out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        bits = _word(i)
        for k in range(out.shape[1]):
            out[i, k] = np.float32(1.0) if (bits >> np.uint64(k)) & np.uint64(1) else np.float32(-1.0)


@njit(cache=True, nogil=True)
def _overlap(probes, out):  # type: ignore[no-untyped-def]
    for i in range(probes.shape[0]):
        for a in range(probes.shape[1]):
            for b in range(probes.shape[1]):
                out[a, b] += probes[i, a] * probes[i, b]


@njit(cache=True, nogil=True)
def _count_row(y, square, row, products, linear):  # type: ignore[no-untyped-def]
    if square <= 0.0:
        return
    wide, scale, probes = y.astype(np.float64), 1.0 / square, y.shape[1]
    for basis in range(2):
        for a in range(probes):
            left = wide[basis, a] * scale
            if left != 0.0:
                for b in range(probes):
                    products[basis, a, b] += left * wide[basis, b]
    bits = _word(row + 1000003)
    for chosen in range(linear.size // probes):
        sign = np.float32(1.0) if (bits >> np.uint64(chosen)) & np.uint64(1) else np.float32(-1.0)
        for k in range(probes):
            linear[chosen * probes + k] += sign * y[0, k]


@njit(cache=True, nogil=True)
def _pass(  # type: ignore[no-untyped-def]
    values, start, n, fixed, along, across, by_rows, by_columns, moments, products, linear, columns, squares, head, tail
):
    few, at, first = columns.shape[2], 0, start // n
    y, clean = np.zeros((2, fixed.shape[1]), np.float32), np.zeros(n, np.float32)
    mine, theirs = np.zeros(few, np.float32), np.zeros(few, np.float32)
    while at < values.size:
        row, begin = (start + at) // n, (start + at) % n
        count = min(n - begin, values.size - at)
        square = _moments(values[at : at + count], clean, moments)
        y[:] = np.float32(0.0)
        _project(clean[:count], fixed[begin : begin + count], y[0])
        if along.shape[0]:
            _project(clean[:count], along[begin : begin + count], y[1])
        if by_columns:
            bits = _word(row)
            for k in range(few):
                mine[k] = np.float32(1.0) if (bits >> np.uint64(k)) & np.uint64(1) else np.float32(-1.0)
            _spread(clean[:count], mine, columns[0, begin : begin + count])
            if across.shape[0]:
                theirs[:] = across[row, :few]
                _spread(clean[:count], theirs, columns[1, begin : begin + count])
            for i in range(count):
                squares[begin + i] += clean[i] * clean[i]
        if count == n:
            _count_row(y, square, row, products, linear)
        else:
            side = 0 if row == first else 1
            head[side] = y
            tail[side] = square
        at += count


_LANES = 16  # sums side by side, so that one need not wait for the other; their order is fixed


@njit(cache=True, nogil=True)
def _moments(values, clean, moments):  # type: ignore[no-untyped-def]
    """Copy finite values, others as zeros; add to the moments. Returns the sum of squares."""
    words, bits, size = values.view(np.uint32), clean.view(np.uint32), values.size
    odd = 0
    for i in range(size):
        finite = words[i] & np.uint32(0x7F800000) != np.uint32(0x7F800000)
        odd += not finite
        bits[i] = words[i] if finite else np.uint32(0)
    first, second, third, fourth = np.zeros(_LANES), np.zeros(_LANES), np.zeros(_LANES), np.zeros(_LANES)
    whole = size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        for k in range(_LANES):
            value = np.float64(clean[i + k])
            power = value * value
            first[k] += value
            second[k] += power
            third[k] += power * value
            fourth[k] += power * power
    for i in range(whole, size):
        value = np.float64(clean[i])
        power = value * value
        first[0] += value
        second[0] += power
        third[0] += power * value
        fourth[0] += power * power
    zeros, ties, largest = 0, 0, np.uint32(0)
    for i in range(size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        zeros += magnitude == np.uint32(0)
        largest = max(largest, magnitude)  # floats of one sign are ordered as their bits are
    for i in range(1, size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        ties += (magnitude == bits[i - 1] & np.uint32(0x7FFFFFFF)) & (magnitude > np.uint32(0))
    square = second.sum()
    moments[0] += size
    moments[1] += first.sum()
    moments[2] += square
    moments[3] += third.sum()
    moments[4] += fourth.sum()
    moments[5] += zeros - odd
    moments[6] += ties
    top = np.empty(1, np.uint32)
    top[0] = largest
    moments[7] = max(moments[7], np.float64(top.view(np.float32)[0]))
    return square


@njit(cache=True, nogil=True)
def _project(values, probes, y):  # type: ignore[no-untyped-def]
    """y += values · probes, eight values at a time."""
    whole = values.size // 8 * 8
    for i in range(0, whole, 8):
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        v4, v5, v6, v7 = values[i + 4], values[i + 5], values[i + 6], values[i + 7]
        for k in range(PROBES):
            y[k] += (
                ((v0 * probes[i, k] + v1 * probes[i + 1, k]) + (v2 * probes[i + 2, k] + v3 * probes[i + 3, k]))
                + ((v4 * probes[i + 4, k] + v5 * probes[i + 5, k]) + (v6 * probes[i + 6, k] + v7 * probes[i + 7, k]))
            )  # fmt: skip
    for i in range(whole, values.size):
        for k in range(PROBES):
            y[k] += values[i] * probes[i, k]


@njit(cache=True, nogil=True)
def _spread(values, signs_of_row, columns):  # type: ignore[no-untyped-def]
    """columns += values ⊗ the row's probes."""
    for i in range(values.size):
        value = values[i]
        for k in range(signs_of_row.size):
            columns[i, k] += value * signs_of_row[k]


@njit(cache=True, nogil=True)
def _count_columns(z, squares, out, count):  # type: ignore[no-untyped-def]
    for j in range(squares.size):
        if squares[j] > 0.0:
            count[0] += 1.0
            scale = 1.0 / np.float64(squares[j])
            for a in range(out.shape[0]):
                left = z[j, a] * scale
                for b in range(out.shape[1]):
                    out[a, b] += left * z[j, b]


@njit(cache=True, nogil=True)
def _combine(tokens, out):  # type: ignore[no-untyped-def]
    for t in range(tokens.shape[0]):
        bits = _word(t + 7919)
        for i in range(tokens.shape[1]):
            for k in range(out.shape[1]):
                out[i, k] += tokens[t, i] if (bits >> np.uint64(k)) & np.uint64(1) else -tokens[t, i]


@njit(cache=True, nogil=True)
def _orthonormal(vectors):  # type: ignore[no-untyped-def]
    for k in range(vectors.shape[1]):
        for _again in range(2):
            for before in range(k):
                dot = 0.0
                for i in range(vectors.shape[0]):
                    dot += vectors[i, k] * vectors[i, before]
                for i in range(vectors.shape[0]):
                    vectors[i, k] -= dot * vectors[i, before]
        square = 0.0
        for i in range(vectors.shape[0]):
            square += vectors[i, k] * vectors[i, k]
        scale = 1.0 / np.sqrt(square) if square > 1e-20 else 0.0
        for i in range(vectors.shape[0]):
            vectors[i, k] *= scale
