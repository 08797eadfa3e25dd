"""Ways to compare models: each tells relatives from strangers as far as it can, and says so."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.model_methods import (
    METHODS,
    PICTURES,
    agreement,
    average_precision,
    by_weights,
    known_relatives,
    known_strangers,
)  # fmt: skip
from cluster.model_root import ModelRoot
from pipelines.bench import zoo_derive as derive
from pipelines.bench.local import archive_model
from pipelines.bench.zoo import Member
from pipelines.bench.zoo_weights import read_weights
from pipelines.cli import call
from tests.archived_model import archived_child, archived_model, small_tensors
from tests.unit.test_signature import state


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("methods")
    for name, values in (("one", state(1)), ("near", derive.noised(state(1), 0.1)), ("other", state(2))):
        (root / name).mkdir()
        save_file(values, root / name / "model.safetensors")
        archive_model(str(root / name), root / "archives", f"name={name}", f"sink.name={name}",
                      "operators.4.coder=rans", "operators.1.layout=raster", "operators.2.method=uniform")  # fmt: skip
    return str(root / "archives")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_near_copy(root: str, method: str) -> None:
    if method in ("features", "hybrid"):
        pytest.importorskip("skimage", reason="compares pictures")
    scores = METHODS[method](ModelRoot(root), "one")
    assert set(scores) == {"near", "other"} and scores["near"] > scores["other"]


def test_exact_is_the_cosine_of_all_matrices(root: str) -> None:
    a, b = state(1), derive.noised(state(1), 0.1)
    flat = [np.concatenate([s[n].reshape(-1) for n in sorted(s) if s[n].ndim > 1]).astype(np.float64) for s in (a, b)]
    truth = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert by_weights(ModelRoot(root), "one")["near"] == pytest.approx(truth, abs=1e-6)


def test_the_truth_is_what_parents_tell(tmp_path: Path) -> None:
    base = archived_model(tmp_path)
    first = archived_child(tmp_path, "first", base, 1)
    archived_child(tmp_path, "last", first, 2)
    save_file(small_tensors(), tmp_path / "alone.safetensors")
    archive_model(str(tmp_path / "alone.safetensors"), tmp_path / "archives", "sink.name=alone")
    models = ModelRoot(str(tmp_path / "archives"))
    assert known_relatives(models, "last") == {"small", "first"} and known_relatives(models, "alone") == set()


def test_average_precision() -> None:
    assert average_precision({"a": 0.9, "b": 0.5, "c": 0.1}, {"a", "c"}) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision({"a": 1.0}, set()))


def test_agreement_is_a_rank_correlation() -> None:
    assert agreement({"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 20, "c": 400}) == pytest.approx(1)
    assert agreement({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}) == pytest.approx(-1)
    assert np.isnan(agreement({"a": 1}, {"a": 1}))


def test_of_models_without_parent_or_child_nothing_is_known() -> None:
    """They may be relatives that were archived alone, so they are no strangers either."""
    models = ModelRoot("nowhere")
    parents = {"a": "", "b": "a", "c": "", "d": "c", "alone": "", "gone": "deleted"}
    models.__dict__["rows"] = {name: {"name": name, "parent": parent} for name, parent in parents.items()}
    assert known_strangers(models, "a") == {"c", "d"} and known_relatives(models, "a") == {"b"}
    assert known_relatives(models, "alone") == set()


def test_the_command_compares_and_refuses(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    possible = [method for method in METHODS if find_spec("skimage") or method not in PICTURES]
    assert call(["similar", root, "one", "--compare", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert ("pip install 'hilbertflow[models]'" in printed.err) == (len(possible) < len(METHODS))
    assert told["relatives"] == told["strangers"] == [] and told["precision"] is None
    assert list(told["scores"]) == possible and told["agreement"]["exact"] == pytest.approx(1)
    assert call(["similar", root, "one", "--picture", str(tmp_path / "map.svg")]) == 2
    assert "--picture needs --explain" in capsys.readouterr().err
    assert call(["similar", root, "one", "--explain", "near", "--picture", str(tmp_path / "no" / "map.svg")]) == 1
    assert "map.svg: cannot be written; no such file or directory" in capsys.readouterr().err
    assert call(["similar", root, "one", "--method", "exact"]) == 0
    assert "near" in capsys.readouterr().out
    assert call(["similar", root, "one", "--method", "guess"]) == 2
    assert "'guess' is none of signature" in capsys.readouterr().err


def test_the_peers_of_the_bench_compare_what_two_models_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A layer that was dropped, and those after it that shifted, are lost; what kept its name is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole, short = state(1), derive.without_layers(state(1), r"layers\.(\d+)\.", [2])
    members = [Member(name, "f", (), "scratch", False) for name in ("whole", "short", "other")]
    for member, values in zip(members, (whole, short, {"conv": np.eye(64, dtype=np.float32)}), strict=True):
        member.path.parent.mkdir(parents=True)
        save_file(values, member.path)
    told = read_weights(members)
    squares = [sum(float(np.square(v).sum()) for v in s.values() if v.ndim > 1) for s in (whole, short)]
    assert told.cosine[0, 1] == pytest.approx((squares[1] / squares[0]) ** 0.5, rel=1e-5)
    assert told.distance[0, 1] == pytest.approx((1 - squares[1] / squares[0]) ** 0.5, rel=1e-5)
    assert told.cosine[0, 2] == 0 and np.isinf(told.distance[0, 2])


def test_temporal_lends_the_scores_of_those_archived_before_and_after(tmp_path: Path) -> None:
    """The order is that of time, not of names nor of likeness: a stranger beside the model asked about gains."""
    made = {"z-one": state(1), "m-beside": state(2), "a-far": state(3), "b-near": derive.noised(state(1), 0.1)}
    for at, (name, values) in enumerate(made.items()):
        save_file(values, tmp_path / f"{name}.safetensors")
        archive_model(str(tmp_path / f"{name}.safetensors"), tmp_path / "archives", f"sink.name={name}",
                      "operators.4.coder=rans", "operators.1.layout=raster", "operators.2.method=uniform")  # fmt: skip
        os.utime(tmp_path / "archives" / "models" / name / "manifest.json", (1.8e9 + at, 1.8e9 + at))
    models = ModelRoot(str(tmp_path / "archives"))
    assert models.in_time == list(made)
    alone, told = METHODS["signature"](models, "z-one"), METHODS["temporal"](models, "z-one")
    assert told["m-beside"] == pytest.approx((0.5 * 1 + alone["m-beside"] + 0.5 * alone["a-far"]) / 2)
    assert told["a-far"] == pytest.approx((0.5 * alone["m-beside"] + alone["a-far"] + 0.5 * alone["b-near"]) / 2)
    assert told["b-near"] == pytest.approx((0.5 * alone["a-far"] + alone["b-near"]) / 1.5)
    os.utime(tmp_path / "archives" / "models" / "m-beside" / "manifest.json", (1.9e9, 1.9e9))
    assert ModelRoot(str(tmp_path / "archives")).in_time == ["z-one", "a-far", "b-near", "m-beside"]
