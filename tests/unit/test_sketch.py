"""Sketches of matrices: what leaves them as they are, what they tell, and that pieces add up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from operators.sketch import (
    ANCHORED,
    FIXED,
    Matrix,
    Sums,
    anchors,
    centred,
    column_products,
    linear_sketch,
    row_products,
    signs,
    sums,
)

F32 = np.float32


def rows_of(values: np.ndarray, anchor: np.ndarray | None = None) -> Sums:
    return sums(Matrix(*values.shape, anchored_rows=anchor is not None), values, 0, anchor)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    above = np.tril_indices(len(a), -1)
    return float(a[above] @ b[above] / np.linalg.norm(a[above]) / np.linalg.norm(b[above]))


def matrix(seed: int, rows: int = 300, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(F32)


@pytest.mark.parametrize("cuts", [(1,), (95, 96, 97), (7, 5000, 5001, 28_000)])
def test_pieces_add_up_to_the_whole(cuts: tuple[int, ...]) -> None:
    values = matrix(1)
    anchor = anchors(matrix(2, 500))
    kind = Matrix(300, 96, anchored_rows=True)
    whole, added = sums(kind, values, 0, anchor), Sums(kind)
    borders = [0, *cuts, values.size]
    for start, stop in itertools.pairwise(borders):
        added.add(sums(kind, values.reshape(-1)[start:stop], start, anchor))
    added.close()
    for name in ("moments", "rows", "linear", "columns", "squares"):
        np.testing.assert_allclose(getattr(added, name), getattr(whole, name), rtol=1e-4, atol=2e-3)
    assert not added.broken


def test_rows_may_come_in_any_order_sign_and_scale() -> None:
    values, random = matrix(1), np.random.default_rng(3)
    factors = random.uniform(0.5, 2, (300, 1)) * random.choice([-1, 1], (300, 1))
    other = rows_of((values * factors)[random.permutation(300)].astype(F32))
    np.testing.assert_allclose(row_products(other, FIXED), row_products(rows_of(values), FIXED), atol=2e-2)


def test_columns_too() -> None:
    values, random = matrix(1), np.random.default_rng(3)
    own, count = column_products(rows_of(values), FIXED)
    other, _ = column_products(
        rows_of((values * random.uniform(0.5, 2, 96))[:, random.permutation(96)].astype(F32)), FIXED
    )
    assert count == 96
    np.testing.assert_allclose(other, own, atol=1e-2)


def test_anchored_products_turn_with_the_residual_stream() -> None:
    values, tokens, random = matrix(1), matrix(2, 500), np.random.default_rng(4)
    turn = np.linalg.qr(random.standard_normal((96, 96)))[0].astype(F32)
    own = row_products(rows_of(values, anchors(tokens)), ANCHORED)
    other = row_products(rows_of(values @ turn, anchors(tokens @ turn)), ANCHORED)
    np.testing.assert_allclose(other, own, atol=1e-2)
    assert abs(cosine(row_products(rows_of(values @ turn), FIXED), row_products(rows_of(values), FIXED))) < 0.9


def test_independent_matrices_are_noise_and_noisy_copies_are_not() -> None:
    def products(values: np.ndarray) -> np.ndarray:
        return centred(row_products(rows_of(values), FIXED), len(values), 96, FIXED)

    near = matrix(1) + F32(0.3) * matrix(5)
    assert abs(cosine(products(matrix(1)), products(matrix(6)))) < 0.2
    assert cosine(products(matrix(1)), products(near)) > 0.75


def test_the_linear_sketch_tells_the_distance() -> None:
    a, b = matrix(1, 600, 200), matrix(1, 600, 200) + F32(0.01) * matrix(7, 600, 200)
    told = np.sqrt(np.square(linear_sketch(rows_of(a)) - linear_sketch(rows_of(b))).mean())
    assert told == pytest.approx(float(np.linalg.norm(a - b)), rel=0.35)


def test_moments_and_what_is_not_finite() -> None:
    values = matrix(8, 40, 30)
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1] = 0
    count, total, square, *_, zeros, ties, largest = rows_of(values).moments
    finite = values[np.isfinite(values)]
    assert (count, zeros, ties, largest) == (1200, 30, 0, pytest.approx(float(np.abs(finite).max())))
    assert (total, square) == (pytest.approx(float(finite.sum()), abs=1e-3), pytest.approx(float((finite**2).sum())))


def test_wide_matrices_keep_fewer_probes_of_their_columns() -> None:
    values = matrix(9, 16, 40_000)
    products, count = column_products(rows_of(values), FIXED)
    assert products.shape == (8, 8) and count == 40_000
    assert np.abs(centred(products, count, 16, FIXED)).max() < 0.05 * count


@pytest.mark.parametrize("columns", [96, 101, 4000, 9000])
def test_buckets_tell_what_the_probes_would(columns: int) -> None:
    """All sums against the plain products with the explicit probes."""
    values = matrix(10, 37, columns)
    found, wide = rows_of(values), values.astype(np.float64)
    y = wide @ signs(columns) / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(row_products(found, FIXED), y.T @ y, rtol=1e-4, atol=1e-3 * len(y))
    z = signs(37).T[: found.matrix.column_probes] @ wide / np.linalg.norm(wide, axis=0)
    np.testing.assert_allclose(column_products(found, FIXED)[0], z @ z.T, rtol=1e-4, atol=1e-4 * columns)


def test_probes_are_signs_and_those_of_a_shorter_axis_are_a_prefix() -> None:
    assert set(np.unique(signs(50))) == {-1, 1}
    np.testing.assert_array_equal(signs(50)[:20], signs(20))
    gram = anchors(matrix(2, 500)).astype(np.float64)
    np.testing.assert_allclose(gram.T @ gram, np.eye(32), atol=1e-5)
