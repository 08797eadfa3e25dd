"""Pictures as queries: every form of request, limits judged before a pixel is unpacked, one bad picture among many."""

from __future__ import annotations

import asyncio
import base64
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.config import Limits
from cluster.encoding import Encoded, Encoder, Encoding
from cluster.engine import SearchEngine
from cluster.local_backend import LocalBackend
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import ShardSet
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors
from tests.model_fixtures import clip
from tests.pictures import bomb, png

SEARCH = "/v1/collections/photos/search"
PICTURES = [png(seed, (60, 44), kind="JPEG" if seed % 2 else "PNG") for seed in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP."""
    return clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Twelve pictures as rows, behind an encoder in this process; limits that a test can reach."""
    rows = open_encoder(str(model)).encode_pictures(PICTURES)
    url = archive_vectors(tmp_path_factory.mktemp("photos"), rows, "cosine")
    engine, encoder = SearchEngine.open(url), Encoder(str(model), 0, 1)
    service = CollectionService(
        "photos", engine.collection, engine.builds, [LocalBackend(ShardSet(engine.collection, engine.builds), None)]
    )

    async def texts(some: list[str]) -> Any:
        return await asyncio.to_thread(encoder.encode, some)

    async def pictures(some: list[bytes]) -> Encoded:
        return await asyncio.to_thread(encoder.encode_pictures, some)

    limits = Limits(images=4, image_bytes=20_000, image_pixels=100_000)
    services = Services({"photos": service}, encoders={"photos": Encoding(texts, pictures)}, limits=limits)
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        yield client


def texts_of(*files: bytes) -> list[str]:
    return [base64.b64encode(data).decode() for data in files]


def test_every_form_finds_the_picture_itself(client: TestClient) -> None:
    """Base64 with and without a browser's prefix, a form with options, one file as the body."""
    three, eight = PICTURES[3], PICTURES[8]
    plain, prefixed = texts_of(three)[0], "data:image/png;base64," + texts_of(eight)[0]
    files = [("image", ("a.jpg", three)), ("image", ("b.png", eight))]
    for request, found in (
        ({"json": {"images": [plain, prefixed], "k": 2}}, [3, 8]),
        ({"files": files, "data": {"k": "2", "metadata": "false"}}, [3, 8]),
        ({"files": files[:1], "data": {"k": "9"}, "params": {"k": 2}}, [3]),
        ({"content": eight, "headers": {"Content-Type": "image/png"}, "params": {"k": 2}}, [8]),
    ):
        reply = client.post(SEARCH, **request)  # type: ignore[arg-type]
        assert reply.status_code == 200, reply.text
        results = reply.json()["results"]
        assert [hit["ids"][0] for hit in results] == [f"row-{i}" for i in found]
        assert all(len(hit["ids"]) == 2 for hit in results)
        assert all(hit["scores"][0] == pytest.approx(1, abs=1e-3) for hit in results)


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ([bomb(50_000, 40_000)], 413, "far too many pixels; the limit is 100,000"),
        ([bomb(12_000, 9_000)], 413, "12,000 × 9,000 pixels; the limit is 100,000"),
        ([bomb(1000, 900)], 413, "1,000 × 900 pixels; the limit is 100,000"),
        ([PICTURES[0] + bytes(20_000)], 413, "bytes; the limit is 20,000"), (PICTURES[:5], 413, "more than 4 pictures"),
        ([b"no picture"], 422, "no picture that can be read"), ([b""], 422, "no picture"),
        ([b"GIF89a" + bytes(40)], 422, "no picture"), ([PICTURES[1][:300]], 422, "no picture that can be read"),
        ([PICTURES[2], PICTURES[0][:-60]], 422, "images.1"),
    ],
)  # fmt: skip
def test_bad_pictures_are_refused(client: TestClient, files: list[bytes], status: int, said: str) -> None:
    """By their length, their number, their header, and at last by what unpacking them says."""
    forms: list[dict[str, Any]] = [
        {"json": {"images": texts_of(*files)}}, {"files": [("image", (f"{i}.png", f)) for i, f in enumerate(files)]}
    ]  # fmt: skip
    for form in forms:
        reply = client.post(SEARCH, **form)
        assert reply.status_code == status, reply.text
        problem = reply.json()
        assert problem["status"] == status
        assert any(part in str(problem) for part in said.split("|")), problem


def test_a_bomb_takes_no_memory(client: TestClient) -> None:
    """100 million pixels would be 300 MB; their header is all that is read."""
    tracemalloc.start()
    try:
        reply = client.post(SEARCH, content=bomb(10_000, 10_000), headers={"Content-Type": "image/png"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status_code == 413
    assert peak < 20_000_000


def test_forms_that_are_none(client: TestClient) -> None:
    """No boundary, no file, an option that does not exist, far too many fields."""
    many = {f"f{i}": "x" for i in range(100)}
    for request, said in (
        ({"data": {"k": "3"}, "files": {"x": (None, "text")}}, "holds no file"),
        ({"files": {"image": ("a.png", PICTURES[0])}, "data": {"surprise": "1"}}, "surprise"),
        ({"files": {"image": ("a.png", PICTURES[0])}, "data": many}, "Too many fields"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
    ):
        reply = client.post(SEARCH, **request)  # type: ignore[arg-type]
        assert reply.status_code == 422, reply.text
        assert said in reply.json()["detail"]


def test_a_broken_picture_costs_only_whoever_sent_it(model: Path) -> None:
    """Three requests that are encoded together: two get their vectors, one its fault."""
    encoder = Encoder(str(model), 0, 1)
    together: list[int] = []

    async def see(some: list[bytes]) -> Encoded:
        together.append(len(some))
        await asyncio.sleep(0.01)
        return encoder.encode_pictures(some)

    async def texts(some: list[str]) -> Any:
        raise AssertionError

    async def ask() -> list[Any]:
        encoding = Encoding(texts, see)
        asks = [PICTURES[2:4], [PICTURES[4], PICTURES[5][:400]], PICTURES[6:7]]
        return await asyncio.gather(*(encoding.pictures(some) for some in asks), return_exceptions=True)

    two, fault, one = asyncio.run(ask())
    assert together == [5]
    assert isinstance(fault, HilbertflowError) and fault.where == "images.1"
    expected = open_encoder(str(model)).encode_pictures(PICTURES)
    np.testing.assert_allclose(two, expected[2:4], atol=1e-5)
    np.testing.assert_allclose(one, expected[6:7], atol=1e-5)


def test_models_of_texts_take_none(client: TestClient) -> None:
    """A clear line instead of an answer."""

    async def texts(some: list[str]) -> Any:
        return np.zeros((len(some), 3), np.float32)

    with pytest.raises(HilbertflowError, match="takes no pictures"):
        asyncio.run(Encoding(texts).pictures(PICTURES[:1]))
