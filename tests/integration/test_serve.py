"""The service on Ray Serve, over loopback HTTP: the engine's answers, whoever searches and whoever dies."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from cluster import running as serving
from cluster import serve_app
from cluster.build import build_indexes
from cluster.client import AsyncClient, Client
from cluster.config import parse_config
from cluster.engine import SearchEngine
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered
from tests.model_fixtures import clip
from tests.pictures import bomb, png

ROWS, DIM = 2000, 16
QUERIES = clustered(20, DIM, seed=9)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    """2,000 rows and a graph in two shards."""
    columns = {"lines": np.arange(ROWS)}
    url = archive_vectors(tmp_path_factory.mktemp("serve"), clustered(ROWS, DIM), "ip", columns)
    build_indexes(url, ["hnsw"], shards=2, actors=0)
    return SearchEngine.open(url)


@pytest.fixture(scope="module")
def service(ray_session: None, engine: SearchEngine) -> Iterator[serving.Running]:
    """The collection twice: searched in the ingress, and in two shard deployments of two replicas."""
    url = engine.collection.url
    collections = [
        {"name": "here", "url": url, "placement": "ingress"},
        {"name": "apart", "url": url, "placement": "shards", "replicas": 2},
    ]
    running = serving.start({"collections": collections, "port": 0})
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["here", "apart"])
def test_http_gives_the_engines_answers(service: serving.Running, engine: SearchEngine, name: str) -> None:
    """Each tier, with a filter, by JSON and by the client: the same ids in the same order."""
    with Client(service.url) as client:
        for tier, text in (("exact", None), ("hnsw", None), ("exact", "lines < 100"), ("hnsw", "lines < 100")):
            expected = engine.search(QUERIES, 10, tier, text)
            body = {"vectors": QUERIES.tolist(), "tier": tier, "filter": text}
            reply = httpx.post(f"{service.url}/v1/collections/{name}/search", json=body, timeout=60, trust_env=False)
            hits = reply.json()["results"]
            assert [hit["ids"] for hit in hits] == expected.ids.tolist()
            assert hits[0]["metadata"][0] == {"lines": int(expected.rows[0, 0])}
            found = client.search(name, QUERIES, k=10, tier=tier, filter=text)
            assert found.ids == expected.ids.tolist()
            assert np.array_equal(np.stack(found.rows), expected.rows)
            assert np.allclose(np.stack(found.scores), expected.scores, rtol=1e-6)
            assert not found.partial


def test_the_state_of_the_service(service: serving.Running) -> None:
    """Ready, described, counted, with a page."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
        assert http.get("/readyz").json() == {"ready": True, "missing_groups": {}, "encoders": []}
        groups = {item["name"]: item["groups"] for item in http.get("/v1/collections").json()["collections"]}
        assert groups == {"here": 1, "apart": 2}
        assert "hilbertflow_requests_total" in http.get("/metrics").text
        assert "row-7" in http.get("/collections/apart?row=row-7").text
        assert http.get("/openapi.json").status_code == 200
        assert http.get("/v1/collections/other").status_code == 404


def test_refusals_reach_the_client(service: serving.Running) -> None:
    """Problem documents become errors that say what to do."""
    with Client(service.url) as client:
        for options, message in (
            ({"tier": "cold"}, "there is exact, hnsw"),
            ({"filter": "x == 1"}, "has no column 'x'"),
        ):
            with pytest.raises(HilbertflowError, match=message):
                client.search("apart", QUERIES, **options)  # type: ignore[arg-type]
        with pytest.raises(HilbertflowError, match="there is no collection"):
            client.search("nothing", QUERIES)
        with pytest.raises(HilbertflowError, match="one of vectors, texts and images"):
            client.search("here")
    with pytest.raises(HilbertflowError, match="does not answer"), Client("http://127.0.0.1:9", timeout=1) as nobody:
        nobody.collections()


@contextmanager
def lossy(url: str, answers_lost: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """A way to the service that hands requests on but loses the first answers; also how many requests it took."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    listening = socket.create_server(("127.0.0.1", 0))
    taken = 0

    def forward() -> None:
        nonlocal taken
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            taken += 1
            with client, socket.create_connection((host, int(port))) as service:
                client.settimeout(0.3)
                with suppress(TimeoutError):
                    while piece := client.recv(65536):
                        service.sendall(piece)
                answer = service.recv(1 << 20)
                if taken > answers_lost:
                    client.sendall(answer)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", lambda: taken
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def test_many_clients_at_once(service: serving.Running, engine: SearchEngine) -> None:
    """200 single queries over 16 connections: each gets its own answer."""
    queries = clustered(200, DIM, seed=11)
    expected = engine.search(queries, 5, "hnsw").ids.tolist()

    async def run() -> list[list[Any]]:
        gate = asyncio.Semaphore(16)
        async with AsyncClient(service.url) as client:

            async def ask(i: int) -> list[Any]:
                async with gate:
                    return (await client.search("apart", queries[i], k=5, tier="hnsw")).ids[0]

            return await asyncio.gather(*(ask(i) for i in range(200)))

    assert asyncio.run(run()) == expected


def test_a_killed_replica_costs_no_answer(service: serving.Running, engine: SearchEngine) -> None:
    """A shard's replica killed under load: every answer is right, or marked partial, or a retryable 503."""
    import ray

    expected = engine.search(QUERIES, 10, "hnsw").ids.tolist()
    replicas = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "shards-apart-0" in actor["name"]]
    assert len(replicas) == 2
    whole = 0
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
        for turn in range(60):
            if turn == 10:
                ray.kill(ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"]))
            reply = http.post("/v1/collections/apart/search", json={"vectors": QUERIES.tolist(), "tier": "hnsw"})
            assert reply.status_code in (200, 503), reply.text
            if reply.status_code == 503:
                assert reply.headers["retry-after"]
                continue
            hits = reply.json()["results"]
            if not any(hit["partial"] for hit in hits):
                assert [hit["ids"] for hit in hits] == expected
                whole += 1
    assert whole >= 55


def test_words_and_pictures_are_encoded_by_the_service(ray_session: None, tmp_path: Path) -> None:
    """A CLIP in a deployment of its own, that a collection names: a picture and a word find their rows over HTTP."""
    model = clip(tmp_path / "clip")
    files, encoder = [png(seed) for seed in range(6)], open_encoder(str(model))
    vectors = np.concatenate([encoder.encode_pictures(files), encoder.encode(["red shoe"])])
    url = archive_vectors(tmp_path, vectors, "cosine")
    photos = {"name": "photos", "url": url, "encoder": {"model": str(model), "threads": 1}}
    plain = {"name": "plain", "url": archive_vectors(tmp_path / "plain", clustered(50, DIM), "ip")}
    running = serving.start({"collections": [photos, plain], "port": 0})
    try:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http:
            reply = http.post("/v1/collections/photos/search", files={"image": ("a.png", files[4])}, data={"k": "1"})
            assert reply.json()["results"][0]["ids"] == ["row-4"], reply.text
            with Client(running.url) as client:
                assert client.search("photos", images=files[:2], k=1).ids == [["row-0"], ["row-1"]]
            body = {"images": [base64.b64encode(files[2]).decode()], "k": 1}
            assert http.post("/v1/collections/photos/search", json=body).json()["results"][0]["ids"] == ["row-2"]
            words = http.post("/v1/collections/photos/search", json={"texts": ["red shoe"], "k": 1})
            assert words.json()["results"][0]["ids"] == ["row-6"]
            bombed = http.post("/v1/collections/photos/search", files={"image": ("a.png", bomb(30_000, 3000))})
            assert (bombed.status_code, "pixels" in bombed.json()["detail"]) == (413, True)
            broken = http.post("/v1/collections/photos/search", files={"image": ("a.png", files[4][:200])})
            assert (broken.status_code, broken.json()["where"]) == (422, "images.0")
            assert http.post("/v1/collections/plain/search", json=body).status_code == 422
    finally:
        running.stop()


def test_an_encoder_that_does_not_load(ray_session: None, tmp_path: Path) -> None:
    """Starting such a service is refused with its reason; one that runs says so at /readyz, and searches by vector."""
    from ray import serve

    model = clip(tmp_path / "clip")
    vectors = clustered(60, 24)
    config = parse_config(
        {
            "collections": [{"name": "rows", "url": archive_vectors(tmp_path, vectors, "ip")}],
            "encoder": {"model": str(model)}, "port": serving._free_port("127.0.0.1", 0),
        }
    )  # fmt: skip
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:1000])
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: ann, sha256: '{'0' * 64}', scopes: ['read:*']}}]")
    for keys in (None, str(tmp_path / "keys.yaml")):  # with keys, /readyz does not tell just anybody
        with pytest.raises(HilbertflowError, match="the encoder clip failed: the model does not load"):
            serving.start(config.model_copy(update={"keys": keys}))
    running = serving.Running(f"http://127.0.0.1:{config.port}", own_ray=False)
    serve.start(proxy_location="Disabled", logging_config=serving.QUIET)
    serve.run(serve_app.build_application(config), name=serving.APP, logging_config=serving.QUIET)
    try:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http:
            reply = http.get("/readyz")
            (told,) = reply.json()["encoders"]
            assert (reply.status_code, told["state"], told["collections"]) == (503, "failed", ["rows"])
            refused = http.post("/v1/collections/rows/search", json={"texts": ["a word"]})
            assert (refused.status_code, "has not loaded" in refused.json()["detail"]) == (503, True)
            found = http.post("/v1/collections/rows/search", json={"vectors": vectors[:1].tolist(), "k": 1})
            assert found.status_code == 200
            (model / "model.safetensors").write_bytes(whole)
            deadline = time.monotonic() + 40
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert http.post("/v1/collections/rows/search", json={"texts": ["a word"]}).status_code == 200
    finally:
        running.stop()


def test_a_taken_port_is_refused(service: serving.Running, engine: SearchEngine) -> None:
    """Before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HilbertflowError, match=f"cannot listen on port {port}"):
            serving.start({"collections": [{"name": "a", "url": engine.collection.url}], "port": port})


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"waiting": 8}, "too many requests at once"), ({"queued": 2}, "no shard of 'rows' answered (Busy)")],
)
def test_overload_is_said_and_can_be_tried_again(
    ray_session: None, engine: SearchEngine, limits: dict[str, int], said: str
) -> None:
    """Far more at once than may wait: 503 with Retry-After, at the door or from the shards' queue; the rest is right.

    The client's own retries then get every answer.
    """
    rows = {"name": "rows", "url": engine.collection.url, "placement": "shards", "groups": 1}
    expected = engine.search(QUERIES, 400, "exact").ids
    running = serving.start({"collections": [rows], "port": 0, "limits": limits})

    async def flood() -> list[httpx.Response]:
        many = httpx.Limits(max_connections=120)
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60, limits=many) as http:

            async def ask(number: int) -> httpx.Response:  # of k of its own, so that no two are searched together
                body = {"vectors": QUERIES.tolist(), "k": 200 + number, "tier": "exact", "metadata": False}
                return await http.post("/v1/collections/rows/search", json=body)

            return await asyncio.gather(*(ask(number) for number in range(120)))

    async def patient() -> list[Any]:
        async with AsyncClient(running.url) as client:
            asks = (client.search("rows", QUERIES, k=200 + number, tier="exact") for number in range(30))
            return await asyncio.gather(*asks)

    try:
        replies = asyncio.run(flood())
        assert {reply.status_code for reply in replies} == {200, 503}
        for number, reply in enumerate(replies):
            if reply.status_code == 503:
                assert reply.headers["retry-after"] == "1"
                assert reply.json()["detail"] == said
                continue
            hits = reply.json()["results"]
            assert [hit["ids"] for hit in hits] == expected[:, : 200 + number].tolist()
        for number, found in enumerate(asyncio.run(patient())):
            assert found.ids == expected[:, : 200 + number].tolist()
    finally:
        running.stop()


def test_what_cannot_be_served_is_refused(engine: SearchEngine, tmp_path: Path) -> None:
    """A missing archive, a tier that is not built: one line, before Ray starts."""
    with pytest.raises(HilbertflowError, match="no archive here"):
        serving.start({"collections": [{"name": "a", "url": str(tmp_path)}], "port": 0})
    with pytest.raises(HilbertflowError, match="'ivfpq' is not built"):
        serving.start({"collections": [{"name": "a", "url": engine.collection.url, "tier": "ivfpq"}], "port": 0})
    (tmp_path / "keys.yaml").write_text("keys: [oops")
    body = {"collections": [{"name": "a", "url": engine.collection.url}], "keys": f"{tmp_path}/keys.yaml", "port": 0}
    with pytest.raises(HilbertflowError, match=r"keys\.yaml: is not a file of keys"):
        serving.start(body)


@pytest.mark.parametrize("all_of_it", [False, True], ids=["the process", "its group"])
def test_the_command_serves_until_it_is_told_to_stop(engine: SearchEngine, tmp_path: Path, all_of_it: bool) -> None:
    """`run_forever` in a process of its own with a Ray of its own: it answers, and SIGTERM ends it cleanly.

    So it does when Ray's processes are told with it, as `timeout` and service managers do.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"collections": [{"name": "rows", "url": engine.collection.url}], "port": port}))
    command = f"from cluster.running import run_forever; run_forever({str(config)!r})"
    environment = os.environ | {"RAY_ADDRESS": ""}
    with subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert f"http://127.0.0.1:{port}" in said, process.communicate()
            body = {"vectors": QUERIES[:1].tolist(), "k": 3}
            reply = httpx.post(f"http://127.0.0.1:{port}/v1/collections/rows/search", json=body, trust_env=False)
            assert reply.json()["results"][0]["ids"] == engine.search(QUERIES[:1], 3).ids[0].tolist()
            (os.killpg if all_of_it else os.kill)(process.pid, signal.SIGTERM)
            _, complaints = process.communicate(timeout=40)
            assert process.returncode == 0, complaints
            assert "failed" not in complaints
        finally:
            if process.poll() is None:
                process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as again:
            if again.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise AssertionError("the port is still served")


def test_serve_deploy_takes_the_same_keys(engine: SearchEngine) -> None:
    """The application that `serve deploy` imports, from plain data as it comes out of its YAML."""
    from ray.serve import Application

    args = {"collections": [{"name": "rows", "url": engine.collection.url, "placement": "shards"}]}
    assert isinstance(serve_app.application(json.loads(json.dumps(args))), Application)


def test_the_client_changes_rows_and_sees_them(service: serving.Running, tmp_path: Path) -> None:
    """Put in, found with its metadata, deleted, by both clients; an answer that got lost is asked for again."""
    url = archive_vectors(tmp_path, clustered(200, DIM), "ip", {"lines": np.arange(200)})
    running = serving.start({"collections": [{"name": "rows", "url": url}], "port": 0})
    spot = np.full((1, DIM), 30, np.float32)
    try:
        with Client(running.url) as client:
            assert client.upsert("rows", ["new"], spot, metadata={"lines": [7]}) == 1
            few, many = client.search("rows", QUERIES[:1], k=10), client.search("rows", QUERIES, k=10)  # JSON, Arrow
            assert (few.ids[0], few.rows[0].tolist()) == (many.ids[0], many.rows[0].tolist())
            assert np.allclose(few.scores[0], many.scores[0], rtol=1e-6)
            found = client.search("rows", spot, k=2, metadata=True)
            assert found.ids[0][0] == "new" and found.metadata is not None
            assert found.metadata[0][0] == {"lines": 7}
            assert client.search("rows", spot, k=2).metadata is None
            with pytest.raises(HilbertflowError, match="exists"):
                client.upsert("rows", ["row-3"], spot, op="append")
        with lossy(running.url, answers_lost=2) as (address, taken), Client(address) as client:
            assert client.upsert("rows", ["late"], spot + 1) == 2  # done once, though it was sent three times
            assert taken() == 3
        assert [item["rows_version"] for item in Client(running.url).collections()] == [2]

        async def run() -> None:
            async with AsyncClient(running.url) as client:
                assert await client.delete("rows", ["late"]) == 3
                assert (await client.search("rows", spot, k=1)).ids == [["new"]]
            with lossy(running.url, answers_lost=1) as (address, _):
                async with AsyncClient(address) as client:
                    assert (await client.search("rows", spot, k=1)).ids == [["new"]]

        asyncio.run(run())
    finally:
        running.stop()


@pytest.mark.skipif(not serve_app.OVERLAPPING, reason="this Ray Serve stops a replica before it starts another")
def test_changed_arguments_leave_nobody_without_an_answer(ray_session: None, engine: SearchEngine) -> None:
    """Deployed anew with another limit, one ingress replica: asked all the while, nobody is refused."""
    from ray import serve

    body: dict[str, Any] = {"collections": [{"name": "rows", "url": engine.collection.url, "placement": "ingress"}]}
    running = serving.start(body | {"port": 0})
    expected = engine.search(QUERIES, 5, "hnsw").ids.tolist()
    stop, answers = threading.Event(), [0, 0]

    def ask(number: int) -> None:
        with Client(running.url) as client:
            while not stop.is_set():
                at = answers[number] % len(QUERIES)
                assert client.search("rows", QUERIES[at], k=5, tier="hnsw").ids == [expected[at]]
                answers[number] += 1

    try:
        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(ask, number) for number in range(2)]
            try:
                port = int(running.url.rpartition(":")[2])
                changed = parse_config(body | {"port": port, "limits": {"k": 50}})
                app = serve_app.build_application(changed)
                serve.run(app, name=serving.APP, route_prefix="/", logging_config=serving.QUIET)
                with Client(running.url) as client, pytest.raises(HilbertflowError, match="too many"):
                    while True:  # until the old replica has gone
                        client.search("rows", QUERIES[0], k=51)
            finally:
                stop.set()
            for one in asking:
                one.result()
        assert min(answers) > 0
    finally:
        running.stop()
