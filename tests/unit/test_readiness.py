"""Readiness: which encoders have loaded, which have not and why, and how seldom anybody is asked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster import encoding as encodings
from cluster import readiness
from cluster.api import build_api
from cluster.encoding import Encoder, Encoding, NotLoaded
from cluster.engine import SearchEngine
from cluster.local_backend import LocalBackend
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import ShardSet
from cluster.vectors import F32
from tests.collection_fixtures import archive_vectors, clustered
from tests.model_fixtures import clip

DIM = 24


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> CollectionService:
    """300 rows in this process."""
    engine = SearchEngine.open(archive_vectors(tmp_path_factory.mktemp("ready"), clustered(300, DIM), "ip"))
    backend = LocalBackend(ShardSet(engine.collection, engine.builds), None)
    return CollectionService("rows", engine.collection, engine.builds, [backend])


def test_a_broken_encoder_is_named_with_its_reason(
    service: CollectionService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights end too early: 503 and why, vectors are searched on; mended, it is loaded without a restart."""
    monkeypatch.setattr(readiness, "FRESH_S", 0.0)
    weights = clip(tmp_path / "clip") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    encoder = Encoder(str(tmp_path / "clip"), 0, 1)

    async def texts(some: list[str]) -> F32:
        return await asyncio.to_thread(encoder.encode, some)

    async def fault() -> str:
        return await asyncio.to_thread(encoder.fault)

    encoders = {"rows": Encoding(texts, model="clip", fault=fault)}
    with TestClient(build_api(Services({"rows": service}, encoders=encoders))) as client:
        reply = client.get("/readyz")
        told = reply.json()["encoders"]
        assert (reply.status_code, reply.json()["ready"], reply.json()["missing_groups"]) == (503, False, {})
        assert told == [{"model": "clip", "collections": ["rows"], "state": "failed", "reason": told[0]["reason"]}]
        assert "does not load" in told[0]["reason"] and str(tmp_path) not in reply.text
        assert "The encoder clip has failed: the model does not load" in client.get("/state").text
        assert "1 encoder has not loaded" in client.get("/").text
        vectors = {"vectors": np.ones((1, DIM)).tolist()}
        assert client.post("/v1/collections/rows/search", json=vectors).status_code == 200
        with pytest.raises(NotLoaded, match="does not load"):
            encoder.encode(["a word"])
        weights.write_bytes(whole)
        assert client.get("/readyz").status_code == 503  # it was tried a moment ago
        monkeypatch.setattr(encodings, "AGAIN_S", 0.0)
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["encoders"][0]["state"]) == (200, "loaded")
        found = client.post("/v1/collections/rows/search", json={"texts": ["a word"]})
        assert found.status_code == 200
        assert "Everything answers" in client.get("/state").text


def test_nobody_is_asked_twice_a_second_or_waits_for_long(service: CollectionService) -> None:
    """Fifty probes ask once; an encoder that hangs is loading, and its probe is answered after a second."""
    asks = []

    async def quick() -> str:
        asks.append(time.monotonic())
        return ""

    async def hangs() -> str:
        await asyncio.sleep(60)
        return ""

    async def texts(some: list[str]) -> F32:
        return np.zeros((len(some), DIM), np.float32)

    async def run() -> None:
        loaded = Services({"rows": service}, encoders={"rows": Encoding(texts, fault=quick)})
        states = await asyncio.gather(*(loaded.readiness.now() for _ in range(50)))
        assert len(asks) == 1 and all(state.ready for state in states)
        await asyncio.sleep(1.1)
        assert (await loaded.readiness.now()).ready and len(asks) == 2
        hung = Services({"rows": service}, encoders={"rows": Encoding(texts, fault=hangs)})
        began = time.monotonic()
        state = await hung.readiness.now()
        assert not state.ready and state.encoders[0].state == "loading"
        assert time.monotonic() - began < 3

    asyncio.run(run())
