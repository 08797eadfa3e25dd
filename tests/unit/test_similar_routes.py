"""Models like one over HTTP and on the page, by every method: the figures of the command line, bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from cluster import served_models
from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.config import Limits
from cluster.model_methods import METHODS, PICTURES
from cluster.model_root import ModelRoot
from cluster.models import ModelService
from cluster.services import Services
from pipelines.bench import zoo_derive as derive
from pipelines.bench.local import archive_model
from pipelines.cli import call
from tests.unit.test_signature import state

POSSIBLE = [method for method in METHODS if find_spec("skimage") or method not in PICTURES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two families of a model and its child, coded by its differences."""
    root = tmp_path_factory.mktemp("similar")
    made = {"one": (state(1), ""), "near": (derive.noised(state(1), 0.1), "one"), "other": (state(2), ""),
            "another": (derive.noised(state(2), 0.1), "other")}  # fmt: skip
    for name, (values, parent) in made.items():
        save_file(values, root / f"{name}.safetensors")
        sets = [
            f"sink.name={name}",
            "operators.4.coder=rans",
            "operators.1.layout=raster",
            "operators.2.method=uniform",
        ]
        sets += [f"parent={root}/archives/models/{parent}"] if parent else []
        archive_model(str(root / f"{name}.safetensors"), root / "archives", *sets)
    return str(root / "archives")


@pytest.fixture(scope="module")
def models(root: str) -> dict[str, ModelService]:
    """Under other names than in their root."""
    held = ModelRoot(root)
    return {f"m-{name}": ModelService(f"m-{name}", held.handle(name)) for name in held.rows}


@pytest.fixture
def client(models: dict[str, ModelService]) -> Iterator[TestClient]:
    with TestClient(build_api(Services({}, models)), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("method", POSSIBLE)
def test_every_method_tells_what_the_command_tells(client: TestClient, root: str, method: str) -> None:
    told = client.get("/v1/models/m-one/similar", params={"method": method}).json()
    truth = METHODS[method](ModelRoot(root), "one")
    assert told["method"] == method and told["models"][0]["name"] == "m-near"
    assert {one["name"]: one["score"] for one in told["models"]} == pytest.approx(
        {f"m-{name}": score for name, score in truth.items()}
    )
    near = told["models"][0]
    assert near["layers"] > 0 and near["distance"] == pytest.approx(0.1, rel=0.3), "the rest is told by signatures"
    assert len(client.get("/v1/models/m-one/similar", params={"method": method, "k": 1}).json()["models"]) == 1


def test_the_comparison_has_the_figures_of_the_command(
    client: TestClient, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = client.get("/v1/models/m-one/compare").json()
    assert call(["similar", root, "one", "--compare", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (told["relatives"], told["strangers"]) == (["m-near"], ["m-another", "m-other"])
    assert [one["method"] for one in told["methods"]] == POSSIBLE == list(said["scores"])
    assert set(told["left_out"]) == set(METHODS) - set(POSSIBLE)
    for one in told["methods"]:
        assert one["precision"] == pytest.approx(said["precision"][one["method"]])
        assert one["agreement"] == pytest.approx(said["agreement"][one["method"]])
    assert told["methods"][0]["precision"] == 1.0
    assert told["models"][0]["name"] == "m-near"
    assert told["models"][0]["scores"] == pytest.approx({m: said["scores"][m]["near"] for m in POSSIBLE})


def test_what_would_read_too_much_is_refused(models: dict[str, ModelService]) -> None:
    """Pairs of models, and a child's parent with it; the comparison does without."""
    one, size = models["m-one"], models["m-one"].about["source_bytes"]
    assert served_models._bytes("exact", one, list(models.values())) == (1 + 2 + 1 + 1 + 1 + 2) * size
    with TestClient(build_api(Services({}, models, Limits(read_bytes=8 * size - 1)))) as client:
        refused = client.get("/v1/models/m-one/similar?method=exact")
        assert refused.status_code == 422 and refused.json()["where"] == "method"
        assert "exact would read" in refused.json()["detail"] and "hilbertflow similar" in refused.json()["remedy"]
        assert client.get("/v1/models/m-one/similar?method=temporal").status_code == 200
        told = client.get("/v1/models/m-one/compare").json()
        assert "exact would read" in told["left_out"]["exact"] and told["models"][0]["name"] == "m-near"
        assert {one["agreement"] for one in told["methods"]} == {None} and told["methods"][0]["precision"] == 1.0
        assert client.get("/models/m-one/similar?method=exact").status_code == 422
        assert "Left out: exact would read" in client.get("/models/m-one/similar?method=all").text
    with TestClient(build_api(Services({}, models, Limits(read_bytes=8 * size)))) as client:
        assert client.get("/v1/models/m-one/similar?method=exact").status_code == 200


def test_a_method_that_is_none_is_refused(client: TestClient) -> None:
    assert client.get("/v1/models/m-one/similar?method=guess").status_code == 422
    assert client.get("/models/m-one/similar?method=guess").status_code == 422
    assert client.get("/v1/models/none/compare").status_code == 404


@pytest.mark.skipif(find_spec("skimage") is not None, reason="scikit-image is here")
def test_a_method_that_is_not_installed_says_what_to_install(client: TestClient) -> None:
    reply = client.get("/v1/models/m-one/similar?method=hybrid")
    assert reply.status_code == 422 and "pip install 'hilbertflow[models]'" in reply.json()["detail"]


def test_only_what_one_may_read_is_compared(models: dict[str, ModelService], tmp_path: Path) -> None:
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- {{name: some, sha256: {digest}, scopes: ['read:m-one', 'read:m-other']}}\n")
    with TestClient(build_api(Services({}, models, keys=Keys(str(path))))) as client:
        headers = {"Authorization": f"Bearer {token}"}
        for address in ("similar?method=exact", "similar?method=temporal", "compare"):
            text = client.get(f"/v1/models/m-one/{address}", headers=headers)
            assert text.status_code == 200 and "m-other" in text.text and "near" not in text.text
        assert client.get("/v1/models/m-near/compare", headers=headers).status_code == 403
        assert client.get("/v1/models/m-one/compare").status_code == 401


def test_the_page_lets_one_choose(client: TestClient) -> None:
    """The model's own view and that of its relatives, by forms and links alone."""
    whole = client.get("/models/m-one?near=exact").text
    assert '<option value="exact" selected>' in whole and 'data-load="/models/m-one/similar?method=exact"' in whole
    assert 'data-load="/models/m-one/similar?method=signature"' in client.get("/models/m-one?near=%3Cb%3E").text
    exact = client.get("/models/m-one/similar?method=exact").text
    assert '<option value="exact" selected>' in exact and "cosine of all weights" in exact
    compared = client.get("/models/m-one/similar?method=all").text
    assert "Rank correlation with exact" in compared and "1.000" in compared
    assert "its 1 relative by parent (m-near) among 2 models of other parents; 0 of unknown descent" in compared
