"""Formats against ml_dtypes and NumPy, over every word of the small ones."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from operators.errors import HilbertflowError
from operators.floats import FORMATS, bits_view, dtype_info, from_ordered, round_to, to_float32, to_ordered

PEERS: dict[str, Any] = {
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
SPECIAL = np.array(
    [0, 0x80000000, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF],
    np.uint32,
)


def every(dtype: str) -> npt.NDArray[Any]:
    form = dtype_info(dtype)
    return np.arange(1 << (8 * form.width), dtype=np.int64).astype(f"u{form.width}")


def float32_words() -> npt.NDArray[np.uint32]:
    """Random words, values near each format's borders, and the special ones."""
    rng = np.random.default_rng(3)
    near = [to_float32(every(d)[::7], d).view(np.uint32) for d in PEERS]
    nudged = [w + np.uint32(k) for w in near for k in (0x7FFFFFFF, 0, 1, 0x0FFF, 0x1000, 0x1001, 0x8000, 0x80000)]
    return np.concatenate([rng.integers(0, 1 << 32, 200_000, dtype=np.uint32), *nudged, SPECIAL])


@pytest.mark.parametrize("dtype", PEERS)
def test_widening_is_exact(dtype: str) -> None:
    words = every(dtype)
    ours, theirs = to_float32(words, dtype), words.view(PEERS[dtype]).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    finite = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours[finite].view(np.uint32), theirs[finite].view(np.uint32))


@pytest.mark.parametrize("dtype", PEERS)
def test_rounding_is_to_nearest_even(dtype: str) -> None:
    values = float32_words().view(np.float32)
    with np.errstate(all="ignore"):
        theirs = values.astype(PEERS[dtype]).view(f"u{dtype_info(dtype).width}")
    ours, nan = round_to(values, dtype), np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(to_float32(ours[nan], dtype)).all()


@pytest.mark.parametrize("dtype", PEERS)
def test_rounding_undoes_widening(dtype: str) -> None:
    words = every(dtype)
    number = ~np.isnan(to_float32(words, dtype))
    np.testing.assert_array_equal(round_to(to_float32(words, dtype), dtype)[number], words[number])


@pytest.mark.parametrize("dtype", [*PEERS, "F32"])
def test_ordered_words_ascend_with_the_value(dtype: str) -> None:
    words = float32_words() if dtype == "F32" else every(dtype)
    ordered = to_ordered(words, dtype)
    np.testing.assert_array_equal(from_ordered(ordered, dtype), words)
    values = to_float32(words, dtype)
    finite = np.isfinite(values)
    assert (np.diff(values[finite][np.argsort(ordered[finite], kind="stable")].astype(np.float64)) >= 0).all()
    zero = np.zeros(1, words.dtype)
    minus = zero | zero.dtype.type(dtype_info(dtype).sign)
    assert int(to_ordered(zero, dtype)[0]) - int(to_ordered(minus, dtype)[0]) == 1


def test_words_are_views_of_the_bytes() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    words = bits_view(array, "F32")
    assert words.dtype == np.uint32 and np.shares_memory(words, array)
    assert bits_view(np.arange(3, dtype=np.int64), "I64").size == 6
    odd = np.zeros(9, np.uint8)[1:]
    np.testing.assert_array_equal(bits_view(odd, "F32"), [0, 0])
    with pytest.raises(HilbertflowError, match="whole number"):
        bits_view(np.zeros(3, np.uint8), "BF16")


def test_what_is_not_a_lossy_format_says_so() -> None:
    assert {name for name, form in FORMATS.items() if form.lossy} == {"F32", *PEERS}
    with pytest.raises(HilbertflowError, match="not known"):
        dtype_info("F4")
    with pytest.raises(HilbertflowError, match="no lossy levels"):
        to_float32(np.zeros(1, np.uint32), "I32")
    with pytest.raises(HilbertflowError, match="cannot hold"):
        round_to(np.zeros(1, np.float32), "F64")
