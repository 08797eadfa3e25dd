"""Checkpoints by a vector codebook: every prefix of the tree's layers decodes, the last gives the source's bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from operators.errors import HilbertflowError
from operators.vector_code import VectorQuantize, in_place, sorted_layers, training_runs
from pipelines.bench.local import archive_with
from pipelines.compile import make_plan
from pipelines.export import export
from pipelines.recipe import parse
from pipelines.tune import sample
from storage import archive
from storage.model import ModelArchive
from storage.planes import PlaneUnits

RECIPE = """
name: vectors
source: {{kind: checkpoint, path: "{source}"}}
operators:
  - {{kind: hilbert_map, side: 64}}
  - {{kind: vq, dim: {dim}, codes: {codes}}}
  - {{kind: tree, widths: {widths}}}
  - {{kind: frame_encode}}
sink: {{kind: archive, path: "{root}", name: {name}}}
compute: {{planes_per_unit: 4}}
"""


def recipe(source: str, root: str, dim: int = 4, codes: int = 256, widths: str = "[4, 2, 2]", name: str = "vq") -> Any:
    return parse(RECIPE.format(source=source, root=root, dim=dim, codes=codes, widths=widths, name=name))


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    odd = rng.normal(size=(100, 100)).astype(np.float32)
    odd.reshape(-1)[:6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]
    odd[50:] = 0
    return {
        "a.weight": (rng.normal(size=(300, 128)) * 0.05).astype(np.float32),
        "b.weight": (rng.normal(size=(200, 90)) * rng.lognormal(size=(200, 1))).astype(ml_dtypes.bfloat16),
        "c.weight": odd,
        "d.bias": rng.normal(size=50).astype(np.float16),
        "e.ids": np.arange(7, dtype=np.int64),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tensors: Any) -> ModelArchive:
    root = tmp_path_factory.mktemp("vq")
    save_file(tensors, root / "m.safetensors")
    return archive_with(recipe(str(root / "m.safetensors"), str(root / "out")))


def test_the_source_comes_back_and_every_prefix_decodes(model: ModelArchive, tensors: Any) -> None:
    handle = archive.open(model.url)
    assert handle.levels == (0, 1, 2, 3, "exact")
    for name, value in tensors.items():
        assert handle[name].read("exact").tobytes() == value.tobytes(), name
    value, errors = tensors["a.weight"], []
    for level in range(4):
        got = handle["a.weight"].read(level)
        errors.append(float(np.square(got - value).sum() / np.square(value).sum()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert 0.05 < errors[2] < 0.3 and errors[3] < 1e-4
    said = handle.manifest.quality
    assert said["sqnr_db_level0"] < said["sqnr_db_level1"] < said["sqnr_db_level2"] < said["sqnr_db_level3"]


def test_the_last_layer_is_the_flat_code_and_costs_no_more(model: ModelArchive) -> None:
    ladder = archive.open(model.url).ladder
    tree = ladder.tree
    codes = np.random.default_rng(1).integers(0, tree.size, (64, 16))
    stored = sorted_layers(tree, tree.encode(codes))
    assert (tree.codes(in_place(tree, stored)) == codes).all()
    handle = archive.open(model.url)
    runs = sum(group.planes for group in handle.layout.groups if not group.opaque) * 64 * 64 // 4
    packed = sum(model.manifest.levels[f"level{k}"] for k in range(3))
    assert packed <= 1.10 * runs  # 8 bits a run, flat
    assert sum(model.manifest.levels.values()) < 1.1 * model.manifest.source_bytes


def test_the_same_source_gives_the_same_bytes(model: ModelArchive, tmp_path: Path, tensors: Any) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    again = archive_with(recipe(str(tmp_path / "m.safetensors"), str(tmp_path / "out")))
    assert {key: again.place.read(key) for key in again.place.list() if "/c/" in key} == {
        key: model.place.read(key) for key in model.place.list() if "/c/" in key
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dim": 3}, "power of two"), ({"codes": 1}, "2 to 65536"), ({"widths": "[0]"}, "1 to 16 bits"),
        ({"widths": "leaves"}, "widths"), ({"codes": 65536}, "fewer codes"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(model: ModelArchive, tmp_path: Path, tensors: Any, change: Any, what: str) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(HilbertflowError, match=what):
        make_plan(recipe(str(tmp_path / "m.safetensors"), str(tmp_path), **change))


def test_the_tree_as_a_picture(model: ModelArchive, tmp_path: Path) -> None:
    assert export(model.url, "codebook", str(tmp_path / "tree.svg")) == 1
    drawn = ElementTree.parse(tmp_path / "tree.svg").getroot()
    boxes = [item for item in drawn if item.tag.endswith("rect")]
    assert len(boxes) == 1 + 16 + 64 + 256
    with pytest.raises(HilbertflowError, match="only the codebook"):
        export(model.url, "a.weight", str(tmp_path / "tree.svg"))


def test_a_large_codebook_is_trained_on_more_planes() -> None:
    class Planes(PlaneUnits):
        units, unit_bytes = 20, 0

        def __init__(self) -> None:
            pass

        def read_some(self, unit: int, count: int) -> pa.Table:
            return pa.table({"plane": pa.array([16 * unit + 16 * i // count for i in range(count)], pa.int64())})

    few, many = sample(Planes()), sample(Planes(), -(-training_runs(VectorQuantize(codes=65_536)) * 8 // 256**2))
    assert few.num_rows == 12 and 64 <= many.num_rows < 80
    units = {plane // 16 for plane in many.column("plane").to_pylist()}
    assert len(units) == 9 and min(units) < 3 and max(units) > 16
