"""The loops of :mod:`operators.sketch`, compiled: sums in a fixed order, the same on every machine."""

from __future__ import annotations

import numpy as np
from numba import njit

PROBES = 32
GROUP = 8
"""Rows that are looked at together, so that what they are added to is fetched once."""


@njit(cache=True, nogil=True)
def word(number):  # type: ignore[no-untyped-def]
    """32 bits of a number: the finalizer of splitmix64 (Steele, Lea, Flood, 2014)."""
    z = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def fill(out):  # type: ignore[no-untyped-def]
    """The random sign of each place, in ``out`` (n,)."""
    for i in range(out.size):
        out[i] = np.float32(1.0) if word(i) & np.uint64(1) else np.float32(-1.0)


@njit(cache=True, nogil=True)
def hadamard(rows):  # type: ignore[no-untyped-def]
    """Each row times the Hadamard matrix of its length, a power of two, in place (Sylvester's butterfly)."""
    half = 1
    while half < rows.shape[1]:
        for r in range(rows.shape[0]):
            for low in range(0, rows.shape[1], 2 * half):
                for i in range(low, low + half):
                    a, b = rows[r, i], rows[r, i + half]
                    rows[r, i], rows[r, i + half] = a + b, a - b
        half *= 2


@njit(cache=True, nogil=True)
def overlap(probes, out):  # type: ignore[no-untyped-def]
    """Add probesᵀ · probes to ``out`` (32, 32)."""
    for i in range(probes.shape[0]):
        for a in range(probes.shape[1]):
            for b in range(probes.shape[1]):
                out[a, b] += probes[i, a] * probes[i, b]


@njit(cache=True, nogil=True)
def count_rows(y, square, row, products, linear):  # type: ignore[no-untyped-def]
    """Count whole rows, ``row`` and those after it; y (8, 2, 32) is zero beyond them."""
    probes, unit = y.shape[2], y.copy()
    for r in range(square.size):
        scale = np.float32(1.0 / np.sqrt(square[r])) if square[r] > 0.0 else np.float32(0.0)
        for basis in range(2):
            for k in range(probes):
                unit[r, basis, k] *= scale
    sign = np.zeros((linear.size // probes, GROUP), np.float32)
    for r in range(square.size):
        bits = word(row + r + 1000003)
        for chosen in range(sign.shape[0]):
            sign[chosen, r] = np.float32(1.0) if (bits >> np.uint64(chosen)) & np.uint64(1) else np.float32(-1.0)
    y0, y1, y2, y3 = y[0, 0], y[1, 0], y[2, 0], y[3, 0]
    y4, y5, y6, y7 = y[4, 0], y[5, 0], y[6, 0], y[7, 0]
    for chosen in range(sign.shape[0]):
        s0, s1, s2, s3 = sign[chosen, 0], sign[chosen, 1], sign[chosen, 2], sign[chosen, 3]
        s4, s5, s6, s7 = sign[chosen, 4], sign[chosen, 5], sign[chosen, 6], sign[chosen, 7]
        for k in range(probes):
            linear[chosen * probes + k] += (
                ((s0 * y0[k] + s1 * y1[k]) + (s2 * y2[k] + s3 * y3[k]))
                + ((s4 * y4[k] + s5 * y5[k]) + (s6 * y6[k] + s7 * y7[k]))
            )  # fmt: skip
    for basis in range(2):
        u0, u1, u2, u3 = unit[0, basis], unit[1, basis], unit[2, basis], unit[3, basis]
        u4, u5, u6, u7 = unit[4, basis], unit[5, basis], unit[6, basis], unit[7, basis]
        for a in range(probes):
            v0, v1, v2, v3, v4, v5, v6, v7 = u0[a], u1[a], u2[a], u3[a], u4[a], u5[a], u6[a], u7[a]
            for b in range(probes):
                products[basis, a, b] += (
                    ((v0 * u0[b] + v1 * u1[b]) + (v2 * u2[b] + v3 * u3[b]))
                    + ((v4 * u4[b] + v5 * u5[b]) + (v6 * u6[b] + v7 * u7[b]))
                )  # fmt: skip


@njit(cache=True, nogil=True)
def add_up(  # type: ignore[no-untyped-def]
    values, start, n, flips, along, across, by_columns, moments, products, linear, columns, squares, head, tail
):
    """One pass over consecutive values of a matrix of ``n`` columns, added to :class:`operators.sketch.Sums`.

    head, tail: (2, 2, 32) and (2,) of the first and the last row where they are parts of one.
    """
    few, at, first = columns.shape[1], 0, start // n
    clean, y = np.zeros((GROUP, n), np.float32), np.zeros((GROUP, 2, PROBES), np.float32)
    lengths, theirs = np.zeros(GROUP), np.zeros((GROUP, few), np.float32)
    while at < values.size:
        row, begin = (start + at) // n, (start + at) % n
        count = min(n - begin, values.size - at)
        rows = min(GROUP, (values.size - at) // n) if count == n else 1
        y[:] = np.float32(0.0)
        for r in range(rows):
            piece = clean[r, :count]
            lengths[r] = _moments(values[at + r * count : at + (r + 1) * count], piece, moments)
            _gather(piece, begin, flips, y[r, 0])
            if along.shape[0]:
                _project(piece, along[begin : begin + count], y[r, 1])
        if by_columns:
            for r in range(rows):
                sign = np.float32(1.0) if word(row + r) & np.uint64(1) else np.float32(-1.0)
                _add(clean[r, :count], sign, columns[0, (row + r) & (few - 1), begin : begin + count])
                _add_squares(clean[r, :count], squares[begin : begin + count])
            if across.shape[0]:
                theirs[:] = np.float32(0.0)
                theirs[:rows] = across[row : row + rows, :few]
                _spread(clean, theirs, begin, count, columns[1])
        if count == n:
            count_rows(y, lengths[:rows], row, products, linear)
        else:
            side = 0 if row == first else 1
            head[side] = y[0]
            tail[side] = lengths[0]
        at += rows * count


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
def _gather(values, begin, flips, buckets):  # type: ignore[no-untyped-def]
    """buckets[place mod 32] += sign of the place · value, for values that lie at ``begin …``."""
    lead = min(-begin % PROBES, values.size)
    for i in range(lead):
        buckets[(begin + i) % PROBES] += values[i] * flips[begin + i]
    left, signs = values[lead:], flips[begin + lead : begin + values.size]
    whole = left.size // PROBES * PROBES
    for i in range(0, whole, PROBES):
        for k in range(PROBES):
            buckets[k] += left[i + k] * signs[i + k]
    for i in range(whole, left.size):
        buckets[i - whole] += left[i] * signs[i]


@njit(cache=True, nogil=True)
def _add(values, sign, sums):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        sums[i] += values[i] * sign


@njit(cache=True, nogil=True)
def _add_squares(values, sums):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        sums[i] += values[i] * values[i]


@njit(cache=True, nogil=True)
def _spread(values, probes, begin, count, columns):  # type: ignore[no-untyped-def]
    """columns (probes, n) += probesᵀ · values, of eight rows that lie at ``begin …``; probes of no row are zero."""
    v0, v1, v2, v3, v4, v5, v6, v7 = (
        values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7],
    )  # fmt: skip
    for k in range(probes.shape[1]):
        p0, p1, p2, p3 = probes[0, k], probes[1, k], probes[2, k], probes[3, k]
        p4, p5, p6, p7 = probes[4, k], probes[5, k], probes[6, k], probes[7, k]
        line = columns[k, begin : begin + count]
        for i in range(count):
            line[i] += (
                ((v0[i] * p0 + v1[i] * p1) + (v2[i] * p2 + v3[i] * p3))
                + ((v4[i] * p4 + v5[i] * p5) + (v6[i] * p6 + v7[i] * p7))
            )  # fmt: skip


@njit(cache=True, nogil=True)
def count_columns(z, squares, out, count):  # type: ignore[no-untyped-def]
    """Add the products of columns (n, probes) at unit length to ``out``, and how many are not all zero to ``count``."""
    for j in range(squares.size):
        if squares[j] > 0.0:
            count[0] += 1.0
            scale = 1.0 / np.float64(squares[j])
            for a in range(out.shape[0]):
                left = z[j, a] * scale
                for b in range(out.shape[1]):
                    out[a, b] += left * z[j, b]


@njit(cache=True, nogil=True)
def combine(tokens, out):  # type: ignore[no-untyped-def]
    """Add random combinations of tokens (n, width) to ``out`` (width, 32)."""
    for t in range(tokens.shape[0]):
        bits = word(t + 7919)
        for i in range(tokens.shape[1]):
            for k in range(out.shape[1]):
                out[i, k] += tokens[t, i] if (bits >> np.uint64(k)) & np.uint64(1) else -tokens[t, i]


@njit(cache=True, nogil=True)
def orthonormal(vectors):  # type: ignore[no-untyped-def]
    """Make columns orthonormal, in place."""
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
