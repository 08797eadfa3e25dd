"""Differences to a parent: any words come back, and small steps cost less than their XOR."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import delta, rans
from operators.errors import HilbertflowError
from operators.floats import FORMATS, bits_view

SIDE = 64


def step(parent: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """A training step: rows move by their own amount, some not at all."""
    amount = rate * rng.choice([0.0, 0.5, 1.0, 2.0], size=(len(parent), 1))
    return (parent + amount * rng.normal(size=parent.shape)).astype(parent.dtype)


@settings(max_examples=120, deadline=None)
@given(
    dtype=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 1 << 30), wild=st.booleans(), grand=st.booleans(),
    rows=st.integers(1, 9), side=st.integers(1, 17),
)  # fmt: skip
def test_any_words_come_back(dtype: str, seed: int, wild: bool, grand: bool, rows: int, side: int) -> None:
    """NaN payloads, infinities, subnormals and zeros of both signs, in child, parent and grandparent."""
    rng, word = np.random.default_rng(seed), f"u{FORMATS[dtype].word}"
    top = np.iinfo(word).max

    def words() -> np.ndarray:
        return rng.integers(0, top, (rows, side), word, endpoint=True)

    bits = words()
    parent = words() if wild else (bits + rng.integers(0, 3, bits.shape).astype(word)).astype(word)
    before = words() if grand else None
    symbols, codes = delta.encode(bits, parent, before, dtype)
    assert symbols.dtype == bits.dtype and symbols.shape == bits.shape and codes.shape == (2 * rows,)
    back = delta.decode(symbols, codes, parent, before, dtype)
    assert back.tobytes() == bits.tobytes()


@pytest.mark.parametrize(("dtype", "kind", "share"), [("F32", np.float32, 0.9), ("BF16", ml_dtypes.bfloat16, 0.7)])
def test_a_step_costs_less_than_its_xor(dtype: str, kind: type, share: float) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(4 * SIDE, 4 * SIDE)) * 0.05).astype(np.float32)
    child = step(weights, 3e-5, rng)
    bits, parent = (bits_view(x.astype(kind), dtype).reshape(x.shape) for x in (child, weights))
    symbols, codes = delta.encode(bits, parent, None, dtype)
    coded = len(rans.encode(symbols)) + len(rans.encode((codes[None] // 8).astype(np.int16)))
    assert coded < share * len(rans.encode(bits ^ parent))


def test_the_parents_own_step_is_gone_on_with() -> None:
    rng = np.random.default_rng(1)
    before = (rng.normal(size=(256, 256)) * 0.05).astype(np.float32)
    move = 3e-5 * rng.normal(size=before.shape).astype(np.float32)
    parent = before + move
    child = parent + np.float32(0.75) * move + np.float32(3e-6) * rng.normal(size=move.shape).astype(np.float32)
    words = [bits_view(x, "F32").reshape(x.shape) for x in (child, parent, before)]
    told, untold = delta.encode(*words, "F32"), delta.encode(words[0], words[1], None, "F32")
    assert set((told[1][256:] // 8).tolist()) <= {11, 12, 13}  # 3/4 in sixteenths, for every row
    assert len(rans.encode(told[0])) < 0.85 * len(rans.encode(untold[0]))


def test_nothing_changed_costs_nothing_and_damaged_codes_are_told() -> None:
    bits = np.arange(SIDE * SIDE, dtype=np.uint32).reshape(SIDE, SIDE)
    symbols, codes = delta.encode(bits, bits, None, "F32")
    assert not symbols.any() and not codes.any()
    with pytest.raises(HilbertflowError, match="codes of rows"):
        delta.decode(symbols, codes + np.uint32(33 * 8), bits, None, "F32")
