"""A model's integrity over HTTP and on the page: told as it goes, true of what lies on storage now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cluster import verify_route
from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.config import Limits
from cluster.models import ModelService
from cluster.services import Services
from storage import manifest as manifests
from tests.archived_model import archived_child, archived_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of a model and its child."""
    root = tmp_path_factory.mktemp("verify")
    archived_child(root, "after", archived_model(root), 1)
    return root / "archives"


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "archives"))


@pytest.fixture
def models(root: Path) -> dict[str, ModelService]:
    return {name: ModelService.open(name, str(root / "models" / name)) for name in ("small", "after")}


@pytest.fixture
def client(models: dict[str, ModelService]) -> Iterator[TestClient]:
    with TestClient(build_api(Services({}, models)), raise_server_exceptions=False) as client:
        yield client


def lines(client: TestClient, name: str) -> list[dict[str, Any]]:
    reply = client.get(f"/v1/models/{name}/verify")
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_sound_model_is_told_as_it_is_read(
    client: TestClient, models: dict[str, ModelService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_route, "SLICE", 1)
    place = models["small"].archive.place
    objects = manifests.load_objects(place, manifests.load(place))
    steps = lines(client, "small")
    assert len(steps) == len(objects) + 1 and [step["objects"] for step in steps[:-1]] == [*range(1, len(objects) + 1)]
    assert [step["sound"] for step in steps] == [None] * len(objects) + [True]
    assert steps[-1] | {"total": 0} == {
        "done": sum(item.size for item in objects), "total": 0, "objects": len(objects), "damaged": [], "sound": True,
    }  # fmt: skip
    assert "Sound." in client.get("/models/small/verify").text


def test_every_object_that_is_damaged_is_named_once(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_route, "SLICE", 1)
    level = sorted((root / "models" / "small" / "level0").rglob("*"))
    spoilt = next(path for path in level if path.is_file() and path.name != "zarr.json")
    data = bytearray(spoilt.read_bytes())
    data[len(data) // 2] ^= 1
    spoilt.write_bytes(bytes(data))
    (root / "models" / "small" / "signature.parquet").unlink()
    steps = lines(client, "small")
    key = str(spoilt.relative_to(root / "models" / "small"))
    assert [line for step in steps for line in step["damaged"]] == [
        f"{key}: checksum differs",
        "signature.parquet: missing",
    ]
    assert steps[-1]["sound"] is False
    page = client.get("/models/small/verify").text
    assert "Damaged: 2 faults" in page and key in page


def test_a_child_without_its_parent_and_a_damaged_manifest_are_no_sound_models(
    client: TestClient, root: Path, whole: Path
) -> None:
    assert lines(client, "after")[-1]["sound"] is True
    (root / "models" / "small" / "manifest.json").unlink()
    assert lines(client, "after")[-1]["sound"] is True, "it lies where it lay when the child was archived"
    there = whole / "models" / "small"
    there.rename(whole / "away")
    last = lines(client, "after")[-1]
    (whole / "away").rename(there)
    assert last["sound"] is False and "is not there" in last["damaged"][0]
    (root / "models" / "after" / "manifest.json").write_bytes(b"{")
    (only,) = lines(client, "after")
    assert only["sound"] is False and "damaged manifest" in only["damaged"][0] and only["objects"] == 0


def test_it_needs_a_key_that_may_read_the_model(models: dict[str, ModelService], tmp_path: Path) -> None:
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- {{name: some, sha256: {digest}, scopes: ['read:small']}}\n")
    with TestClient(build_api(Services({}, models, keys=Keys(str(path))))) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/v1/models/small/verify", headers=headers).status_code == 200
        assert client.get("/v1/models/after/verify", headers=headers).status_code == 403
        assert client.get("/v1/models/small/verify").status_code == 401
        assert client.get("/models/after/verify", headers=headers).status_code == 403


def test_a_page_does_not_wait_for_a_large_archive(models: dict[str, ModelService]) -> None:
    with TestClient(build_api(Services({}, models, Limits(read_bytes=1000)))) as client:
        assert "more than a page waits for" in client.get("/models/small/verify").text
        assert lines(client, "small")[-1]["sound"] is True
        head = client.head("/v1/models/small/verify")
        assert (head.status_code, head.content) == (200, b"")
