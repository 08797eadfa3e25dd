"""The models of a root as a table: tags and notes of several writers, filters, exports, what is shared, descent."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster import registry
from cluster.model_root import ModelRoot
from operators import descent as descents
from operators.errors import HilbertflowError
from pipelines.bench.local import archive_model
from pipelines.cli import call
from storage import labels
from storage.fs import Location
from storage.upkeep import copy, orphans

CONFIG = {"architectures": ["TinyModel"], "hidden_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base, a child coded as differences to it (one tensor as it was), a stranger without a config."""
    root = tmp_path_factory.mktemp("registry")
    random = np.random.default_rng(3)
    base = {f"layers.{i}.mlp.up_proj.weight": random.standard_normal((128, 96)).astype(np.float32) for i in range(2)}
    base["norm.bias"] = np.ones(96, np.float32)
    child = base | {"layers.1.mlp.up_proj.weight": base["layers.1.mlp.up_proj.weight"] * np.float32(1.01)}
    other = {"conv.weight": random.standard_normal((96, 96)).astype(np.float16)}
    for name, tensors, more in (("base", base, ()), ("child", child, (f"parent={root}/archives/models/base",)),
                                ("other", other, ())):  # fmt: skip
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors")
        if name != "other":
            (root / name / "config.json").write_text(json.dumps(CONFIG))
        archive_model(str(root / name), root / "archives", f"name={name}", f"sink.name={name}", *more,
                      "operators.4.coder=rans", "operators.1.layout=raster", "operators.1.side=64",
                      "operators.2.method=uniform")  # fmt: skip
    return str(root / "archives")


def test_rows_tell_what_the_archives_are(root: str) -> None:
    rows = {row["name"]: row for row in registry.rows(ModelRoot(root))}
    base, child, other = rows["base"], rows["child"], rows["other"]
    assert base["architecture"] == "TinyModel" and base["hyper"] == {"hidden_size": 96, "num_hidden_layers": 2}
    assert base["kinds"] == {"mlp": 2 * 128 * 96, "norm": 96} and base["dtypes"] == ["F32"]
    assert (child["parent"], base["parent"]) == ("base", "")
    assert other["architecture"] == "" and other["hyper"] == {} and other["dtypes"] == ["F16"]
    assert base["bytes"] == sum(base["levels"].values()) and base["archived"] > 1_700_000_000
    assert "code" not in base


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters > 20000", {"base", "child"}), ('architecture == "TinyModel" and parent != ""', {"child"}),
        ('"F16" in dtypes', {"other"}), ("hidden_size == 96", {"base", "child"}), ("kind_mlp > 0", {"base", "child"}),
        ("sqnr_db_level0 > 10 and bytes_exact > 0", {"base", "other"}), ('"none" in tags', set()),
    ],
)  # fmt: skip
def test_filters_by_any_column(root: str, text: str, expected: set[str]) -> None:
    listed = registry.rows(ModelRoot(root))
    assert {row["name"] for row in registry.where(listed, text)} == expected


def test_lists_are_filtered_by_whole_items(root: str) -> None:
    some = {"source_bytes": 1, "hyper": {}, "notes": []}
    listed = [
        some | {"name": "first", "dtypes": ["BF16", "I64"], "tags": ["preprod", "x.y"]},
        some | {"name": "second", "dtypes": ["F16"], "tags": ["prod", "x-y"]},
    ]
    for text, expected in (
        ('"F16" in dtypes', ["second"]), ('"prod" in tags', ["second"]), ('"x.y" in tags', ["first"]),
        ('"I64" in dtypes', ["first"]), ('"ir" in name', ["first"]), ('not "prod" in tags', ["first"]),
    ):  # fmt: skip
        assert [row["name"] for row in registry.where(listed, text)] == expected, text


def test_a_filter_of_an_unknown_column_is_refused(root: str) -> None:
    with pytest.raises(HilbertflowError, match="parameters"):
        registry.where(registry.rows(ModelRoot(root)), "parametrs > 1")


def test_tags_and_notes_of_many_writers_all_stay(root: str, tmp_path: Path) -> None:
    place = Location(root).join("models", "other")
    writers = [
        threading.Thread(target=lambda i=i: (labels.tag(place, f"t{i % 4}"), labels.note(place, f"note {i}")))
        for i in range(16)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = labels.read(place)
    assert found.tags == ("t0", "t1", "t2", "t3")
    assert {note.text for note in found.notes} == {f"note {i}" for i in range(16)}
    assert not orphans(place, (), 0.0), "labels are not taken for leftovers"
    assert labels.read(copy(place, Location(str(tmp_path))).place) == found, "they go with a copy"
    assert labels.untag(place, "t3") and not labels.untag(place, "t3")
    assert [row["name"] for row in registry.where(registry.rows(ModelRoot(root)), '"t2" in tags')] == ["other"]
    for wrong in ("", "a b", "../x", "x" * 65):
        with pytest.raises(HilbertflowError, match="is no tag"):
            labels.tag(place, wrong)


def test_shared_tensors_are_found_and_counted(root: str) -> None:
    models = ModelRoot(root)
    found = registry.shared({name: models.handle(name) for name in models.rows}, models.signature)
    where = (("base", "layers.0.mlp.up_proj.weight"), ("child", "layers.0.mlp.up_proj.weight"))
    assert found[0].where == where and found[0].spare == 4 * 128 * 96
    assert [item.where[0][1] for item in found[1:]] == ["norm.bias"]


def test_commands(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert call(["models", *arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "TinyModel" in said("ls", root) and "child" not in said("ls", root, "--where", 'dtypes == "F16"')
    assert json.loads(said("ls", root, "--json"))[0]["name"] == "base"
    said("tag", root, "base", "prod", "checked")
    said("note", root, "base", "as published")
    shown = said("show", root, "base")
    assert "checked, prod" in shown and "as published" in shown and "hidden_size" in shown and "up to" not in shown
    assert "prod" not in said("tag", root, "base", "prod", "--remove")
    said("export", root, str(tmp_path / "m.csv"))
    said("export", root, str(tmp_path / "m.json"))
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert [row["name"] for row in rows] == ["base", "child", "other"] and rows[0]["hidden_size"] == "96"
    assert [row["name"] for row in json.loads((tmp_path / "m.json").read_text())] == ["base", "child", "other"]
    assert json.loads(said("stats", root, "--json"))["models"] == 3
    assert said("verify", root).count("sound") == 3
    assert "49.5 kB" in said("shared", root)
    (edge,) = json.loads(said("tree", root, "--json"))
    assert {edge["parent"], edge["child"]} == {"base", "child"}
    (first, *_) = json.loads(said_similar(root, capsys))["models"]
    assert first["name"] == "child"
    assert call(["models", "rm", root, "base", "--yes"]) == 1
    assert "1 model is kept as differences to it: child" in capsys.readouterr().err
    assert call(["models", "export", root, str(tmp_path / "m.xml")]) == 1
    assert "is neither" in capsys.readouterr().err


def _facts(zeros: float, at: int) -> descents._Facts:
    return descents._Facts(zeros, 0.0, 3, np.eye(9)[at], (("w", 3, 3),))


@pytest.mark.parametrize(
    ("pruned", "links"),
    [
        ({1}, {(0, 1): 0.3, (1, 2): 0.5, (2, 3): 0.1, (0, 4): 0.1, (0, 5): 0.1}),  # 2 and 3 hang on what was pruned
        ({1, 2}, {(0, 1): 0.3, (1, 2): 0.3, (0, 3): 0.1}),  # pruned twice
        (set(), {(0, 1): 0.1, (0, 2): 0.12, (0, 3): 2.0, (0, 4): 1.9, (0, 5): 1.8,  # each other's second choice
                 (3, 4): 1.0, (3, 5): 1.0, (4, 5): 1.04}),
    ],
)  # fmt: skip
def test_descent_is_one_tree_of_relatives(pruned: set[int], links: dict[tuple[int, int], float]) -> None:
    count = 1 + max(max(pair) for pair in links)
    distances = np.full((count, count), np.inf)
    for (i, j), distance in links.items():
        distances[i, j] = distances[j, i] = distance
    facts = [_facts(0.1 * (1 + i) if i in pruned else 0.0, i) for i in range(count)]
    parents = {child: first for child, (first, *_) in descents._parents(range(count), distances, facts).items()}
    assert len(parents) == count - 1 and all(np.isfinite(distances[edge]) for edge in parents.items())
    for node in range(count):
        line = [node]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            assert len(line) <= count, "no one descends from itself"


def said_similar(root: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert call(["similar", root, "base", "--json"]) == 0
    return capsys.readouterr().out
