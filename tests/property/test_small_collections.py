"""Collections that are hardly any: one row, one value, rows all alike; each comes back bit for bit in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.recipe import Recipe
from pipelines.restore import restore
from pipelines.run import run_here
from storage import archive

RANDOM = np.random.default_rng(3)
CASES = {
    "one value": np.array([[3.5]]),
    "one row": RANDOM.normal(size=(1, 7)),
    "two rows": RANDOM.normal(size=(2, 5)),
    "a zero row": np.zeros((1, 4)),
    "minus zero": np.array([[-0.0, 0.0], [0.0, -0.0]]),
    "one column": RANDOM.normal(size=(300, 1)),
    "all alike": np.full((400, 6), 0.1),
    "constant columns": np.tile([1.0, 2.0, 3.0], (100, 1)) + np.eye(100, 3),
    "pixels": RANDOM.integers(0, 256, (500, 12)).astype(float) * (RANDOM.random((500, 12)) < 0.3),
    "large and small": RANDOM.normal(size=(200, 9)) * 10.0 ** RANDOM.integers(-30, 30, (200, 9)),
    "subnormal": RANDOM.normal(size=(100, 3)) * 1e-41,
    "nearly the largest": RANDOM.uniform(-3e38, 3e38, (90, 2)),
    "the largest": np.full((90, 2), np.finfo(np.float32).max) * RANDOM.choice([-1, 1], (90, 2)),
    "unit": (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(RANDOM.normal(size=(700, 33))),
}


def archived(root: Path, values: np.ndarray, metric: str, **blocks: object) -> str:
    np.save(root / "v.npy", values)
    body = {
        "name": "v", "source": {"kind": "vectors", "path": str(root / "v.npy"), "metric": metric},
        "operators": [{"kind": "row_blocks", **blocks}, {"kind": "row_code"}, {"kind": "frame_encode"}],
        "sink": {"path": str(root)}, "compute": {"rows_per_unit": 128},
    }  # fmt: skip
    return run_here(Recipe.model_validate_json(json.dumps(body))).url


@pytest.mark.parametrize("order", ["source", "lists", "hilbert"])
@pytest.mark.parametrize("case", CASES)
def test_every_bit_comes_back_in_the_order_of_the_source(tmp_path: Path, case: str, order: str) -> None:
    values = CASES[case].astype(np.float32)
    handle = archive.open(archived(tmp_path, values, "l2", order=order, lists=min(8, max(1, len(values)))))
    assert (handle.count, handle.dim) == values.shape and len(handle.borders) == len(handle.centroids) + 1
    source = handle.source_rows(0, len(values))
    assert np.array_equal(handle.read(0, len(values)).view(np.uint32), values[source].view(np.uint32))
    for level in handle.levels:
        assert np.isfinite(handle.read(0, len(values), level)).all()
    restore(handle.url, str(tmp_path / "back.npy"))
    assert np.array_equal(np.load(tmp_path / "back.npy").view(np.uint32), values.view(np.uint32))
    restore(handle.url, str(tmp_path / "near.npy"), level=0)
    if values.std() < 1e3 and len(values) > 50:
        near = np.load(tmp_path / "near.npy")
        assert np.square(near - values).mean() <= 1.01 * values.var() + 1e-9


def test_cosine_keeps_unit_vectors_and_raw_chunks_do_as_well(tmp_path: Path) -> None:
    values = RANDOM.normal(size=(600, 10)).astype(np.float32) * 7
    handle = archive.open(archived(tmp_path, values, "cosine", order="lists", rows=8))
    unit = values / np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))[:, None]
    got = handle.take(np.argsort(handle.source_rows(0, 600)))
    np.testing.assert_array_equal(got, unit.astype(np.float32))
    assert handle.chunks.block == 8 and handle.metric == "cosine"
    assert len(list(handle.iter_batches(0, 100))) >= 6 and sum(map(len, handle.iter_batches(0, 5))) == 600
