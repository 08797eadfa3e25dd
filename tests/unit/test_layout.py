"""Placement of tensors on planes: nothing overlaps, nothing is lost, everything is found again."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import HilbertflowError
from operators.floats import FORMATS
from storage.layout import SMALL, from_table, place

SHAPES = st.lists(st.integers(0, 200), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(st.sampled_from(sorted(FORMATS)), SHAPES), max_size=12)


def tensors(items: list[tuple[str, tuple[int, ...]]]) -> pa.Table:
    return pa.table(
        {
            "name": pa.array([f"t{i}" for i in range(len(items))], pa.string()),
            "kind": pa.array(["other"] * len(items), pa.string()),
            "dtype": pa.array([dtype for dtype, _ in items], pa.string()),
            "shape": pa.array([list(shape) for _, shape in items], pa.list_(pa.int64())),
            "keep": pa.array([shape[0] if shape else 1 for _, shape in items], pa.int64()),
        }
    )


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_pieces_cover_every_word_once(items: list[tuple[str, tuple[int, ...]]]) -> None:
    layout = place(tensors(items), side=16, per_unit=4)
    seen: dict[str, list[tuple[int, int]]] = {p.name: [] for p in layout.placements}
    for unit in range(layout.units):
        group, first, stop = layout.unit_planes(unit)
        for plane in range(first, stop):
            taken: list[tuple[int, int]] = []
            for tensor, source, target, words in layout.pieces(plane):
                assert (tensor.dtype, tensor.opaque) == (group.dtype, group.opaque)
                seen[tensor.name].append((source, source + words))
                taken.append((target, target + words))
            taken.sort()
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))
            assert not taken or taken[-1][1] <= layout.area
    for placement in layout.placements:
        runs = sorted(seen[placement.name])
        assert sum(b - a for a, b in runs) == placement.words
        assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))


@settings(max_examples=50, deadline=None)
@given(TENSORS)
def test_the_stored_table_gives_the_layout_back(items: list[tuple[str, tuple[int, ...]]]) -> None:
    layout = place(tensors(items), side=16, per_unit=4)
    assert from_table(layout.table(), 16, 4) == layout


def test_large_float_tensors_begin_on_a_row_and_small_ones_are_opaque() -> None:
    layout = place(tensors([("F32", (SMALL + 3,)), ("F32", (SMALL + 5,)), ("F32", (7,)), ("I64", (SMALL,))]), 64, 2)
    by_name = layout.by_name
    assert not by_name["t0"].opaque and not by_name["t1"].opaque
    assert by_name["t1"].start % 64 == 0
    assert by_name["t2"].opaque and by_name["t3"].opaque
    assert by_name["t3"].words == 2 * SMALL


def test_two_tensors_of_one_name_are_refused() -> None:
    table = tensors([("F32", (4,)), ("F32", (4,))])
    table = table.set_column(0, "name", pa.array(["a", "a"]))
    with pytest.raises(HilbertflowError, match="same name"):
        place(table, 16, 4)
