"""Many chunks at once come out as one by one, whatever way each was coded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from operators import rans, rans_many
from operators.errors import HilbertflowError
from operators.rans_tables import Tables

BLOCK = 16


def chunks_of(width: int, deviation: float = 1.5, count: int = 40) -> tuple[list[npt.NDArray[np.int16]], Tables]:
    rng = np.random.default_rng(width)
    scale = np.linspace(deviation, 0.1, width)
    every = [np.rint(rng.standard_normal((BLOCK, width)) * scale).astype(np.int16) for _ in range(count)]
    return every, Tables.train([np.concatenate(every)], columns=width)


@pytest.mark.parametrize("width", [1, 7, 161, 345, 1100])
def test_as_one_by_one(width: int) -> None:
    every, tables = chunks_of(width)
    every[3][5:] = 0  # the end is left out
    every[4][:] = 0
    every[5][0, 0] = 30_000  # no table knows it
    rng = np.random.default_rng(0)
    every[6] = rng.integers(-32768, 32767, (BLOCK, width)).astype(np.int16)  # nor any of these
    coded = [rans.encode(chunk, tables) for chunk in every]
    rows = rng.integers(1, BLOCK + 1, len(every))
    found = rans_many.decode(coded, rows, BLOCK, width, tables)
    np.testing.assert_array_equal(found, np.concatenate([c[:n] for c, n in zip(every, rows, strict=True)]))


def test_other_tables_and_none() -> None:
    every, _ = chunks_of(20)
    rows = np.full(len(every), BLOCK)
    large = Tables.train([np.concatenate(every) * 300], columns=20)  # tokens with raw bits behind them
    runs = Tables.train([np.concatenate(every)])  # no plan of columns
    for tables, factor in ((large, 300), (runs, 1), (None, 1)):
        coded = [rans.encode(chunk * np.int16(factor), tables) for chunk in every]
        found = rans_many.decode(coded, rows, BLOCK, 20, tables)
        np.testing.assert_array_equal(found, np.concatenate(every) * factor)
    assert rans_many.decode([], np.empty(0, np.int64), BLOCK, 20, runs).shape == (0, 20)


def test_damage_is_an_error_or_other_symbols_never_a_crash() -> None:
    every, tables = chunks_of(161, count=2)
    good, rng = rans.encode(every[0], tables), np.random.default_rng(1)
    rows = np.array([BLOCK])
    errors = 0
    for _ in range(600):
        bad = bytearray(good)
        bad[rng.integers(1, len(bad))] ^= 1 << rng.integers(8)
        cut = bytes(bad[: rng.integers(0, len(bad) + 1)] if rng.integers(2) else bad)
        try:
            assert rans_many.decode([cut], rows, BLOCK, 161, tables).shape == (BLOCK, 161)
        except HilbertflowError:
            errors += 1
    assert errors > 300
