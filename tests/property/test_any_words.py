"""Any words come back from any levels, whatever those levels say."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import exact, single, trellis, uniform
from operators.floats import FORMATS, dtype_info, from_ordered, round_to, to_float32, to_ordered
from operators.refine import Lattice, reconstruct, refine, refined
from operators.scales import encode

LOSSY = sorted(name for name, form in FORMATS.items() if form.lossy)
SHAPE = (8, 24)


@st.composite
def planes(draw: st.DrawFn, dtype: str) -> npt.NDArray[Any]:
    """Words: noise, or rows of numbers of one size with special values among them, or narrow rows, or constants."""
    form = dtype_info(dtype)
    kind, seed = draw(st.sampled_from(["noise", "rows", "narrow", "constant"])), draw(st.integers(0, 1 << 32))
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << (8 * form.width), SHAPE, dtype=f"u{form.width}")
    if kind == "constant":
        return np.full(SHAPE, words[0, 0])
    if kind != "noise":
        size = np.exp2(rng.integers(-150, 128, (SHAPE[0], 1)).astype(np.float64))
        with np.errstate(over="ignore"):
            words = round_to((rng.standard_normal(SHAPE) * size).astype(np.float32), dtype)
    if kind == "narrow":
        cut = words.dtype.type(draw(st.integers(0, max(form.mantissa, 1))))
        words = words >> cut << cut
    infinity, zero = form.top, form.sign
    for value in draw(
        st.lists(st.sampled_from([0, zero, 1, zero | 1, infinity, zero | infinity, infinity - 1, zero - 1]))
    ):
        words[rng.integers(SHAPE[0]), rng.integers(SHAPE[1])] = value
    if draw(st.booleans()):
        words[rng.integers(SHAPE[0])] = 0
    return words


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    reach = draw(st.sampled_from([uniform.REACH, trellis.REACH]))
    return Lattice(float(np.float32(draw(st.floats(1e-4, 2.0)))), reach, draw(st.integers(1, 6)))


@pytest.mark.parametrize("dtype", LOSSY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_words_any_levels(dtype: str, data: st.DataObject) -> None:
    """Cells of random numbers: nothing that a level says can keep the exact level from being exact."""
    words, lattice = data.draw(planes(dtype)), data.draw(lattices())
    level, codes = data.draw(st.integers(0, 3)), encode(words, dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    cells = rng.integers(*data.draw(st.sampled_from([(-3, 4), (-300, 300), (-(1 << 23), 1 << 23)])), SHAPE)
    symbols = exact.encode(words, dtype, cells, codes, lattice, level)
    assert symbols.dtype == words.dtype and symbols.shape == SHAPE
    np.testing.assert_array_equal(exact.decode(symbols, dtype, cells, codes, lattice, level), words)


@pytest.mark.parametrize("dtype", LOSSY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_prefix_decodes_and_the_last_is_exact(dtype: str, data: st.DataObject) -> None:
    words, lattice = data.draw(planes(dtype)), data.draw(lattices())
    codes, values = encode(words, dtype), to_float32(words, dtype)
    if lattice.reach > 1:
        states = data.draw(st.sampled_from([4, 16, 128]))
        base = trellis.quantize(values, codes, lattice.step, states)
        cells = trellis.index(base, states)
    else:
        cells = uniform.quantize(values, codes, lattice.step).astype(np.int32)
    read, refinements = cells.copy(), data.draw(st.integers(0, 3))
    assert np.isfinite(reconstruct(read, dtype, codes, lattice, 0)).all()
    for level in range(1, refinements + 1):
        symbols, cells = refine(values, dtype, codes, cells, lattice, level)
        read = refined(symbols, dtype, codes, read, lattice, level)
        assert np.isfinite(reconstruct(read, dtype, codes, lattice, level)).all()
    residual = exact.encode(words, dtype, cells, codes, lattice, refinements)
    np.testing.assert_array_equal(exact.decode(residual, dtype, read, codes, lattice, refinements), words)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("step", [0.3, 2.0, 8.0])
def test_rows_of_the_largest_numbers(dtype: str, step: float) -> None:
    """Their steps would be infinite, and zero times that is no number."""
    rng = np.random.default_rng(1)
    values = (rng.choice([-1, 1], SHAPE) * rng.uniform(0.5, 1, SHAPE) * 3.38e38).astype(np.float32)
    values[:, ::3] = 0
    words = round_to(values, dtype)
    lattice, codes, values = Lattice(step, 0.75, 1), encode(words, dtype), to_float32(words, dtype)
    cells = uniform.quantize(values, codes, step).astype(np.int32)
    for level in range(3):
        if level:
            _, cells = refine(values, dtype, codes, cells, lattice, level)
        assert np.isfinite(reconstruct(cells, dtype, codes, lattice, level)).all()
        residual = exact.encode(words, dtype, cells, codes, lattice, level)
        np.testing.assert_array_equal(exact.decode(residual, dtype, cells, codes, lattice, level), words)


@pytest.mark.parametrize("dtype", LOSSY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_single_level(dtype: str, data: st.DataObject) -> None:
    words = data.draw(planes(dtype))
    codes = encode(words, dtype)
    np.testing.assert_array_equal(single.decode(single.encode(words, dtype, codes), dtype, codes), words)


@pytest.mark.parametrize("dtype", LOSSY)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_is_a_bijection(dtype: str, data: st.DataObject) -> None:
    words = data.draw(planes(dtype))
    np.testing.assert_array_equal(from_ordered(to_ordered(words, dtype), dtype), words)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([1.0, 0.2, 0.05]), st.integers(1, 5))
def test_errors_fall_level_by_level(seed: int, step: float, fine_bits: int) -> None:
    values = np.random.default_rng(seed).standard_normal((16, 64)).astype(np.float32)
    codes, lattice = encode(values.view(np.uint32), "F32"), Lattice(step / 2, trellis.REACH, fine_bits)
    cells = trellis.index(trellis.quantize(values, codes, lattice.step, 8), 8)
    errors = [float(np.square(reconstruct(cells, "F32", codes, lattice, 0) - values).sum())]
    for level in (1, 2):
        _, cells = refine(values, "F32", codes, cells, lattice, level)
        errors.append(float(np.square(reconstruct(cells, "F32", codes, lattice, level) - values).sum()))
    assert errors[0] > errors[1] > errors[2]
