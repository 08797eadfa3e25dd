"""The uniform quantizer: the asked fidelity, the nearest point, and values that have none."""

from __future__ import annotations

import numpy as np
import pytest

from operators.capacity import entropy, excess, gaussian_rate, sqnr_db
from operators.errors import HilbertflowError
from operators.refine import Lattice, reconstruct
from operators.scales import ZERO, encode, scale_of
from operators.uniform import gaussian_mse, quantize, step_for


@pytest.mark.parametrize("asked", [3, 8, 14, 20, 30, 45])
def test_gaussian_rows_reach_the_asked_fidelity(asked: float) -> None:
    rows = np.random.default_rng(5).standard_normal((1024, 256)).astype(np.float32)
    codes, step = encode(rows.view(np.uint32), "F32"), step_for(asked)
    values = reconstruct(quantize(rows, codes, step), "F32", codes, Lattice(step), 0)
    reached = sqnr_db(float(np.square(rows).sum()), float(np.square(rows - values).sum()))
    assert reached == pytest.approx(asked, abs=0.05)


@pytest.mark.parametrize("asked", [3, 6, 10, 15, 20, 30])
def test_excess_over_the_bound_is_a_quarter_bit_at_most(asked: float) -> None:
    rows = np.random.default_rng(6).standard_normal((2048, 256)).astype(np.float32)
    rows /= rows.std()
    codes, step = np.full(len(rows), ZERO, np.uint32), step_for(asked)
    index = quantize(rows, codes, step)
    reached = sqnr_db(float(np.square(rows).sum()), float(np.square(rows - index * np.float32(step)).sum()))
    assert excess(entropy(index), reached) < 0.26


def test_index_is_the_nearest_point_and_far_values_stay_finite() -> None:
    rows = np.array([[1.0, -1.26, np.nan, np.inf], [3.4e38, -3.4e38, 0, 0], [1e-3, 0, 0, 0]], np.float32)
    codes = encode(rows.view(np.uint32), "F32")
    index = quantize(rows, codes, 0.25)
    steps = 0.25 * scale_of(codes)
    assert np.abs(index[0] * steps[0] - [1.0, -1.26, 0, 0]).max() < 0.53 * steps[0] and not index[0, 2:].any()
    assert np.isfinite(reconstruct(index, "F32", codes, Lattice(0.25), 0)).all()
    assert not quantize(np.zeros((1, 4), np.float32), np.zeros(1, np.uint16), 0.25).any()


def test_mse_model_matches_both_ends() -> None:
    assert gaussian_mse(0.0499) == pytest.approx(gaussian_mse(0.0501), rel=2e-2)
    assert gaussian_mse(50.0) == pytest.approx(1.0)


def test_fidelity_out_of_range() -> None:
    with pytest.raises(HilbertflowError, match="at most 90"):
        step_for(120)


def test_capacity() -> None:
    assert gaussian_rate(6.020599913) == pytest.approx(1.0) and gaussian_rate(-3) == 0
    assert entropy(np.array([1, 1, 2, 2])) == 1.0 and entropy(np.array([7, 7])) == 0.0 and entropy(np.empty(0)) == 0.0
    assert sqnr_db(100.0, 1.0) == pytest.approx(20) and sqnr_db(1.0, 0.0) == np.inf and sqnr_db(0.0, 1.0) == -np.inf
