from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from operators import klt
from operators.errors import HilbertflowError
from operators.klt import AXIS, Klt


def rows(n: int, d: int, seed: int = 0, unit: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.exp(-np.arange(d) / (d / 4))[:, None]) + 0.3
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True) if unit else mixed).astype(np.float32)


def by_integers(transform: Klt, coefficients: np.ndarray) -> np.ndarray:
    """What inverse computes, in Python's integers of any size."""
    axes = transform.axes.astype(object) * (2 ** (AXIS - transform.bits.astype(object)))[:, None]
    sums = coefficients.astype(object) @ axes + transform.mean.astype(object) * 2**AXIS
    return np.array([[float(s) * 2.0 ** (-AXIS - transform.shift) for s in row] for row in sums], np.float32)


@pytest.mark.parametrize("unit", [False, True])
def test_inverse_is_the_same_in_any_order_and_batch(unit: bool) -> None:
    sample = rows(500, 48, unit=unit)
    transform = klt.fit(sample)
    assert transform.unit is unit
    coefficients = transform.forward(sample)
    whole = transform.inverse(coefficients)
    assert np.array_equal(whole, np.concatenate([transform.inverse(one[None]) for one in coefficients]))
    order = np.random.default_rng(1).permutation(transform.rank)
    turned = Klt(**{**transform.to_arrays(), "axes": transform.axes[order], "bits": transform.bits[order]},
                 shift=transform.shift, unit=unit)  # fmt: skip
    assert np.array_equal(whole, turned.inverse(coefficients[:, order]))


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_the_number_of_threads_and_the_kernel_of_the_matrix_product_change_nothing(threads: str) -> None:
    script = """
import sys, hashlib, numpy as np
from operators.klt import Klt
rng = np.random.default_rng(5)
axes = (rng.permutation(384)[:, None] == np.arange(384)) * 20000 + rng.integers(-400, 400, (384, 384))
made = Klt(rng.integers(-9999, 9999, 384, dtype=np.int32), axes.astype(np.int16), np.full(384, 15, np.uint8),
           np.ones(384, np.float32), np.ones(384, np.float32), 20, False)
digest = hashlib.sha256(made.inverse(rng.integers(-1 << 26, 1 << 26, (600, 384), dtype=np.int32)).tobytes())
digest.update(made.forward(np.ldexp(rng.integers(-1 << 20, 1 << 20, (600, 384)), -19).astype(np.float32)).tobytes())
print(digest.hexdigest())
"""
    chosen = {"OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": "Haswell" if threads == "3" else ""}
    environment = {k: v for k, v in (os.environ | chosen).items() if v}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == GOLDEN


GOLDEN = "e7acde5d6d74d62bba6443bf5420f329356e00051ece762a2fc4d6156b554a46"
"""Fixed for ever: archives depend on it."""


def test_inverse_is_what_integers_say_even_at_the_limits() -> None:
    transform = klt.fit(rows(300, 32))
    extreme = np.random.default_rng(2).choice([-(2**31), 2**31 - 1, 0, 12345], (20, transform.rank)).astype(np.int32)
    clipped = np.clip(extreme, -transform.limit, transform.limit)
    assert np.array_equal(transform.inverse(extreme), by_integers(transform, clipped))


@pytest.mark.parametrize("dim", [1, 2, 3, 384, 1000, klt.MOST_DIM])
def test_no_sum_can_leave_the_exact_range(dim: int) -> None:
    made = Klt(np.zeros(dim, np.int32), np.zeros((1, dim), np.int16), np.zeros(1, np.uint8), np.ones(1, np.float32),
               np.ones(1, np.float32), 0, False)  # fmt: skip
    assert (dim + 1) * made.limit * 2**AXIS <= 2**53


def test_the_transform_compacts_and_comes_back() -> None:
    sample = rows(4000, 64)
    transform = klt.fit(sample, noise=1e-3)
    coefficients = transform.forward(sample)
    back = transform.inverse(coefficients)
    spread = np.sqrt(np.mean((sample - sample.mean(0)) ** 2))
    assert np.sqrt(np.mean((back - sample) ** 2)) < 0.005 * spread
    real = coefficients / 2.0**transform.shift
    assert np.allclose(real.std(axis=0), transform.deviation, rtol=0.05, atol=0.01 * spread)
    correlation = np.corrcoef(real[:, :20].T) - np.eye(20)
    assert np.abs(correlation).max() < 0.05
    half = transform.inverse(coefficients[:, :16])
    assert np.mean((half - sample) ** 2) < 0.3 * spread**2


@pytest.mark.parametrize("sample", [
    np.zeros((1, 5), np.float32),
    np.ones((7, 1), np.float32),
    np.full((3, 4), -2.5e20, np.float32),
    np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32) * np.float32(1e-30),
    np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.float32(1e30),
])  # fmt: skip
def test_samples_of_any_size_and_scale(sample: np.ndarray) -> None:
    transform = klt.fit(sample)
    back = transform.inverse(transform.forward(sample))
    assert np.allclose(back, sample, rtol=0, atol=0.05 * np.abs(sample).max())


def test_stored_arrays_give_the_transform_back_and_damage_is_seen() -> None:
    transform = klt.fit(rows(200, 16))
    again = Klt.from_arrays(transform.to_arrays(), transform.shift, transform.unit)
    assert again.hash == transform.hash
    nothing = transform.deviation * np.nan
    for broken in ({"mean": transform.mean[:-1]}, {"bits": transform.bits + 9}, {"deviation": nothing}):
        with pytest.raises(HilbertflowError, match="malformed"):
            Klt.from_arrays(transform.to_arrays() | broken, transform.shift, transform.unit)


def test_bad_samples_and_rows_raise() -> None:
    with pytest.raises(HilbertflowError, match="NaN"):
        klt.fit(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(HilbertflowError, match="sample of shape"):
        klt.fit(np.zeros((0, 3), np.float32))
    with pytest.raises(HilbertflowError, match="rows of 16 values"):
        klt.fit(rows(20, 16)).forward(np.zeros((1, 15), np.float32))
