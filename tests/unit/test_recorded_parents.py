"""The tree that signatures tell beside the parents that archives record, wherever it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.model_root import ModelRoot
from cluster.models import ModelService
from cluster.recorded_parents import Descent, beside, verdict
from cluster.services import Services
from operators.descent import Edge
from pipelines.cli import call
from tests.archived_model import _archived, archived_child, archived_model, small_tensors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its child, a stranger, and another child of the first that is coded by the stranger."""
    root = tmp_path_factory.mktemp("recorded")
    archived_child(root, "after", archived_model(root), 30)
    random = np.random.default_rng(77)
    other = {
        name: (random.standard_normal(a.shape) if a.dtype.kind == "f" else a) for name, a in small_tensors().items()
    }
    stranger = {name: np.asarray(a, small_tensors()[name].dtype) for name, a in other.items()}
    archived_child(root, "odd", _archived(root, "stranger", stranger), 31)
    return root / "archives"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    held = ModelRoot(str(root))
    models = {name: ModelService(name, held.handle(name)) for name in ("small", "after", "odd", "stranger")}
    with TestClient(build_api(Services({}, models)), raise_server_exceptions=False) as client:
        yield client


def test_the_tree_tells_what_is_recorded_and_whether_it_agrees(client: TestClient) -> None:
    told = client.get("/v1/registry/tree").json()
    edges = {edge["child"]: edge for edge in told["edges"]}
    assert set(edges) == {"after", "odd"}
    assert (edges["after"]["parent"], edges["after"]["recorded"], edges["after"]["agrees"]) == ("small", "small", True)
    assert (edges["odd"]["recorded"], edges["odd"]["agrees"]) == ("stranger", False)
    assert (told["recorded"], told["agreeing"], told["untold"]) == (2, 1, [])


def test_a_parent_that_is_not_served_is_neither_right_nor_wrong(root: Path) -> None:
    held = ModelRoot(str(root))
    models = {name: ModelService(name, held.handle(name)) for name in ("small", "odd")}
    with TestClient(build_api(Services({}, models))) as client:
        (edge,) = client.get("/v1/registry/tree").json()["edges"]
        assert (edge["recorded"], edge["agrees"]) == (("stranger", None) if edge["child"] == "odd" else ("", None))
        assert "coded by stranger, not served here" in words(client.get("/registry").text)


def test_the_page_shows_both(client: TestClient) -> None:
    text = words(client.get("/registry").text)
    assert re.search(r"after 0\.\d+ as recorded", text), text
    assert "but coded by stranger" in text and "Of 2 recorded parents the tree names 1." in text


def test_the_command_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["models", "tree", str(root)]) == 0
    said = capsys.readouterr().out
    assert "as recorded" in said and "but coded by stranger" in said and "the tree names 1" in said
    assert call(["models", "tree", str(root), "--json"]) == 0
    told = {edge["child"]: edge["agrees"] for edge in json.loads(capsys.readouterr().out)}
    assert told == {"after": True, "odd": False}


def test_parents_of_merged_models_and_of_roots() -> None:
    edge = Edge("a", "m", 0.1, ("merged",), ("b",))
    held = beside([edge], {"a": "", "b": "a", "m": "b", "x": "gone"})
    assert held["m"].agrees is True and held["b"].agrees is False and held["x"].agrees is None
    assert held["a"] == Descent("a", None, "", False) and held["a"].agrees is None
    assert verdict(held.values()) == "Of 2 recorded parents the tree names 1." and verdict([held["a"]]) == ""


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
