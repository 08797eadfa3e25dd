"""Row codes: scales within a sixteenth of an octave, grains, and rows that have neither."""

from __future__ import annotations

import numpy as np
import pytest

from operators.floats import round_to
from operators.scales import GRAIN, encode, grains, loaded, row_steps, scale_of, stored


def test_scales_are_near_the_root_mean_square_over_all_of_float32() -> None:
    rng = np.random.default_rng(1)
    powers = np.arange(-140, 120, dtype=np.float64)
    rows = np.ldexp(rng.standard_normal((powers.size, 64)), powers[:, None].astype(int)).astype(np.float32)
    true = np.sqrt(np.square(rows.astype(np.float64)).mean(axis=1))
    ratio = np.log2(scale_of(encode(rows.view(np.uint32), "F32")) / true)
    assert np.abs(ratio).max() <= 2.5 / 8 + 1e-6
    alone = np.concatenate([encode(row[None].view(np.uint32), "F32") for row in rows])
    assert np.abs(np.log2(scale_of(alone) / true)).max() <= 1 / 128 + 1e-3


def test_rows_of_noise_share_a_scale_and_others_keep_their_own() -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((256, 256)).astype(np.float32)
    rows[100:150] *= 8
    codes = encode(rows.view(np.uint32), "F32")
    assert (
        len(np.unique(codes[:100])) <= 2
        and len(np.unique(codes % 8)) == 1
        and np.count_nonzero(np.diff(codes.astype(int))) < 32
    )
    assert np.abs(np.log2(scale_of(codes[100:150]).mean() / 8)) < 0.1


@pytest.mark.parametrize("deviation", [0.05, 0.0479, 1.0])
def test_a_plane_of_one_deviation_has_one_scale_wherever_that_lies(deviation: float) -> None:
    rows = np.random.default_rng(5).standard_normal((256, 256)).astype(np.float32) * np.float32(deviation)
    codes = encode(rows.view(np.uint32), "F32")
    assert np.count_nonzero(codes != np.median(codes)) <= 2
    assert abs(np.log2(np.median(scale_of(codes)) / deviation)) < 0.02


def test_stored_codes_come_back_plane_by_plane() -> None:
    rng = np.random.default_rng(3)
    codes = (8 * rng.integers(1, 1 << 16, (3, 64)) + rng.integers(0, 8, (3, 1))).astype(np.uint32)
    codes[rng.random(codes.shape) < 0.1] = 0
    np.testing.assert_array_equal(loaded(stored(codes)), codes)
    np.testing.assert_array_equal(loaded(stored(codes)[1:2]), codes[1:2])


def test_codes_do_not_depend_on_the_mathematical_library() -> None:
    border = np.float32(2.0) ** np.float32(0.5)
    rows = np.array([[1.0, 1.0], [border, border], [4.0, 4.0], [0.25, 0.25], [3.0, -3.0]], np.float32)
    alone = [int(encode(row[None].view(np.uint32), "F32")[0]) % GRAIN for row in rows]
    assert alone == [10240, 10272, 10368, 10112, 10342]
    codes = np.array([10240, 10304, 10208, 10241], np.uint32)
    assert scale_of(codes).tolist() == [1.0, 2.0, 0.7071067811865476, 1.0108892860517005]


def test_what_is_not_finite_does_not_count() -> None:
    rows = np.array([[np.nan, 2.0, np.inf, -2.0], [np.nan, np.inf, -np.inf, np.nan], [0.0, -0.0, 0, 0]], np.float32)
    assert (encode(rows.view(np.uint32), "F32") % GRAIN).tolist() == [10304, 0, 0]


@pytest.mark.parametrize(("narrow", "dropped"), [("BF16", 16), ("F16", 13)])
def test_grain_tells_rows_that_were_narrower_before(narrow: str, dropped: int) -> None:
    from operators.floats import to_float32

    rows = np.random.default_rng(2).standard_normal((2, 256)).astype(np.float32)
    rows[0] = to_float32(round_to(rows[0], narrow), narrow)
    assert grains(encode(rows.view(np.uint32), "F32")).tolist() == [dropped, 0]


def test_steps_are_never_subnormal_and_zero_rows_have_none() -> None:
    steps = row_steps(np.array([0, 704, 10240, 18432], np.uint32), 2.0**-10)
    assert steps[0] == 0 and steps[1] == 2.0**-100 and steps[2] == 2.0**-10 and np.isfinite(steps[3])
