"""The models taken together over HTTP: counts, descent, what is shared, where two differ; only what one may read."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.model_root import ModelRoot
from cluster.models import ModelService
from cluster.services import Services
from tests.archived_model import archived_child, archived_model, small_tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelService]:
    """A model and what became of it by training."""
    root = tmp_path_factory.mktemp("registry")
    url = archived_model(root)
    archived_child(root, "after", url, 20)
    held = ModelRoot(str(root / "archives"))
    return {name: ModelService(name, held.handle(name)) for name in ("small", "after")}


@pytest.fixture
def client(models: dict[str, ModelService]) -> Iterator[TestClient]:
    with TestClient(build_api(Services({}, models)), raise_server_exceptions=False) as client:
        yield client


def test_a_model_tells_what_the_registry_knows(client: TestClient) -> None:
    about = client.get("/v1/models/after").json()
    assert about["parent"] == "small" and about["archived"] > 1.7e9
    assert sum(about["kinds"].values()) == about["parameters"] == sum(a.size for a in small_tensors().values())
    assert client.get("/v1/models/small").json()["parent"] == ""


def test_models_are_counted(client: TestClient) -> None:
    told = client.get("/v1/registry/statistics").json()
    assert (told["models"], told["children"]) == (2, 1)
    assert told["bytes"] == sum(item["archive_bytes"] for item in client.get("/v1/models").json()["models"])
    assert client.get("/v1/registry/statistics", params={"filter": 'parent == "small"'}).json()["models"] == 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/registry/statistics"])
def test_a_wrong_filter_is_told_the_columns_of_models(client: TestClient, path: str) -> None:
    """Those that `hilbertflow models ls` has, not those of a collection of texts; the example works here."""
    for wrong in ("package == 'numpy'", "nonsense ==", "parameters == 'many'", "paramters > 3"):
        reply = client.get(path, params={"filter": wrong})
        assert reply.status_code == 422
        remedy = reply.json()["remedy"]
        assert "lines" not in remedy and "package" not in remedy
        if example := remedy.partition("write for example: ")[2]:
            assert client.get(path, params={"filter": example}).status_code == 200, example
        else:
            assert all(name in remedy for name in ("name", "architecture", "parameters", "tags", "bytes_exact"))
    assert "did you mean 'parameters'?" in remedy


def test_descent_is_told(client: TestClient) -> None:
    (edge,) = client.get("/v1/registry/tree").json()["edges"]
    assert {edge["parent"], edge["child"]} == {"small", "after"} and 0 < edge["distance"] < 0.5


def test_shared_tensors_are_found(client: TestClient) -> None:
    """Training moved two tensors of five."""
    told = client.get("/v1/registry/shared").json()
    names = {tensor["where"][0]["tensor"] for tensor in told["tensors"]}
    assert names == {"blocks/0/bias", "positions", "scale"}
    assert told["spare_bytes"] == sum(small_tensors()[name].nbytes for name in names)


def test_where_two_models_differ(client: TestClient) -> None:
    rows = client.get("/v1/models/small/differences/after").json()["tensors"]
    assert {row["tensor"] for row in rows} == {"layer.0.weight", "layer.1.weight"}
    assert all(0 < row["change"] < 0.5 and row["score"] > 0.9 for row in rows)
    drawn = client.get("/v1/models/small/differences/after/map.svg")
    assert drawn.headers["content-type"] == "image/svg+xml" and drawn.text.count("<title>") == 2
    assert client.get("/v1/models/small/differences/none").status_code == 404


def test_only_what_one_may_read(models: dict[str, ModelService], tmp_path: Path) -> None:
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- {{name: some, sha256: {digest}, scopes: ['read:small']}}\n")
    with TestClient(build_api(Services({}, models, keys=Keys(str(path))))) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/v1/registry/statistics", headers=headers).json()["models"] == 1
        assert client.get("/v1/registry/tree", headers=headers).json()["edges"] == []
        assert client.get("/v1/registry/shared", headers=headers).json()["tensors"] == []
        assert client.get("/v1/models/small/differences/after", headers=headers).status_code == 403
        assert client.get("/v1/registry/tree").status_code == 401
        assert "after" not in client.get("/v1/registry/export?format=json", headers=headers).text
        assert client.get("/v1/registry/export").status_code == 401


def test_the_list_is_exported_as_the_command_does(client: TestClient, tmp_path: Path) -> None:
    """The same columns and filters, for those that one may read, in two formats; links on the page."""
    reply = client.get("/v1/registry/export")
    assert reply.headers["content-type"].startswith("text/csv")
    assert reply.headers["content-disposition"] == 'attachment; filename="models.csv"'
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [row["name"] for row in rows] == ["small", "after"] and rows[1]["parent"] == "small"
    assert int(rows[0]["bytes_level0"]) > 0
    asked = {"format": "json", "filter": 'parent == "small"'}
    (only,) = client.get("/v1/registry/export", params=asked).json()
    about = client.get("/v1/models/after").json()
    assert (only["name"], only["parameters"], only["kinds"]) == ("after", about["parameters"], about["kinds"])
    assert client.get("/v1/registry/export", params={"filter": "parameters > 1e12"}).text == ""
    assert client.get("/v1/registry/export?format=xml").status_code == 422
    assert client.get("/v1/registry/export", params={"filter": "nonsense =="}).status_code == 422
    page = client.get("/registry", params={"filter": 'parent == "small"'}).text
    assert len(re.findall(r'<th scope="row"><a href="/models/', page)) == 1
    for link in re.findall(r'href="(/v1/registry/export[^"]*)"', page):
        assert client.get(html.unescape(link)).text.count("after") and "small.safetensors" not in link
    assert client.get("/registry", params={"filter": "nonsense =="}).status_code == 422
    assert "It holds for none of 2 models" in client.get("/registry", params={"filter": "parameters > 1e12"}).text
