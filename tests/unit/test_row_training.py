"""What is trained on a sample: order, code, tables, and how they are kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from operators import rowcode
from operators.errors import HilbertflowError
from operators.row_blocks import RowBlocks, vector_column
from operators.row_code import RowCoding
from operators.row_training import Trained, sample_rows, train
from tests.collection_fixtures import clustered

ROWS = clustered(3000, 20)


def trained(order: str = "lists", rows: np.ndarray = ROWS, **options: object) -> Trained:
    blocks = RowBlocks(order=order, **options).resolved(len(rows))  # type: ignore[arg-type]
    return train(rows, blocks, RowCoding(), lambda name: "rans")


@pytest.mark.parametrize(
    ("count", "said", "order", "lists"),
    [(4095, {}, "source", 1), (4096, {}, "lists", 128), (1_000_000, {}, "lists", 6000),
     (10, {"order": "lists"}, "source", 1),
     (100, {"order": "lists"}, "lists", 3), (50, {"order": "hilbert", "lists": 80}, "hilbert", 50)],
)  # fmt: skip
def test_auto_settles_by_the_number_of_rows(count: int, said: dict[str, object], order: str, lists: int) -> None:
    found = RowBlocks(**said).resolved(count)  # type: ignore[arg-type]
    assert (found.order, found.lists) == (order, lists)
    assert sample_rows(found, 8) >= 16384 and sample_rows(found, 100_000) * 400_000 <= 256 << 20


@pytest.mark.parametrize("order", ["lists", "hilbert", "source"])
def test_what_is_kept_comes_back_and_codes_alike(order: str) -> None:
    made = trained(order)
    again = Trained.from_bytes(made.to_bytes())
    assert again.hash == made.hash == trained(order).hash
    mine = again.assign(ROWS)
    assert np.array_equal(mine, made.assign(ROWS)) and mine.max() < again.lists
    assert (again.lists > 50) == (order != "source")
    used = mine if order != "source" else None
    levels = again.code.encode(ROWS, used)
    assert np.array_equal(again.code.decode(levels, used), ROWS)


def test_near_rows_share_a_list_in_either_order() -> None:
    near = ROWS + np.float32(1e-5)
    for order in ("lists", "hilbert"):
        made = trained(order)
        assert (made.assign(ROWS) == made.assign(near)).mean() > 0.98


def test_lists_beside_each_other_are_near() -> None:
    centres = trained("lists").code.centres
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()
    shuffled = np.random.default_rng(0).permutation(centres)
    assert steps < 0.7 * np.linalg.norm(np.diff(shuffled, axis=0), axis=1).mean()


@pytest.mark.parametrize("rows", [np.full((50, 3), 7.0), np.zeros((1, 1)), np.arange(40.0).reshape(40, 1)])
@pytest.mark.parametrize("order", ["lists", "hilbert", "source"])
def test_rows_that_hardly_differ(rows: np.ndarray, order: str) -> None:
    rows = rows.astype(np.float32)
    made = trained(order, rows, lists=min(4, len(rows)))
    mine = made.assign(rows) if made.lists > 1 else None
    assert np.array_equal(made.code.decode(made.code.encode(rows, mine), mine), rows)


def test_shared_tables_beat_those_of_every_chunk() -> None:
    made = trained("source")
    levels = made.code.encode(ROWS[:320])
    from operators.coders import RansCoder

    chunks = [levels["level0"][at : at + 32] for at in range(0, 320, 32)]
    shared, own = (sum(len(c.encode(chunk)) for chunk in chunks) for c in (made.coders["level0"], RansCoder()))
    assert shared < 0.9 * own


def test_damage_is_named() -> None:
    data = trained("source").to_bytes()
    for bad in (b"", data[:-40], b"PK" + data[10:]):
        with pytest.raises(HilbertflowError, match="trained is damaged"):
            Trained.from_bytes(bad)


def test_bad_options_and_rows_are_named() -> None:
    for said, named in (({"rows": 4}, "rows is 4"), ({"lists": 0}, "lists is 0")):
        with pytest.raises(HilbertflowError, match=named):
            RowBlocks(**said)
    for bits in ((), (1.0, 1.0), (0.0,), (1.0, 30.0)):
        with pytest.raises(HilbertflowError, match="bits are"):
            RowCoding(bits=bits)
    with pytest.raises(HilbertflowError, match="not trained"):
        RowCoding().apply(pa.table({}))
    rows = np.ones((3, 2), np.float32)
    rows[1] = 0
    table = pa.table({"row": [5, 6, 7], "vector": vector_column(rows)})
    with pytest.raises(HilbertflowError, match="row 6: a zero vector"):
        RowBlocks(normalize=True).apply(table)


def test_levels_are_thin_where_pixels_are_black() -> None:
    rng = np.random.default_rng(7)
    pixels = np.clip(np.rint(rng.normal(20, 40, (600, 24))), 0, 255).astype(np.float32)  # a third of them black
    whole = np.rint(rng.normal(0, 40, (600, 24))).astype(np.float32)
    chosen = {}
    for name, rows in (("pixels", pixels), ("whole", whole), ("floats", ROWS[:600])):
        made = trained("source", rows)
        levels = made.code.encode(rows)
        assert np.array_equal(made.code.decode(levels), rows) and made.code.depth == RowCoding().depth == 3
        chosen[name] = rowcode.usual_bits(rows)
    assert chosen["pixels"] == rowcode.THIN_BITS and chosen["whole"] == chosen["floats"] == rowcode.USUAL_BITS
