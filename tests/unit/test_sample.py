"""Sampling of a checkpoint: filters, and a budget that every kind and every tensor shares in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import HilbertflowError
from operators.sample import Sample, shares


def table() -> pa.Table:
    rows = [
        ("embeddings.word.weight", "embedding", [3000, 64]),
        *((f"layer.{i}.attention.q.weight", "attention", [64, 64]) for i in range(6)),
        *((f"layer.{i}.mlp.up.weight", "mlp", [256, 64]) for i in range(6)),
        *((f"layer.{i}.norm.weight", "norm", [64]) for i in range(6)),
    ]
    names, kinds, shapes = zip(*rows, strict=True)
    return pa.table({"name": list(names), "kind": list(kinds), "shape": pa.array(shapes, pa.list_(pa.int64()))})


def test_everything_is_kept_by_default() -> None:
    kept = Sample().apply(table())
    assert kept.column("keep").to_pylist() == [shape[0] for shape in table().column("shape").to_pylist()]


@pytest.mark.parametrize("budget", [1000, 20_000, 150_000])
def test_a_budget_is_kept_and_every_kind_has_its_share(budget: int) -> None:
    whole = shares(Sample().apply(table()), table())
    kept = shares(Sample(max_params=budget).apply(table()), table())
    assert {kind: of for kind, (_, of) in kept.items()} == {
        "embedding": 192_000, "attention": 24_576, "mlp": 98_304, "norm": 384
    }  # fmt: skip
    total, taken = sum(n for _, n in whole.values()), sum(n for n, _ in kept.values())
    assert 0.8 * budget <= taken <= budget
    for kind in ("embedding", "attention", "mlp"):
        share = kept.get(kind, (0, 0))[0] / budget
        assert abs(share - whole[kind][1] / total) < 0.1


def test_globs_and_kinds_filter() -> None:
    kept = Sample(include=("layer.*",), exclude=("*.norm.*",), kinds=("mlp", "norm")).apply(table())
    assert kept.num_rows == 6
    assert np.all(["mlp" in name for name in kept.column("name").to_pylist()])


def test_keeping_nothing_is_an_error_that_shows_a_name() -> None:
    with pytest.raises(HilbertflowError, match=r"embeddings\.word\.weight"):
        Sample(include=("nothing.*",)).apply(table())
