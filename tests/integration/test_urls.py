"""Every recipe that comes along, on S3 and in memory: source and archive lie there, searched and served there.

The bytes are those of the same recipe on a disk; nothing but the storage edge knows where they lie.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from cluster.api import build_api
from cluster.build import build_indexes
from cluster.models import ModelService
from cluster.services import Services
from pipelines.bench.s3_server import server
from pipelines.cli import call
from pipelines.recipe import RECIPES, load
from pipelines.run import run_here
from storage.fs import Location
from storage.verify import verify
from tests.archived_model import small_tensors
from tests.collection_fixtures import clustered
from tests.model_fixtures import WORDS, bert, clip
from tests.page_fixtures import collection_service
from tests.pictures import png

NAMES = tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))
ROWS, DIM = 600, 12
LEFT_OUT = ("manifest.json", "objects.parquet")
"""They tell the recipe, and with it where the source lies."""


@pytest.fixture(scope="module", params=["s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a store with room."""
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}"
        return
    with server(tmp_path_factory.mktemp("s3"), "urls"):
        yield "s3://urls"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small random encoders, of texts and of pictures."""
    folder = tmp_path_factory.mktemp("models")
    return {"text": str(bert(folder / "bert")), "picture": str(clip(folder / "clip"))}


def files(name: str, folder: Path) -> dict[str, bytes]:
    """What the source of a recipe holds, by path."""
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(48)]
    if name == "quickstart-model":
        return {"model.safetensors": save(small_tensors())}
    if name == "vectors":
        np.save(folder / "v.npy", clustered(ROWS, DIM))
        return {"v.npy": (folder / "v.npy").read_bytes()}
    if name == "images":
        return {f"{i % 3}/{i:02d}.png": png(seed=i) for i in range(24)}
    if name == "documents":
        return {f"deep/{i:02d}.txt": text.encode() for i, text in enumerate(texts)}
    body = "\n\n".join(f'def name_{i}():\n    """{text.capitalize()}."""' for i, text in enumerate(texts))
    return {"package/module.py": body.encode()}


def settings(name: str, source: str, models: dict[str, str]) -> list[str]:
    """A small run of a recipe."""
    if name == "quickstart-model":
        return [f"source.path={source}/model.safetensors", "operators.1.side=64", "operators.1.layout=hilbert",
                "operators.2.states=4", "operators.4.coder=rans", "compute.planes_per_unit=8"]  # fmt: skip
    if name == "vectors":
        return [f"source.path={source}/v.npy", "compute.rows_per_unit=256", "operators.0.order=lists"]
    model = models["picture" if name == "images" else "text"]
    return [f"source.path={source}", f"operators.0.model={model}", "compute.rows_per_unit=32", "index.kind=hnsw"]


def contents(place: Location) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.list() if not key.endswith(LEFT_OUT)}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_where_its_bytes_lie(
    name: str, store: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, data in files(name, tmp_path).items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(data)
        Location(f"{store}/sources/{name}").write_atomic(path, data)
    here = name == "quickstart-docs"  # Python files are read from a disk, as those of installed packages are
    source, root = (str(tmp_path / "source") if here else f"{store}/sources/{name}"), f"{store}/{name}"
    near = load(name, [*settings(name, str(tmp_path / "source"), models), f"sink.path={tmp_path}/root"])
    far = load(name, [*settings(name, source, models), f"sink.path={root}"])
    expected, report = run_here(near), run_here(far)
    assert report.url.startswith(store) and report.written == expected.written >= 1
    places = str(tmp_path / "source").encode(), source.encode()  # pictures are shown from where they lie
    there = {key: data.replace(*places[::-1]) for key, data in contents(Location(report.url)).items()}
    assert there == contents(Location(expected.url))
    assert verify(Location(report.url)).sound
    assert run_here(far).written == 0
    capsys.readouterr()
    assert call(["ls", root, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == far.archive_name and "code" not in row
    if name == "quickstart-model":
        is_served_as_a_model(report.url)
        return
    assert far.index is not None
    for url in (report.url, expected.url):
        build_indexes(url, far.index.kinds, shards=far.index.shards, actors=0)
    service = collection_service(far.archive_name, report.url)
    query = np.random.default_rng(3).standard_normal((1, service.collection.dim)).astype(np.float32)
    np.save(tmp_path / "q.npy", query)
    asked = [["--vector", str(tmp_path / "q.npy")], *([] if name == "vectors" else [["--text", "a red dress"]])]
    for tier in ("exact", *far.index.kinds):
        for question in asked:
            ids = searched(root, tier, question, capsys)
            assert len(set(ids)) == 5 and ids == searched(expected.url, tier, question, capsys)
    with TestClient(build_api(Services({service.name: service}))) as client:
        for tier in ("exact", *far.index.kinds):
            body = {"vectors": query.tolist(), "k": 5, "tier": tier}
            reply = client.post(f"/v1/collections/{service.name}/search", json=body)
            assert reply.status_code == 200, reply.text
            assert reply.json()["results"][0]["ids"] == searched(root, tier, asked[0], capsys)


def searched(url: str, tier: str, asked: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Ids of the five nearest."""
    assert call(["search", url, *asked, "-k", "5", "--tier", tier, "--json"]) == 0
    ids: list[str] = json.loads(capsys.readouterr().out)["results"][0]["ids"]
    return ids


def is_served_as_a_model(url: str) -> None:
    """A tensor over HTTP has the source's bytes."""
    with TestClient(build_api(Services({}, {"minilm": ModelService.open("minilm", url)}))) as client:
        reply = client.get("/v1/models/minilm/tensors/layer.1.weight?format=npy&level=exact")
        assert reply.status_code == 200, reply.text
        np.testing.assert_array_equal(np.load(io.BytesIO(reply.content)), small_tensors()["layer.1.weight"])
