"""The exact level: coded near its conditional entropy, in an order that only the levels determine."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from operators import exact, rans, single, trellis
from operators.capacity import entropy
from operators.floats import dtype_info, round_to, to_float32
from operators.refine import Lattice, reconstruct, refine, refined
from operators.scales import GRAIN, encode

Levels = tuple[npt.NDArray[Any], npt.NDArray[Any], list[npt.NDArray[Any]], npt.NDArray[Any]]


def weights(dtype: str, side: int = 256) -> npt.NDArray[Any]:
    """Words of rows as trained layers have them: Gaussian, of scales that differ."""
    rng = np.random.default_rng(11)
    scale = 0.04 * np.exp2(rng.uniform(-1, 1, (side, 1)))
    return round_to((rng.standard_normal((side, side)) * scale).astype(np.float32), dtype)


def levels(words: npt.NDArray[Any], dtype: str, lattice: Lattice, refinements: int, states: int = 8) -> Levels:
    codes, values = encode(words, dtype), to_float32(words, dtype)
    symbols = trellis.quantize(values, codes, lattice.step, states)
    stored: list[npt.NDArray[Any]] = [symbols]
    cells = trellis.index(symbols, states)
    for level in range(1, refinements + 1):
        fine, cells = refine(values, dtype, codes, cells, lattice, level)
        stored.append(fine)
    return codes, cells, stored, exact.encode(words, dtype, cells, codes, lattice, refinements)


def size(*arrays: npt.NDArray[Any]) -> int:
    return sum(len(rans.encode(array)) for array in arrays)


@pytest.mark.parametrize(("dtype", "refinements"), [("BF16", 0), ("BF16", 1), ("BF16", 2), ("F16", 1), ("F32", 1)])
def test_levels_cost_little_more_than_one_lossless_copy(dtype: str, refinements: int) -> None:
    words = weights(dtype)
    codes, _, stored, residual = levels(words, dtype, Lattice(trellis.step_for(20.0, 8), trellis.REACH, 4), refinements)
    alone = size(single.encode(words, dtype, codes))
    assert size(*stored, residual) <= 1.02 * alone
    form = dtype_info(dtype)
    split = entropy(words >> form.mantissa) + form.mantissa  # sign and exponent at their entropy, mantissa as it is
    assert alone * 8 / words.size < split


def test_inside_cells_only_mantissa_bits_are_left() -> None:
    words = weights("F32", 64)
    _, _, _, residual = levels(words, "F32", Lattice(trellis.step_for(20.0, 8), trellis.REACH, 4), 1)
    ordered = residual.reshape(-1)
    # sorted by the number of bits left: the largest of each run of 64 symbols ascends
    tops = np.array([int(run.max()).bit_length() for run in np.array_split(ordered, 64)])
    assert (np.diff(tops[:-2]) >= -1).all() and 0.48 < np.mean(ordered & 1) < 0.52


def test_rows_that_were_narrower_cost_what_they_hold() -> None:
    narrow = weights("BF16")
    words = to_float32(narrow, "BF16").view(np.uint32)
    lattice = Lattice(trellis.step_for(20.0, 8), trellis.REACH, 4)
    wide, small = levels(words, "F32", lattice, 1), levels(narrow, "BF16", lattice, 1)
    assert size(wide[3]) <= 1.01 * size(small[3]) + 100
    assert size(single.encode(words, "F32", wide[0])) <= 1.01 * size(single.encode(narrow, "BF16", small[0])) + 100


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F8_E5M2", "F8_E4M3"])
@pytest.mark.parametrize("side", [1, 3, 31, 64])
def test_shapes_and_threads(dtype: str, side: int) -> None:
    words = weights(dtype, side)
    lattice = Lattice(trellis.step_for(18.0, 4), trellis.REACH, 3)
    codes, _, stored, residual = levels(words, dtype, lattice, 1, states=4)

    def decoded(_: int) -> npt.NDArray[Any]:
        read = refined(stored[1], dtype, codes, trellis.index(stored[0], 4), lattice, 1)
        return exact.decode(residual, dtype, read, codes, lattice, 1)

    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(words, other) for other in pool.map(decoded, range(8)))


def test_padding_stays_at_the_end() -> None:
    """Rows of zeros behind the last vector of a collection are not stored: what is read back there must be zeros."""
    words = weights("F32", 64)
    words[50:] = 0
    lattice = Lattice(trellis.step_for(20.0, 8), trellis.REACH, 4)
    codes, _, stored, residual = levels(words, "F32", lattice, 1)
    assert not residual[50:].any() and not stored[1][50:].any() and not stored[0][50:].any()
    assert not single.encode(words, "F32", codes)[50:].any()


# Checksums of what stored symbols decode to: an archive of today must read the same on any machine, for ever.
GOLDEN = {
    "BF16": (726241611, 2098015345),
    "F16": (843817163, 1762043120),
    "F32": (843817163, 3914487520),
    "F8_E5M2": (4094820105, 57023437),
    "F8_E4M3": (4094820105, 2187548700),
}


@pytest.mark.parametrize("dtype", GOLDEN)
def test_stored_levels_decode_alike_for_ever(dtype: str) -> None:
    form, lattice = dtype_info(dtype), Lattice(0.078125, trellis.REACH, 4)
    draws = numbers(32 * 64 * 3 + 32)
    codes = (8 * (1200 + draws[:32] % 90)).astype(np.uint32)
    codes[7], codes[20] = 0, 8 * 1240 + GRAIN * 2
    bell = (draws[32:].reshape(3, 32, 64) >> 4) % 64 + draws[32:].reshape(3, 32, 64) % 64 - 64
    base, fine = bell[0].astype(np.int16) // 2, bell[1].astype(np.int8)
    residual = (bell[2] & 15).astype(f"u{form.word}")
    cells = refined(fine, dtype, codes, trellis.index(base, 8), lattice, 1)
    preview = reconstruct(cells, dtype, codes, lattice, 1)
    words = exact.decode(residual, dtype, cells, codes, lattice, 1)
    assert (zlib.crc32(preview.tobytes()), zlib.crc32(words.tobytes())) == GOLDEN[dtype]


def numbers(count: int) -> npt.NDArray[np.int64]:
    """Numbers below 65,536 from integer arithmetic alone, alike for every version of NumPy."""
    state, draws = 12345, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        draws.append(state >> 48)
    return np.array(draws, np.int64)
