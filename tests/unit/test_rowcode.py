from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from operators import rowcode, rowtrellis
from operators.errors import HilbertflowError
from operators.rowcode import RowCode


def rows(n: int, d: int = 48, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.exp(-np.arange(d) / (d / 3))[:, None]
    made = np.random.default_rng(seed).normal(size=(n, d)) @ turn
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def entropy(symbols: np.ndarray) -> float:
    """Bits a row, each column with its own ideal table."""
    total = 0.0
    for column in symbols.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        total -= float((share * np.log2(share)).sum())
    return total


CODE = rowcode.fit(rows(3000))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_every_prefix_decodes_errors_fall_and_the_last_is_exact() -> None:
    vectors = rows(200, seed=1)
    levels = CODE.encode(vectors)
    assert {name: levels[name].shape[1] for name in levels} == {name: CODE.width(name) for name in CODE.names}
    prefixes = [{name: levels[name] for name in CODE.names[: depth + 1]} for depth in range(3)]
    errors = [np.mean((CODE.decode(prefix) - vectors) ** 2) for prefix in prefixes]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert same(CODE.decode(levels), vectors)


def test_levels_cost_what_was_asked_for() -> None:
    levels = CODE.encode(rows(3000, seed=2))
    spent = np.cumsum([entropy(levels[f"level{k}"]) for k in range(3)]) / 48
    assert np.allclose(spent, rowcode.BITS, rtol=0.06)


def test_a_row_is_coded_alike_in_any_company() -> None:
    vectors = rows(192, seed=3)
    whole = CODE.encode(vectors)
    parts = [CODE.encode(vectors[i : i + 64]) for i in range(0, 192, 64)]
    assert all(np.array_equal(whole[k], np.concatenate([p[k] for p in parts])) for k in CODE.names)
    alone = CODE.encode(vectors[77:78])
    assert all(np.array_equal(whole[k][77:78], alone[k]) for k in CODE.names[:3])


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 70), st.just(48)), elements=finite | st.just(-0.0)))
def test_rows_unlike_any_of_the_sample_are_exact_too(vectors: np.ndarray) -> None:
    assert same(CODE.decode(CODE.encode(vectors)), vectors)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.sampled_from([4, 8, 32]))
def test_codes_of_small_and_strange_samples(data: st.DataObject, n: int, d: int, states: int) -> None:
    sample = data.draw(hnp.arrays(np.float32, (n, d), elements=finite))
    code = rowcode.fit(sample, bits=(1.0, 3.0), states=states, block=16)
    again = RowCode.from_arrays(code.to_arrays(), code.attributes())
    assert again.hash == code.hash
    assert same(again.decode(code.encode(sample)), sample)


def test_values_on_a_grid_leave_nothing_to_the_exact_level() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 20)).astype(np.float32) / 4
    code = rowcode.fit(pixels)
    levels = code.encode(pixels)
    assert code.cell == 2 and (code.low, code.high) == (0, 255) and not levels["exact"].any()
    assert same(code.decode(levels), pixels)
    strange = pixels[:100].copy()
    strange[50] += np.float32(0.1)
    strange[51, 0] = -1000
    assert same(code.decode(code.encode(strange)), strange)


def test_cells_of_a_grid_lie_in_the_order_of_what_is_known() -> None:
    rng = np.random.default_rng(1)
    pixels = np.maximum(rng.normal(size=(600, 6)) @ rng.normal(size=(6, 60)) * 30, 0).round().astype(np.float32)
    code = rowcode.fit(pixels, bits=(0.5, 1.0))
    levels = code.encode(pixels)
    black = levels["cells"][:64].reshape(-1)[: 64 * 15]  # the darkest quarter of the first block
    assert np.abs(black).mean() < 0.5 * np.abs(levels["cells"][:64]).mean()


def test_lists_pay_and_are_needed() -> None:
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(20, 48)).astype(np.float32)
    mine = rng.integers(0, 20, 3000)
    vectors = (centres[mine] + 0.3 * rng.normal(size=(3000, 48))).astype(np.float32)
    plain = rowcode.fit(vectors, bits=(1.5,))
    listed = rowcode.fit(vectors, bits=(1.5,), centroids=centres, lists=mine)
    levels = listed.encode(vectors, mine)
    assert same(listed.decode(levels, mine), vectors)

    def error(code: RowCode, which: np.ndarray | None) -> float:
        return float(np.mean((code.decode({"level0": code.encode(vectors, which)["level0"]}, which) - vectors) ** 2))

    assert error(listed, mine) < 0.7 * error(plain, None)
    with pytest.raises(HilbertflowError, match="list of each row"):
        listed.encode(vectors)
    with pytest.raises(HilbertflowError, match="list of each row"):
        plain.encode(vectors, mine)


def test_more_states_come_nearer_to_the_bound() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float32)
    excess = []
    for states in (4, 32):
        plan = rowtrellis.allocate(np.ones(384), 0.1, states)
        symbols = rowtrellis.quantize(values, plan, states)
        points = rowtrellis.index(symbols, states) * (plan.spacing / 2)
        excess.append(entropy(symbols.reshape(-1, 1)) - 0.5 * np.log2(1 / np.mean((points - values) ** 2)))
    assert 0.03 < excess[1] < 0.07 < excess[0] < 0.12


def test_coefficients_of_small_variance_are_left_out() -> None:
    plan = rowtrellis.allocate(np.array([1.0, 0.5, 0.01]), 0.05, 8)
    assert (plan.spacing > 0).tolist() == [True, True, False]
    assert not rowtrellis.quantize(np.ones((5, 3), np.float32), plan, 8)[:, 2].any()


def test_a_level_finer_than_its_symbols_reach_loses_nothing() -> None:
    """Twenty bits a value are not to be had in symbols of sixteen: the level is as fine as it can be."""
    vectors = np.random.default_rng(0).normal(size=(2000, 48)).astype(np.float32)
    code = rowcode.fit(vectors, (1.0, 20.0))
    levels = code.encode(vectors)
    lossy = code.decode({name: levels[name] for name in ("level0", "level1")})
    assert np.mean(np.square(lossy - vectors)) < 1e-6
    assert np.array_equal(code.decode(levels), vectors)


def test_bad_input_is_named() -> None:
    vectors = rows(70)
    vectors[66, 5] = np.inf
    with pytest.raises(HilbertflowError, match="row 66"):
        CODE.encode(vectors)
    with pytest.raises(HilbertflowError, match="ascending"):
        rowcode.fit(rows(10), bits=(2.0, 1.0))
    levels = CODE.encode(rows(3))
    with pytest.raises(HilbertflowError, match="no gaps"):
        CODE.decode({k: levels[k] for k in ("level0", "level2")})
    with pytest.raises(HilbertflowError, match="neither"):
        CODE.decode({k: levels[k] for k in CODE.names[:4]})
    with pytest.raises(HilbertflowError, match="malformed"):
        RowCode.from_arrays(CODE.to_arrays() | {"steps": CODE.steps[:, 1:]}, CODE.attributes())
