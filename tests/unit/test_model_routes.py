"""Models over HTTP: what is told of them, tensors at any level and range, pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.model_routes import byte_range
from cluster.models import ModelService
from cluster.problems import Refused
from cluster.services import Services
from operators.errors import HilbertflowError
from storage import labels
from tests.archived_model import Arrays, archived_child, archived_model, small_tensors


@pytest.fixture(scope="module")
def source() -> Arrays:
    return small_tensors()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ModelService:
    return ModelService.open("small", archived_model(tmp_path_factory.mktemp("models")))


@pytest.fixture
def client(service: ModelService) -> Iterator[TestClient]:
    """Without keys."""
    with TestClient(build_api(Services({}, {"small": service})), raise_server_exceptions=False) as client:
        yield client


TENSORS = "/v1/models/small/tensors/"


def test_models_are_described(client: TestClient, source: Arrays) -> None:
    """Sizes by level, tensors with their shapes."""
    (listed,) = client.get("/v1/models").json()["models"]
    about = client.get("/v1/models/small").json()
    tensors = about.pop("tensor_list")
    assert about == listed
    assert about["tensors"] == len(source)
    assert about["parameters"] == sum(array.size for array in source.values())
    assert about["levels"][-1] == "exact"
    assert about["archive_bytes"] == sum(about["level_bytes"].values())
    assert {t["name"]: tuple(t["shape"]) for t in tensors} == {name: a.shape for name, a in source.items()}
    assert client.get("/v1/models/other").status_code == 404


def test_the_nearest_models_are_told(service: ModelService, tmp_path: Path) -> None:
    """Best first, of those that the caller may read, never the model itself."""
    models = {name: ModelService(name, service.archive) for name in ("small", "twin", "hidden")}
    with TestClient(build_api(Services({}, models))) as client:
        found = client.get("/v1/models/small/similar?k=5").json()
        assert client.get("/v1/models/none/similar").status_code == 404
        assert client.get("/v1/models/small/similar?k=0").status_code == 422
    assert (found["model"], found["method"]) == ("small", "signature")
    assert {item["name"] for item in found["models"]} == {"twin", "hidden"}
    assert all(item["score"] == pytest.approx(1, abs=1e-3) and item["distance"] == 0 for item in found["models"])
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- {{name: some, sha256: {digest}, scopes: ['read:small', 'read:twin']}}\n")
    with TestClient(build_api(Services({}, models, keys=Keys(str(path))))) as client:
        bearer = {"Authorization": f"Bearer {token}"}
        (only,) = client.get("/v1/models/small/similar", headers=bearer).json()["models"]
        assert only["name"] == "twin"
        assert client.get("/v1/models/hidden/similar", headers=bearer).status_code == 403


def test_tensors_come_back_exactly(client: TestClient, source: Arrays) -> None:
    """Both formats, whole and by rows, read by the formats' own readers."""
    for name, array in source.items():
        whole = client.get(TENSORS + name)
        assert whole.status_code == 200, whole.text
        assert int(whole.headers["content-length"]) == len(whole.content)
        (key, value), = load(whole.content).items()  # fmt: skip
        assert key == name
        assert value.dtype == array.dtype
        assert np.array_equal(value, array)
        npy = np.load(io.BytesIO(client.get(TENSORS + name, params={"format": "npy"}).content))
        assert npy.dtype == array.dtype
        assert np.array_equal(npy, array)
        if array.ndim > 1:
            for rows, expected in (("1:3", array[1:3]), (":2", array[:2]), ("2:", array[2:]), ("1:1", array[1:1])):
                part = np.load(io.BytesIO(client.get(TENSORS + name, params={"format": "npy", "rows": rows}).content))
                assert np.array_equal(part, expected)


def test_heads_without_bodies(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD has the headers of GET; a tensor is not decoded for it."""
    for path in (TENSORS + "layer.0.weight", "/v1/models", "/models/small", "/healthz"):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "accept-ranges"):
            assert head.headers.get(name) == whole.headers.get(name), (path, name)
    monkeypatch.setattr("cluster.model_routes._stream", None)
    part = client.head(TENSORS + "layer.0.weight", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.headers["content-length"]) == (206, "5")
    assert client.head(TENSORS + "none").status_code == 404


def test_levels_come_closer(client: TestClient, source: Arrays) -> None:
    """Every level is a whole answer; the error falls."""
    array = source["layer.0.weight"]
    errors = []
    for level in client.get("/v1/models/small").json()["levels"]:
        reply = client.get(TENSORS + "layer.0.weight", params={"level": level, "format": "npy"})
        errors.append(float(np.abs(np.load(io.BytesIO(reply.content)) - array).mean()))
        assert load(client.get(TENSORS + "layer.0.weight", params={"level": level}).content)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert errors[-1] == 0


def test_ranges_are_pieces_of_the_same_file(client: TestClient) -> None:
    """Any range of the exact level, in both formats; not at other levels; ETags answer 304."""
    random = np.random.default_rng(2)
    for kind in ("safetensors", "npy"):
        for name in ("layer.0.weight", "layer.1.weight", "positions"):
            url = f"{TENSORS}{name}?format={kind}"
            whole = client.get(url)
            size = len(whole.content)
            spans = [(0, 1), (size - 1, size), (0, size), *np.sort(random.integers(0, size, (12, 2))).tolist()]
            for start, stop in spans:
                if start == stop:
                    continue
                reply = client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
                assert reply.status_code == 206
                assert reply.content == whole.content[start:stop]
                assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert client.get(url, headers={"Range": "bytes=-5"}).content == whole.content[-5:]
            beyond = client.get(url, headers={"Range": f"bytes={size}-"})
            assert beyond.status_code == 416
            assert beyond.headers["content-range"] == f"bytes */{size}"
            tag = whole.headers["etag"]
            assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
            other = {"Range": "bytes=0-3", "If-Range": '"another"'}
            assert client.get(url, headers=other).content == whole.content
    lossy = client.get(TENSORS + "layer.0.weight?level=0", headers={"Range": "bytes=0-3"})
    assert (lossy.status_code, lossy.headers["accept-ranges"]) == (200, "none")


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=0-9", (0, 10)), ("bytes=5-", (5, 100)), ("bytes=-7", (93, 100)), ("bytes=90-999", (90, 100)),
     ("bytes=-999", (0, 100)), ("bytes=0-1,3-4", None), ("lines=1-2", None), ("bytes=-", None), ("bytes=9-3", None)],
)  # fmt: skip
def test_range_headers(header: str, expected: tuple[int, int] | None) -> None:
    """RFC 9110; what is not followed is answered whole."""
    assert byte_range(header, 100) == expected
    with pytest.raises(Refused):
        byte_range("bytes=-0", 100)


@pytest.mark.parametrize(
    ("path", "status"),
    [("nothing", 404), ("layer.0.weigh", 404), ("../../etc/passwd", 404), ("layer.0.weight?level=9", 422),
     ("layer.0.weight?rows=5", 422), ("layer.0.weight?rows=9:3", 422), ("layer.0.weight?rows=0:301", 422),
     ("scale?rows=0:0", 422), ("layer.0.weight?rows=-1:2", 422), ("layer.0.weight?format=exe", 422),
     ("nothing/planes.png", 404), ("layer.0.weight/planes.png?level=9", 422), ("layer.0.weight?rows=²:", 422)],
)  # fmt: skip
def test_tensors_that_cannot_be_read(client: TestClient, path: str, status: int) -> None:
    """A problem document that says what there is."""
    reply = client.get(TENSORS + path)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"


def test_pictures(client: TestClient, source: Arrays) -> None:
    """A PNG at every level, of any dtype."""
    from PIL import Image

    for name in source:
        reply = client.get(f"{TENSORS}{name}/planes.png", params={"level": "0"})
        assert reply.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(reply.content))
        assert image.mode == "L"
        assert min(image.size) >= 64
    clear = np.asarray(Image.open(io.BytesIO(client.get(f"{TENSORS}layer.0.weight/planes.png").content)).convert("LA"))
    assert clear[0, 0, 1] == 255  # a value, and what lies behind the last plane: ten of them are four wide, three high
    assert clear.shape[:2] == (200, 268) and not clear[-1, -1, 1]


def test_a_chain_is_a_video(service: ModelService, tmp_path: Path) -> None:
    """Three checkpoints are three frames; what was drawn is kept, ranges are pieces of it, no parent is a 404."""
    first = archived_child(tmp_path, "first", service.archive.url, 1)
    last = ModelService.open("last", archived_child(tmp_path, "last", first, 2))
    with TestClient(build_api(Services({}, {"small": service, "last": last}))) as client:
        address = "/v1/models/last/tensors/layer.0.weight/chain.mp4"
        whole = client.get(address)
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        with av.open(io.BytesIO(whole.content)) as video:
            frames = [frame.to_ndarray(format="gray").astype(int) for frame in video.decode(video=0)]
        spread = [float(np.abs(frame[:, 72:] - 128).mean()) for frame in frames]
        assert len(frames) == 3
        assert spread[0] < 2 < spread[1] < spread[2]
        part = client.get(address, headers={"Range": "bytes=10-99"})
        assert (part.status_code, part.content) == (206, whole.content[10:100])
        assert part.headers["content-range"] == f"bytes 10-99/{len(whole.content)}"
        assert client.get(address, headers={"Range": "bytes=999999999-"}).status_code == 416
        assert last.chain("layer.0.weight") is last.chain("layer.0.weight")
        assert client.get(TENSORS + "layer.0.weight/chain.mp4").status_code == 404
        page = client.get("/models/last").text
        assert "2 steps from a checkpoint that stands alone" in page
        assert "<video" in client.get("/models/last/tensors/layer.0.weight").text


def test_models_are_guarded_too(service: ModelService, tmp_path: Path) -> None:
    """By the same keys and scopes as collections; metrics want a key for everything."""
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: a, sha256: {digest}, scopes: ['read:other']}}]")
    services = Services({}, {"small": service}, keys=Keys(str(path)))
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/v1/models/small").status_code == 401
        for url in ("/v1/models/small", TENSORS + "scale", TENSORS + "scale/planes.png", "/metrics"):
            assert client.get(url, headers=headers).status_code == 403
        assert client.get("/v1/models", headers=headers).json() == {"models": []}


def test_a_collection_is_no_model(tmp_path: Path) -> None:
    """And the other way round it is refused by the same sentence."""
    from tests.collection_fixtures import archive_vectors, clustered

    with pytest.raises(HilbertflowError, match="is a collection"):
        ModelService.open("x", archive_vectors(tmp_path, clustered(50, 8)))


def test_tags_and_notes_are_told_as_they_are_now(tmp_path: Path) -> None:
    """Written by another process while the model is served; models can be chosen by them."""
    small = archived_model(tmp_path)
    child = archived_child(tmp_path, "child", small, 1)
    models = {name: ModelService.open(name, url) for name, url in (("first", small), ("second", child))}
    with TestClient(build_api(Services({}, models)), raise_server_exceptions=False) as client:
        assert [(about["tags"], about["notes"]) for about in client.get("/v1/models").json()["models"]] == [
            ([], [])
        ] * 2
        labels.tag(models["second"].archive.place, "prod")
        labels.note(models["second"].archive.place, "after <b>one</b> step")
        about = client.get("/v1/models/second").json()
        assert about["tags"] == ["prod"] and about["notes"][0]["text"] == "after <b>one</b> step"
        chosen = {
            text: [item["name"] for item in client.get("/v1/models", params={"filter": text}).json()["models"]]
            for text in ('"prod" in tags', "parameters > 1", 'parent != ""', "parameters < 1")
        }
        assert list(chosen.values()) == [["second"], ["first", "second"], ["second"], []]
        refused = client.get("/v1/models", params={"filter": "parametrs > 1"})
        assert refused.status_code == 422 and "parameters" in refused.text
        home = client.get("/", params={"filter": '"prod" in tags'}).text
        assert 'href="/models/second"' in home and 'href="/models/first"' not in home
        assert "It holds for none of 2 models" in client.get("/?filter=parameters<1").text
        assert client.get("/?filter=parametrs<1").status_code == 422
        page = client.get("/models/second").text
        assert "after &lt;b&gt;one&lt;/b&gt; step" in page and "%22prod%22%20in%20tags" in page
