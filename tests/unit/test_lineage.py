"""Chains of checkpoints: every child comes back bit for bit, whatever changed, as deep as the recipe allows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from operators.errors import HilbertflowError
from pipelines.bench.local import archive_model
from pipelines.cli import call
from pipelines.compile import make_plan
from pipelines.export import export
from pipelines.recipe import load
from pipelines.restore import restore
from storage import archive
from storage.model import ModelArchive

SETS = ("operators.4.coder=rans", "operators.1.layout=hilbert", "compute.planes_per_unit=2")
Tensors = dict[str, np.ndarray[Any, Any]]


def first(rng: np.random.Generator) -> Tensors:
    return {
        "layer.0.attention.weight": (rng.normal(size=(130, 150)) * 0.05).astype(np.float32),
        "layer.0.mlp.weight": (rng.normal(size=(90, 101)) * 0.02).astype(ml_dtypes.bfloat16),
        "layer.0.mlp.bias": rng.normal(size=77).astype(np.float32),
        "embeddings.word.weight": (rng.normal(size=(200, 60)) * 0.1).astype(np.float32),
        "positions": np.arange(40, dtype=np.int64),
    }


def trained(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    moved = {}
    for name, value in tensors.items():
        if value.dtype.kind == "i":
            moved[name] = value + 1
        else:
            moved[name] = (value.astype(np.float32) + 2e-5 * rng.normal(size=value.shape)).astype(value.dtype)
    return moved


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensors], list[ModelArchive]]:
    """Four steps; the last one has a new tensor, one of another shape, one less, and wider planes."""
    root, rng = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    steps = [first(rng)]
    for _ in range(3):
        steps.append(trained(steps[-1], rng))
    steps[3]["adapter.weight"] = rng.normal(size=(100, 100)).astype(np.float32)
    steps[3]["embeddings.word.weight"] = steps[3]["embeddings.word.weight"][:150]
    del steps[3]["layer.0.mlp.bias"]
    made: list[ModelArchive] = []
    for number, tensors in enumerate(steps):
        save_file(tensors, root / f"{number}.safetensors")
        sets = [
            *SETS,
            f"name=step-{number}",
            f"sink.name=step-{number}",
            f"operators.1.side={128 if number == 3 else 64}",
        ]
        sets += [f"parent={made[-1].url}"] if made else []
        made.append(archive_model(str(root / f"{number}.safetensors"), root / "archives", *sets))
    return root, steps, made


@pytest.mark.parametrize("number", range(4))
def test_every_step_comes_back(chain: Any, number: int, tmp_path: Path) -> None:
    _, steps, made = chain
    handle = archive.open(made[number].url)
    assert (handle.link.depth if handle.link else 0) == number
    for name, value in steps[number].items():
        assert handle[name].read("exact").tobytes() == value.tobytes(), name
        assert handle[name][1:3].tobytes() == value[1:3].tobytes()
    for plane, words in handle.words(0, 1, "exact"):
        assert plane == 0 and words.size == handle.layout.area
    restore(handle.url, str(tmp_path / "x.safetensors"))
    assert (tmp_path / "x.safetensors").stat().st_size > 0


@pytest.mark.parametrize("number", [1, 3])
def test_lossy_levels_are_the_parents(chain: Any, number: int) -> None:
    _, steps, made = chain
    handle = archive.open(made[number].url)
    assert handle.levels == made[0].levels
    errors = []
    for level in (0, 1):
        value = steps[number]["layer.0.attention.weight"]
        got = handle["layer.0.attention.weight"].read(level)
        assert got.dtype == np.float32 and got.shape == value.shape
        errors.append(float(np.square(got - value).sum() / np.square(value).sum()))
    assert errors[1] < errors[0] < 0.011
    assert handle["positions"].read(0).tobytes() == steps[number]["positions"].tobytes()
    if number == 3:
        assert handle["adapter.weight"].read(0).tobytes() == steps[3]["adapter.weight"].tobytes()  # new: exact at once


def test_a_child_is_small_and_tells_how_far_it_went(chain: Any) -> None:
    _, _, made = chain
    alone, child = (sum(item.manifest.levels.values()) for item in made[:2])
    assert child < 0.8 * alone
    assert 55 < made[1].manifest.quality["sqnr_db_parent"] < 75


def test_what_is_read_of_parents_counts(chain: Any) -> None:
    _, _, made = chain
    handle = archive.open(made[2].url)
    list(handle.words(0, handle.layout.planes, "exact"))
    assert handle.bytes_read > sum(item.manifest.levels["exact"] for item in made[:3])


def test_a_long_chain_begins_again(chain: Any, tmp_path: Path) -> None:
    root, steps, made = chain
    sets = [*SETS, "sink.name=other", "operators.1.side=64", f"parent.path={made[2].url}", "parent.max_chain=2"]
    handle = archive_model(str(root / "2.safetensors"), root / "archives", *sets)
    assert handle.link is not None and handle.link.depth == 1 and handle.link.url == made[0].url
    assert handle["layer.0.mlp.weight"].read("exact").tobytes() == steps[2]["layer.0.mlp.weight"].tobytes()


def test_a_root_that_moved_and_a_parent_that_is_gone(chain: Any, tmp_path: Path) -> None:
    _, steps, made = chain
    root = Path(made[0].url).parents[1]
    for number in range(3):
        assert call(["cp", made[number].url, str(tmp_path / "copy")]) == 0
    moved = archive.open(str(tmp_path / "copy/models/step-2"))
    assert moved.parent is not None and moved.parent.url == str(tmp_path / "copy/models/step-1")
    assert moved["positions"].read("exact").tobytes() == steps[2]["positions"].tobytes()
    shutil.copytree(root, tmp_path / "own")
    shutil.copytree(tmp_path / "own/models/step-0", tmp_path / "own/models/step-1", dirs_exist_ok=True)
    other = archive.open(str(tmp_path / "own/models/step-2"))
    assert other.parent is not None and other.parent.url == made[1].url  # where it lay; the one beside is another
    alone = tmp_path / "alone" / "models" / "step-1"
    shutil.copytree(made[1].url, alone)
    lost = archive.open(str(alone))
    lost.attributes["parent"]["url"] = "/nowhere/models/step-0"
    with pytest.raises(HilbertflowError, match="parent /nowhere/models/step-0 is not there"):
        lost["positions"].read("exact")


def test_what_cannot_be_a_parent(chain: Any, tmp_path: Path) -> None:
    root, _, made = chain
    source = f"source.path={root / '1.safetensors'}"
    with pytest.raises(HilbertflowError, match="its own parent"):
        make_plan(load("quickstart-model", [*SETS, source, f"sink.path={root / 'archives'}", "sink.name=step-1",
                                            f"parent={made[1].url}"]))  # fmt: skip
    with pytest.raises(HilbertflowError, match="no archive here"):
        make_plan(load("quickstart-model", [*SETS, source, f"sink.path={tmp_path}", f"parent={tmp_path / 'none'}"]))
    lossy = archive_model(str(root / "1.safetensors"), tmp_path, *SETS, "sink.name=lossy", "operators.3.levels=[base]")
    with pytest.raises(HilbertflowError, match="no exact level"):
        make_plan(load("quickstart-model", [*SETS, source, f"sink.path={tmp_path}", f"parent={lossy.url}"]))
    with pytest.raises(HilbertflowError, match="a collection has no parent"):
        load("vectors", [f"source.path={__file__}", f"parent={made[0].url}"], inputs=False)


def test_a_child_whose_layers_were_frozen_comes_back(chain: Any, tmp_path: Path) -> None:
    """Units in which nothing changed: all codes of their rows are zero, and are read as such."""
    root, steps, made = chain
    moved = steps[0] | {"layer.0.mlp.weight": steps[1]["layer.0.mlp.weight"]}
    save_file(moved, tmp_path / "frozen.safetensors")
    sets = [*SETS, "sink.name=frozen", "operators.1.side=64", f"parent={made[0].url}"]
    child = archive_model(str(tmp_path / "frozen.safetensors"), root / "archives", *sets)
    for name, value in moved.items():
        assert child[name].read("exact").tobytes() == value.tobytes()


def test_a_chain_as_a_video(chain: Any, tmp_path: Path) -> None:
    _, _, made = chain
    out = str(tmp_path / "chain.mp4")
    assert export(made[2].url, "layer.0.attention.weight", out, chain=True) == 3
    with av.open(out) as file:
        frames = [frame.to_ndarray(format="gray").astype(int) for frame in file.decode(video=0)]
    right = [frame[:, 72:] - 128 for frame in frames]  # how far from the first: nothing, something, more
    spread = [float(np.abs(part).mean()) for part in right]
    assert spread[0] < 2 < spread[1] < spread[2]
    with pytest.raises(HilbertflowError, match="no chain"):
        export(made[0].url, "layer.0.attention.weight", out, chain=True)
