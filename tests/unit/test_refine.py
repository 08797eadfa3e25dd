"""Refinements: cells nest, errors fall, decoding mirrors encoding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from operators import trellis, uniform
from operators.floats import round_to, to_float32
from operators.refine import NONE, Lattice, reconstruct, refine, refined, rows_of
from operators.scales import encode

F32 = npt.NDArray[np.float32]


def rows(dtype: str, spread: float = 1.0) -> tuple[F32, npt.NDArray[np.uint16]]:
    """Gaussian rows of various scales, as the format has them, and their codes."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((64, 256)) * np.exp(rng.standard_normal((64, 1)) * spread) * 0.05
    words = round_to(values.astype(np.float32), dtype)
    return to_float32(words, dtype), encode(words, dtype)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"])
@pytest.mark.parametrize("method", ["uniform", "trellis"])
def test_decoder_mirrors_encoder_and_errors_fall(dtype: str, method: str) -> None:
    values, codes = rows(dtype)
    if method == "trellis":
        lattice = Lattice(trellis.step_for(14.0, 8), trellis.REACH, 3)
        cells = trellis.index(trellis.quantize(values, codes, lattice.step, 8), 8)
    else:
        lattice = Lattice(uniform.step_for(14.0), uniform.REACH, 3)
        cells = uniform.quantize(values, codes, lattice.step).astype(np.int32)
    read, errors = cells, [np.square(reconstruct(cells, dtype, codes, lattice, 0) - values).sum()]
    for level in (1, 2, 3):
        symbols, cells = refine(values, dtype, codes, cells, lattice, level)
        read = refined(symbols, dtype, codes, read, lattice, level)
        np.testing.assert_array_equal(read, cells)
        errors.append(np.square(reconstruct(cells, dtype, codes, lattice, level) - values).sum())
    assert all(b <= a for a, b in pairwise(errors))
    if dtype in ("F32", "F16"):
        assert errors[0] > 20 * errors[1] > 400 * errors[2]


def test_a_cell_holds_its_value() -> None:
    values, codes = rows("F32")
    lattice = Lattice(0.3, uniform.REACH, 4)
    cells = uniform.quantize(values, codes, lattice.step).astype(np.int32)
    _, cells = refine(values, "F32", codes, cells, lattice, 1)
    width = rows_of(codes, "F32", lattice, 1).widths[:, None].astype(np.float64)
    assert ((cells * width <= values) & (values < (cells + 1) * width)).all()
    assert set(np.frexp(width)[0].ravel()) == {0.5}


def test_rows_of_one_ratio_lie_together() -> None:
    values, codes = rows("F32")
    lattice = Lattice(0.1, trellis.REACH, 3)
    derived = rows_of(codes, "F32", lattice, 1)
    assert sorted(derived.order) == list(range(len(values)))
    stored = derived.ratios[derived.order]
    assert len(np.unique(stored)) == 1 + np.count_nonzero(np.diff(stored)) <= 8


def test_formats_coarser_than_the_lattice_have_no_cells() -> None:
    values, codes = rows("F8_E4M3")
    lattice = Lattice(trellis.step_for(26.0, 8), trellis.REACH, 3)
    assert (rows_of(codes, "F8_E4M3", lattice, 1).exponents == NONE).all()
    index = np.arange(values.size, dtype=np.int32).reshape(values.shape)
    symbols, cells = refine(values, "F8_E4M3", codes, index, lattice, 1)
    assert not symbols.any() and np.array_equal(cells, index)


def test_zeros_stay_zeros_and_zero_rows_come_last() -> None:
    values, _ = rows("F32")
    values[:, ::3] = 0
    values[[3, 60]] = 0
    values[5, 0] = -0.0
    codes = encode(values.view(np.uint32), "F32")
    lattice = Lattice(0.3, uniform.REACH, 3)
    cells = uniform.quantize(values, codes, lattice.step).astype(np.int32)
    for level in (1, 2):
        symbols, cells = refine(values, "F32", codes, cells, lattice, level)
        assert not reconstruct(cells, "F32", codes, lattice, level)[values == 0].any()
        assert rows_of(codes, "F32", lattice, level).order[-2:].tolist() == [3, 60] and not symbols[-2:].any()


def test_no_level_is_infinite() -> None:
    values = np.full((1, 64), 3.4e38, np.float32)
    codes = encode(values.view(np.uint32), "F32")
    lattice = Lattice(0.4, trellis.REACH, 2)
    cells = trellis.index(trellis.quantize(values, codes, lattice.step, 8), 8)
    assert np.isfinite(reconstruct(cells, "F32", codes, lattice, 0)).all()
    _, cells = refine(values, "F32", codes, cells, lattice, 1)
    assert np.isfinite(reconstruct(cells, "F32", codes, lattice, 1)).all()
