"""The chain of operators on planes of arbitrary bit patterns: exact at the end, better at every step before."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import plane_bits, rans
from operators.decode import Ladder
from operators.floats import FORMATS, round_to, to_float32
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.planes import arrays
from operators.quantize import Quantize
from operators.scales import row_steps

SIDE = 16
LOSSY = sorted(name for name, form in FORMATS.items() if form.lossy)


def plane(words: npt.NDArray[Any], dtype: str) -> pa.Table:
    """One plane as a source gives it."""
    return pa.table(
        {
            "unit": [0], "plane": [0], "planes": pa.array([1], pa.int32()), "dtype": [dtype], "opaque": [False],
            "word": pa.array([words.itemsize], pa.int8()), "exact_word": pa.array([words.itemsize], pa.int8()),
            "height": [SIDE], "width": [SIDE], "count": pa.array([words.size], pa.int32()),
            "bits": pa.array([words.tobytes()], pa.binary()),
        }
    )  # fmt: skip


def levels_of(table: pa.Table, dtypes: dict[str, str]) -> dict[str, npt.NDArray[Any]]:
    return {name: arrays(table, name, dtype)[0] for name, dtype in dtypes.items()}


@pytest.mark.parametrize("layout", ["hilbert", "raster"])
@pytest.mark.parametrize("dtype", LOSSY)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_bits_come_back(dtype: str, layout: Any, data: st.DataObject) -> None:
    word = FORMATS[dtype].word
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2 ** (8 * word), SIDE * SIDE, dtype=f"u{word}" if word < 8 else "u8")
    specials = data.draw(st.lists(st.tuples(st.integers(0, SIDE * SIDE - 1), st.integers(0, 2 ** (8 * word) - 1))))
    for at, value in specials:
        words[at] = value
    refinements, fine_bits = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 6))
    layers = Layerize(levels=("base", *("fine", "finer")[:refinements], "exact"), fine_bits=fine_bits)  # type: ignore[arg-type]
    method, states = data.draw(st.sampled_from([("uniform", 8), ("trellis", 4), ("trellis", 32)]))
    asked, tails = data.draw(st.floats(3, 60)), data.draw(st.sampled_from(["gaussian", "laplace"]))
    quantizer = Quantize(method=method, sqnr_db=asked, states=states, tails=tails)  # type: ignore[arg-type]
    out = layers.apply(quantizer.apply(HilbertMap(side=SIDE, layout=layout).apply(plane(words, dtype))))
    ladder = Ladder(method, quantizer.step, fine_bits, refinements, True, layout, states, quantizer.inset)
    dtypes = {"level0": "i2", "scales": "u4", "exact": f"u{word}"} | {f"level{k + 1}": "i1" for k in range(refinements)}
    read = levels_of(out, dtypes)
    levels = [read[f"level{k}"].reshape(SIDE, SIDE) for k in range(refinements + 1)]
    restored = ladder.bits(levels, read["scales"], read["exact"].reshape(SIDE, SIDE), dtype)
    np.testing.assert_array_equal(restored, words)
    done, in_one = _in_one_call(levels, read["scales"], read["exact"].reshape(SIDE, SIDE), dtype, ladder)
    if done:
        np.testing.assert_array_equal(in_one, words)


def _in_one_call(
    levels: list[npt.NDArray[Any]], codes: npt.NDArray[Any], residual: npt.NDArray[Any], dtype: str, ladder: Ladder
) -> tuple[bool, npt.NDArray[Any]]:
    """Whether :func:`operators.plane_bits.decode` did it, and the words."""
    out, coded = np.empty((2, *residual.shape), residual.dtype), [*levels, residual]
    limits = [(1 << 8 * level.itemsize) - 1 for level in coded]
    chunks = [rans.encode(level) for level in coded]
    steps = row_steps(codes, ladder.step)
    twice = [chunks, [*chunks[:-1], None]], limits, np.stack([codes, codes]), np.stack([steps, steps])
    done = plane_bits.decode(*twice, dtype, ladder, out)
    assert not done[1]  # a chunk that is missing is none of its
    return bool(done[0]), out[0].reshape(-1)


@pytest.mark.parametrize("layout", ["hilbert", "raster"])
@pytest.mark.parametrize("method", ["uniform", "trellis"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_come_back_in_one_call(dtype: str, method: Any, layout: Any) -> None:
    rng = np.random.default_rng(3)
    words = round_to(rng.standard_normal(SIDE * SIDE).astype(np.float32) * np.float32(0.02), dtype)
    layers, quantizer = Layerize(levels=("base", "fine", "finer", "exact")), Quantize(method=method, sqnr_db=12)
    out = layers.apply(quantizer.apply(HilbertMap(side=SIDE, layout=layout).apply(plane(words, dtype))))
    ladder = Ladder(method, quantizer.step, layers.fine_bits, 2, True, layout, quantizer.states)
    dtypes = {"level0": "i2", "level1": "i1", "level2": "i1", "scales": "u4", "exact": f"u{words.itemsize}"}
    read = {name: array.reshape(-1, SIDE) for name, array in levels_of(out, dtypes).items()}
    levels, codes = [read[f"level{k}"] for k in range(3)], read["scales"].reshape(-1)
    done, restored = _in_one_call(levels, codes, read["exact"], dtype, ladder)
    assert done
    np.testing.assert_array_equal(restored, words)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_level_halves_the_error_of_gaussian_planes(dtype: str) -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_normal(SIDE * SIDE).astype(np.float32) * np.float32(0.02)
    words = round_to(values, dtype)
    layers, quantizer = Layerize(levels=("base", "fine", "finer", "exact")), Quantize(sqnr_db=12)
    out = layers.apply(quantizer.apply(HilbertMap(side=SIDE, layout="hilbert").apply(plane(words, dtype))))
    errors = [out.column(f"error{k}")[0].as_py() for k in range(3)]
    assert errors[0] > 16 * errors[1] > 16 * 3 * errors[2]  # bfloat16 ends with the second
    signal = float(np.square(to_float32(words, dtype).astype(np.float64)).sum())
    assert out.column("energy")[0].as_py() == pytest.approx(signal)
    assert 10 * np.log10(signal / errors[0]) == pytest.approx(12, abs=1.0)


def test_opaque_planes_are_their_own_exact_level() -> None:
    words = np.arange(SIDE * SIDE, dtype="u4") * 77
    table = plane(words, "I32").set_column(4, "opaque", pa.array([True]))
    out = Layerize().apply(Quantize().apply(HilbertMap(side=SIDE, layout="raster").apply(table)))
    np.testing.assert_array_equal(arrays(out, "exact", "u4")[0], words)
    assert not arrays(out, "level0", "i2")[0].size
