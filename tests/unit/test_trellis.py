"""The trellis: distance to the bound, the asked fidelity, and the decoder's walk against a plain one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from operators import refine, scales, trellis, trellis_points
from operators.capacity import entropy, excess, sqnr_db
from operators.errors import HilbertflowError
from operators.floats import to_float32

# What lies between an infinite trellis and these is granular gain; the values are those of the literature plus 0.005.
ALLOWED = {4: 0.095, 8: 0.079, 16: 0.070, 32: 0.058, 64: 0.050, 128: 0.044, 256: 0.040}


def gaussian(rows: int) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(9).standard_normal((rows, 256)).astype(np.float32)
    return values / np.float32(values.std())


def coded(values: npt.NDArray[np.float32], asked: float, states: int) -> tuple[float, float]:
    """Entropy of the symbols and decibels reached, rows taken as they are."""
    codes, step = np.full(len(values), scales.ZERO, np.uint32), trellis.step_for(asked, states)
    symbols = trellis.quantize(values, codes, step, states)
    back = trellis.index(symbols, states).astype(np.float32) * scales.row_steps(codes, step)[:, None]
    return entropy(symbols), sqnr_db(float(np.square(values).sum()), float(np.square(values - back).sum()))


@pytest.mark.parametrize("states", trellis.POLYNOMIALS)
@pytest.mark.parametrize("asked", [3.0, 10.0, 20.0, 30.0])
def test_excess_over_the_bound(states: int, asked: float) -> None:
    bits, reached = coded(gaussian(2048 if states <= 32 else 512), asked, states)
    assert reached == pytest.approx(asked, abs=0.08)
    assert excess(bits, reached) < ALLOWED[states]


@pytest.mark.parametrize("asked", [2.2, 4.0, 8.0, 14.0])
def test_points_for_heavy_tails(asked: float) -> None:
    """They reach what is asked of a Laplacian and take fewer bits there than those for a Gaussian."""
    values = np.random.default_rng(11).laplace(size=(1024, 256)).astype(np.float32)
    values /= np.float32(values.std())
    codes = np.full(len(values), scales.ZERO, np.uint32)
    over = {}
    for tails in trellis_points.POINTS:
        step = trellis.step_for(asked, 32, tails)
        symbols = trellis.quantize(values, codes, step, 32, tails)
        lattice = refine.Lattice(step, trellis.REACH, inset=trellis_points.inset_for(step, tails))
        back = refine.reconstruct(trellis.index(symbols, 32), "F32", codes, lattice, 0)
        reached = sqnr_db(float(np.square(values).sum()), float(np.square(values - back).sum()))
        over[tails] = excess(entropy(symbols), reached)
        if tails == "laplace":
            assert reached == pytest.approx(asked, abs=0.06)
    assert over["laplace"] < over["gaussian"] - (0.04 if asked < 5 else 0.008), over


def test_more_states_spend_less() -> None:
    values = gaussian(1024)
    spent = [excess(*coded(values, 20.0, states)) for states in (4, 8, 16, 32, 64)]
    assert spent == sorted(spent, reverse=True)


@pytest.mark.parametrize("states", trellis.POLYNOMIALS)
def test_decoder_walks_the_machine(states: int) -> None:
    """Against the definition: the parity check of Ungerboeck's code over the subsets that a lane's points lie in."""
    symbols = np.random.default_rng(1).integers(-40, 40, (8, 256)).astype(np.int16)
    index = trellis.index(symbols, states).reshape(-1, 32)
    h0, h1 = trellis.POLYNOMIALS[states]
    low = (index % 4 == 3).astype(int)  # points -(4k + 1): the second half of the states
    k = np.where(low, (-index - 1) // 4, (index - 1) // 4)
    np.testing.assert_array_equal(k, symbols.reshape(-1, 32))
    high = (k & 1) ^ low
    memory = states.bit_length() - 1
    for t in range(memory, len(index)):
        check = sum((h0 >> i & 1) * low[t - i] + (h1 >> i & 1) * high[t - i] for i in range(memory + 1))
        assert not (check & 1).any()


def test_viterbi_finds_the_best_path() -> None:
    """One lane of a short plane against all paths."""
    rng, step, states = np.random.default_rng(4), trellis.step_for(12.0, 4), 4
    values = np.zeros((1, 192), np.float32)  # 6 turns of 32 lanes
    values[0, ::32] = rng.standard_normal(6)
    codes = np.array([scales.ZERO], np.uint32)
    rate = trellis_points.cost(step, "gaussian").rate
    u = (values[0, ::32] / np.float32(2 * step)).astype(np.float64)

    def cost(symbols: npt.NDArray[np.int64]) -> float:
        plane = np.zeros((1, 192), np.int16)
        plane[0, ::32] = symbols
        points = trellis.index(plane, states)[0, ::32] / 2
        return float((np.square(u - points) + rate[symbols + (len(rate) - 1) // 2]).sum())

    found = cost(trellis.quantize(values, codes, step, states)[0, ::32].astype(np.int64))
    around = np.rint(np.abs(u) / 2).astype(int).max() + 1
    grid = np.stack(np.meshgrid(*[np.arange(-around, around + 1)] * 6, indexing="ij"), -1).reshape(-1, 6)
    planes = np.zeros((len(grid), 6, 32), np.int16)
    planes[:, :, 0] = grid
    points = np.stack([trellis.index(p, states)[:, 0] for p in planes]) / 2
    best = (np.square(u - points) + rate[grid + (len(rate) - 1) // 2]).sum(axis=1).min()
    assert found == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 16), (5, 384)])
def test_any_shape(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    codes, step = scales.encode(values.view(np.uint32), "F32"), trellis.step_for(15.0, 8)
    back = trellis.index(trellis.quantize(values, codes, step, 8), 8) * scales.row_steps(codes, step)[:, None]
    assert back.shape == shape and np.abs(back - values).max() < 4 * step * scales.scale_of(codes).max()


def test_values_without_a_point() -> None:
    values = np.zeros((2, 64), np.float32)
    values[0, :4] = [np.nan, np.inf, -np.inf, 3e38]
    codes = scales.encode(values.view(np.uint32), "F32")
    symbols = trellis.quantize(values, codes, 0.1, 8)
    assert not symbols[1].any()  # a row of zeros costs nothing
    assert np.abs(to_float32(values.view(np.uint32), "F32")[0, 3]) > 0 and symbols[0, 3] > 0


def test_same_symbols_in_other_threads_and_strides() -> None:
    from concurrent.futures import ThreadPoolExecutor

    values = gaussian(64)
    codes = np.full(64, scales.ZERO, np.uint32)
    here = trellis.quantize(values, codes, 0.1, 16)
    with ThreadPoolExecutor(3) as pool:
        there = list(pool.map(lambda _: trellis.quantize(np.asfortranarray(values), codes, 0.1, 16), range(3)))
    assert all(np.array_equal(here, other) for other in there)


def test_bad_options() -> None:
    with pytest.raises(HilbertflowError, match="12 states"):
        trellis.step_for(20.0, 12)
    with pytest.raises(HilbertflowError, match="2 to 90"):
        trellis.step_for(1.0, 8)
