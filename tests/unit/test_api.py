"""The HTTP interface in process: forms of a request, forms of an answer, limits, keys, and every kind of nonsense."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.batcher import Batcher
from cluster.build import build_indexes
from cluster.config import EncoderConfig, Limits, load_config, parse_config
from cluster.encoding import Encoding
from cluster.engine import SearchEngine
from cluster.local_backend import LocalBackend
from cluster.query import Query
from cluster.recall_watch import estimated_recall
from cluster.results import merge, recall
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32
from cluster.warming import warm
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 1500, 8
QUERIES = clustered(5, DIM, seed=9)
SEARCH = "/v1/collections/rows/search"
ARROW, FLOATS, NDJSON = "application/vnd.apache.arrow.stream", "application/octet-stream", "application/x-ndjson"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    """1,500 rows with metadata, some of it hostile, and a graph in two shards."""
    names = [f"<script>alert({i})</script>" if i % 2 else f"name {i}" for i in range(ROWS)]
    columns = {"lines": np.arange(ROWS), "title": names}
    url = archive_vectors(tmp_path_factory.mktemp("api"), clustered(ROWS, DIM), "ip", columns)
    build_indexes(url, ["hnsw"], shards=2, actors=0)
    return SearchEngine.open(url)


def served(engine: SearchEngine, **options: Any) -> Services:
    """The collection behind the interface, in two shard groups."""
    groups = [LocalBackend(ShardSet(engine.collection, engine.builds, group, 2), None) for group in range(2)]
    service = CollectionService("rows", engine.collection, engine.builds, groups)
    return Services({"rows": service}, **options)


@pytest.fixture
def client(engine: SearchEngine) -> Iterator[TestClient]:
    """Without an encoder, without keys."""
    with TestClient(build_api(served(engine)), raise_server_exceptions=False) as client:
        yield client


def arrow(table: pa.Table) -> bytes:
    """As an IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def vector_table(vectors: F32) -> pa.Table:
    """One column of fixed-size lists."""
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])})


def test_every_form_of_request_and_answer_agrees(client: TestClient, engine: SearchEngine) -> None:
    """JSON arrays, base64, float32, Arrow in; JSON, NDJSON, Arrow out: the engine's own ids, rows and scores."""
    expected = engine.search(QUERIES, 7, "exact", "lines > 99")
    options = {"k": 7, "tier": "exact", "filter": "lines > 99"}
    lists = pa.table({"vector": pa.array(QUERIES.tolist(), pa.list_(pa.float64()))})
    requests: list[dict[str, Any]] = [
        {"json": {"vectors": QUERIES.tolist(), **options}},
        {"json": {"vectors": base64.b64encode(QUERIES.tobytes()).decode(), **options}},
        {"content": QUERIES.tobytes(), "params": options, "headers": {"Content-Type": FLOATS}},
        {"content": arrow(vector_table(QUERIES)), "params": options, "headers": {"Content-Type": ARROW}},
        {"content": arrow(lists), "params": options, "headers": {"Content-Type": ARROW}},
    ]
    for request in requests:
        for accept in ("*/*", NDJSON, f"text/html, {ARROW};q=0.9"):
            headers = {**request.get("headers", {}), "Accept": accept}
            reply = client.post(SEARCH, **{**request, "headers": headers})
            assert reply.status_code == 200, reply.text
            if ARROW in accept:
                hits = pa.ipc.open_stream(reply.content).read_all().to_pylist()
            elif accept == NDJSON:
                hits = [json.loads(line) for line in reply.content.splitlines()]
            else:
                hits = reply.json()["results"]
            assert [hit["ids"] for hit in hits] == expected.ids.tolist()
            assert [hit["rows"] for hit in hits] == expected.rows.tolist()
            assert np.allclose([hit["scores"] for hit in hits], expected.scores, rtol=1e-6)
            assert not any(hit["partial"] for hit in hits)
            if accept == "*/*":
                assert hits[0]["metadata"][0]["lines"] == expected.rows[0, 0]


def test_straight_and_through_the_framework(engine: SearchEngine) -> None:
    """Behind a prefix FastAPI itself calls the route: the same answers, refusals and counts."""
    bodies = [{"vectors": QUERIES.tolist(), "k": 3}, {"vectors": [[1.0]]}, {"vectors": QUERIES.tolist(), "k": 10**4}]
    seen = []
    for prefix in ("", "/behind"):
        app = build_api(served(engine, limits=Limits(k=100)))
        with TestClient(app, raise_server_exceptions=False, root_path=prefix) as client:
            replies = [client.post(prefix + SEARCH, json=body) for body in bodies]
            replies += [client.post(prefix + SEARCH.replace("rows", "none"), json={}), client.get(prefix + SEARCH)]
            lines = client.get(f"{prefix}/metrics").text.splitlines()
            counts = [
                line for line in lines if "_requests_total{" in line and "storage_" not in line
            ]  # those may be held
        told = [{name: reply.headers[name] for name in ("content-type", "x-content-type-options")} for reply in replies]
        seen.append(([reply.status_code for reply in replies], [reply.json() for reply in replies], told, counts))
    assert seen[0] == seen[1]
    assert seen[0][0] == [200, 422, 413, 404, 405]


def test_explain_and_metadata_are_options(client: TestClient) -> None:
    """Off unless asked, on unless not wanted."""
    (plain,) = client.post(SEARCH, json={"vectors": QUERIES[:1].tolist()}).json()["results"]
    assert plain["explain"] is None
    body = {"vectors": QUERIES[:1].tolist(), "explain": True, "metadata": False, "ef": 40}
    (told,) = client.post(SEARCH, json=body).json()["results"]
    assert told["metadata"] is None
    assert told["explain"]["tier"] == "hnsw"
    assert told["explain"]["rows_scanned"] > 0


@pytest.mark.parametrize(
    "body",
    [
        {}, {"vectors": []}, {"texts": []}, {"vectors": [[1.0] * DIM], "texts": ["a"]}, {"vectors": [[1.0]]},
        {"vectors": [[1.0] * DIM, [1.0]]}, {"vectors": [[]]}, {"vectors": [["a"] * DIM]}, {"vectors": 3},
        {"vectors": "%%%"}, {"vectors": "AAAA"}, {"vectors": [[1e300] * DIM]}, {"vectors": [[1.0] * 100_000]},
        {"vectors": [[1.0] * DIM], "k": 0}, {"vectors": [[1.0] * DIM], "k": 10_001},
        {"vectors": [[1.0] * DIM], "k": "3"},
        {"vectors": [[1.0] * DIM], "k": True}, {"vectors": [[1.0] * DIM], "tier": "warp"},
        {"vectors": [[1.0] * DIM], "tier": "cold"}, {"vectors": [[1.0] * DIM], "tier": "ivfpq"},
        {"vectors": [[1.0] * DIM], "tier": "hnsw", "nprobe": 3}, {"vectors": [[1.0] * DIM], "filter": "open('x')"},
        {"vectors": [[1.0] * DIM], "filter": "nothing == 3"}, {"vectors": [[1.0] * DIM], "filter": "lines > 'a'"},
        {"vectors": [[1.0] * DIM], "surprise": 1}, {"texts": ["no encoder here"]}, [], "text", 3, None,
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_answered(client: TestClient, body: Any) -> None:
    """422 with a problem document that says what is wrong."""
    reply = client.post(SEARCH, json=body)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == 422
    assert problem["title"]
    assert problem["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 422), ("application/json", b"", 422), ("application/json", b"\xff\xfe", 422),
        ("application/json", b"[" * 200_000, 422), ("application/json", b'{"vectors": ' + b"[" * 100_000, 422),
        ("application/json", b'{"vectors": [[NaN,0,0,0,0,0,0,0]]}', 422),
        ("application/json", b'{"vectors": [[Infinity,0,0,0,0,0,0,0]]}', 422),
        ("application/json", b'{"vectors": [[1,2,3,4,5,6,7,8]], "k": 1e400}', 422),
        (FLOATS, b"", 422), (FLOATS, b"123", 422), (FLOATS, np.full(DIM, np.nan, "<f4").tobytes(), 422),
        (ARROW, b"", 422), (ARROW, b"ARROW1 but not really", 422), (ARROW, arrow(pa.table({"x": [1]})), 422),
        (ARROW, arrow(pa.table({"vector": ["a"]})), 422), (ARROW, arrow(pa.table({"vector": [[1.0], None]})), 422),
        (ARROW, arrow(pa.table({"vector": [[1.0] * DIM, [1.0]]})), 422), (ARROW, arrow(pa.table({"text": [1]})), 422),
        (ARROW, arrow(vector_table(QUERIES))[:-40], 422), (ARROW, arrow(vector_table(QUERIES[:, :5])), 422),
        ("text/html", b"x", 415), ("multipart/form-data; boundary=x", b"x", 422), ("image/png", b"x", 422),
        ("", b"{}", 415),
    ],
)  # fmt: skip
def test_bytes_that_are_no_request(client: TestClient, kind: str, body: bytes, status: int) -> None:
    """Malformed in every format: a clear 4xx, and the service answers the next request."""
    reply = client.post(SEARCH, content=body, headers={"Content-Type": kind})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert client.post(SEARCH, json={"vectors": QUERIES.tolist()}).status_code == 200


@pytest.mark.parametrize(
    "query", ["k=0", "k=ten", "k=1e3", "tier=warp", "surprise=1", "k=99999999999999999999999", "ef=-1"]
)
def test_url_options_are_checked_too(client: TestClient, query: str) -> None:
    """For Arrow and float32 bodies."""
    reply = client.post(f"{SEARCH}?{query}", content=QUERIES.tobytes(), headers={"Content-Type": FLOATS})
    assert reply.status_code == 422, reply.text


def test_who_says_how_long_a_vector_is_is_heard(client: TestClient) -> None:
    """Bytes do not tell: twice as many values would be twice as many queries."""
    body = {"vectors": base64.b64encode(QUERIES.tobytes()).decode(), "k": 2}
    assert len(client.post(SEARCH, json=body | {"dim": DIM}).json()["results"]) == len(QUERIES)
    reply = client.post(SEARCH, json=body | {"dim": 2 * DIM})
    assert reply.status_code == 422
    assert (reply.json()["detail"], reply.json()["remedy"]) == (
        f"vectors of {2 * DIM} values",
        f"give {DIM} values each",
    )


def test_lines_of_a_large_batch_are_sent_while_it_is_searched(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first line is on its way after one search of five; what is wrong anywhere in it is refused before."""
    monkeypatch.setattr("cluster.search_route.AT_ONCE", 2)
    services, searched = served(engine), [0]
    search = services.collections["rows"].search

    async def counted(*given: Any, **options: Any) -> Any:
        searched[0] += 1
        return await search(*given, **options)

    monkeypatch.setattr(services.collections["rows"], "search", counted)
    queries = np.repeat(QUERIES, 2, axis=0)[:9]
    sent: list[tuple[int, bytes, int]] = []

    async def ask(vectors: F32) -> int:
        body = iter([{"type": "http.request", "body": vectors.tobytes(), "more_body": False}])
        status = 0

        async def receive() -> dict[str, Any]:
            return next(body, None) or await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            sent.append((searched[0], message.get("body", b""), services.active))

        headers = [(b"content-type", FLOATS.encode()), (b"accept", NDJSON.encode())]
        scope = {"type": "http", "method": "POST", "path": SEARCH, "raw_path": SEARCH.encode(), "query_string": b"k=3",
                 "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("test", 80)}  # fmt: skip
        await build_api(services)(scope, receive, send)
        return status

    assert asyncio.run(ask(queries)) == 200
    lines = [(searches, active) for searches, body, active in sent if body]
    assert lines == [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1)]
    found = [json.loads(line)["ids"] for line in b"".join(body for _, body, _ in sent).splitlines()]
    assert found == engine.search(queries, 3).ids.tolist()
    assert services.active == 0
    queries[-1, 0] = np.nan
    assert asyncio.run(ask(queries)) == 422


def test_limits_are_kept(engine: SearchEngine) -> None:
    """413 for too many queries, too large a k, too many answers, too long a body: by its header, or as it streams."""
    limits = Limits(body_bytes=2048, queries=4, k=50, answers=60, text_chars=10)
    with TestClient(build_api(served(engine, limits=limits)), raise_server_exceptions=False) as client:
        fine = {"vectors": QUERIES[:1].tolist(), "k": 50}
        assert client.post(SEARCH, json=fine).status_code == 200
        assert client.post(SEARCH, json=fine | {"k": 51}).status_code == 413
        assert client.post(SEARCH, json=fine | {"vectors": QUERIES.tolist(), "k": 1}).status_code == 413
        assert client.post(SEARCH, json=fine | {"vectors": QUERIES[:2].tolist()}).status_code == 413
        reply = client.post(SEARCH, content=b"x" * 4096, headers={"Content-Type": FLOATS})
        assert reply.status_code == 413
        assert "2048 bytes" in reply.json()["detail"]
        stream = client.post(SEARCH, content=iter([b"x" * 1000] * 9), headers={"Content-Type": FLOATS})
        assert stream.status_code == 413


def test_texts_go_through_the_encoder(engine: SearchEngine) -> None:
    """In JSON and in Arrow; too long a text is refused; a collection of another model does not take texts."""

    async def encode(texts: list[str]) -> F32:
        return np.stack([QUERIES[int(text)] for text in texts])

    expected = engine.search(QUERIES[[3, 1]], 4).ids.tolist()
    services = served(engine, encoders={"rows": Encoding(encode)}, limits=Limits(text_chars=3))
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        reply = client.post(SEARCH, json={"texts": ["3", "1"], "k": 4})
        assert [hit["ids"] for hit in reply.json()["results"]] == expected
        body = arrow(pa.table({"text": ["3", "1"]}))
        reply = client.post(f"{SEARCH}?k=4", content=body, headers={"Content-Type": ARROW})
        assert [hit["ids"] for hit in reply.json()["results"]] == expected
        assert client.post(SEARCH, json={"texts": ["3333"]}).status_code == 413
        assert "name" in client.get("/?q=3").text
    with TestClient(build_api(served(engine)), raise_server_exceptions=False) as client:
        reply = client.post(SEARCH, json={"texts": ["3"]})
        assert reply.status_code == 422
        assert "not made by an encoder of this service" in reply.json()["detail"]


def test_collections_and_state(client: TestClient) -> None:
    """What is served, whether it is ready, what it has done."""
    (about,) = client.get("/v1/collections").json()["collections"]
    assert about == client.get("/v1/collections/rows").json()
    assert (about["count"], about["dim"], about["metric"], about["groups"]) == (ROWS, DIM, "ip", 2)
    assert about["tiers"] == ["exact", "hnsw"]
    assert about["columns"]["lines"] == "int64"
    missing = client.get("/v1/collections/nothing")
    assert missing.status_code == 404
    assert missing.json()["remedy"] == "GET /v1/collections lists them"
    assert client.post("/v1/collections/nothing/search", json={}).status_code == 404
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"ready": True, "missing_groups": {}, "encoders": []}
    client.post(SEARCH, json={"vectors": QUERIES.tolist()})
    text = client.get("/metrics").text
    assert 'hilbertflow_queries_total{collection="rows",tier="hnsw"} 5.0' in text
    assert 'route="/v1/collections/{c}/search",status="404"' in text
    assert f'collection="rows",version="{about["fingerprint"][:12]}"}} {ROWS}.0' in text


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/collections/..%2f..%2fetc", "/v1/collections/a/b/c", "/v1/collections/%00"]
)
def test_paths_that_lead_nowhere(client: TestClient, path: str) -> None:
    """404 as a problem document."""
    reply = client.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


def test_coded_bodies_are_refused(client: TestClient) -> None:
    """Not read as if they were not coded."""
    reply = client.post(SEARCH, content=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, reply.json()["remedy"]) == (415, "send the body as it is")


def test_other_methods(client: TestClient) -> None:
    """405 as a problem document that names the right one."""
    reply = client.get(SEARCH)
    assert (reply.status_code, reply.json()["remedy"]) == (405, "send POST")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("reading", [False, True])
def test_short_searches_stay_on_the_event_loop(engine: SearchEngine, reading: bool) -> None:
    """What a search in memory waits for is not held against it; what one waits for storage is."""
    where: list[bool] = []

    class Waiting(ShardSet):
        def search(self, queries: F32, query: Query, version: int | None = None) -> Answer:
            where.append(threading.current_thread() is threading.main_thread())
            time.sleep(0.02)
            return dataclasses.replace(super().search(queries, query, version), requests=int(reading))

    shards = Waiting(engine.collection, engine.builds)
    warm(shards, "hnsw")
    where.clear()

    async def run() -> None:
        backend = LocalBackend(shards, None)
        for _ in range(5):
            await backend.search(Query(3, "hnsw"), QUERIES, 0)

    asyncio.run(run())
    assert where == [False] * 5 if reading else where[-1]


def test_cache_hits_are_counted(engine: SearchEngine) -> None:
    """The rows of a filter are read once; further queries with it read nothing."""
    fresh = SearchEngine.open(engine.collection.url)
    backend = LocalBackend(ShardSet(fresh.collection, fresh.builds), None)
    client = TestClient(
        build_api(Services({"rows": CollectionService("rows", fresh.collection, fresh.builds, [backend])}))
    )
    body = {"vectors": QUERIES.tolist(), "filter": "lines > 3 and lines < 800", "explain": True}

    def counted(name: str) -> float:
        text = client.get("/metrics").text
        return float(text.partition(f'hilbertflow_{name}_total{{collection="rows"}} ')[2].partition("\n")[0] or 0)

    first = client.post(SEARCH, json=body).json()["results"][0]["explain"]
    assert (first["cache_hits"], first["bytes_read"] > 0) == (0, True)
    read, hits = counted("storage_read_bytes"), counted("cache_hits")
    second = client.post(SEARCH, json=body).json()["results"][0]["explain"]
    assert (second["cache_hits"], second["bytes_read"], second["requests"]) == (2, 0, 0)  # two shards
    assert (counted("storage_read_bytes"), counted("cache_hits")) == (read, hits + 2)


def test_recall_is_estimated_from_what_was_asked(engine: SearchEngine) -> None:
    """A narrow graph search finds less than a wide one, and the estimate says so; too few queries give none."""
    queries = clustered(40, DIM, seed=21)

    async def estimate(ef: int) -> dict[str, float]:
        service = served(engine).collections["rows"]
        query = Query.of(30, "hnsw", None, {"ef": ef})
        for vector in queries:
            await service.search(vector, query)
        found = await estimated_recall(service)
        assert await estimated_recall(service) == {}  # nothing was asked since
        return found

    exact = engine.search(queries, 30, "exact").rows
    groups = [ShardSet(engine.collection, engine.builds, group, 2) for group in range(2)]
    for ef in (30, 400):
        answers = [group.search(queries, Query.of(30, "hnsw", None, {"ef": ef})) for group in groups]
        rows = merge([(answer.scores, answer.rows) for answer in answers], 30, "ip")[1]
        assert asyncio.run(estimate(ef)) == {"hnsw": pytest.approx(recall(rows, exact), abs=1e-6)}


def test_the_interface_describes_itself(client: TestClient) -> None:
    """OpenAPI names every field with a description and every error with its problem document."""
    document = client.get("/openapi.json").json()
    post = document["paths"]["/v1/collections/{c}/search"]["post"]
    fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) >= {"vectors", "texts", "k", "tier", "filter", "nprobe", "ef", "refine", "metadata", "explain"}
    assert all(field["description"] for field in fields.values())
    assert {"200", "401", "403", "404", "413", "415", "422", "503"} <= set(post["responses"])
    kinds = {"application/json", ARROW, FLOATS, "multipart/form-data", "image/jpeg", "image/png"}
    assert set(post["requestBody"]["content"]) == kinds


class Broken:
    """A shard group that is gone."""

    async def search(self, query: Query, vectors: F32, version: int) -> Answer:
        """Never answers."""
        raise ConnectionError("gone")

    async def ready(self) -> bool:
        """Never is."""
        raise ConnectionError("gone")


class Slow(Broken):
    """A shard group that hangs."""

    async def search(self, query: Query, vectors: F32, version: int) -> Answer:
        """Not within anybody's patience."""
        await asyncio.sleep(60)
        raise AssertionError


@pytest.mark.parametrize("other", [Broken(), Slow()], ids=["broken", "slow"])
def test_a_lost_shard_makes_answers_partial(engine: SearchEngine, other: Broken) -> None:
    """The rest is answered and marked; readiness names the group; the page says so."""
    half = LocalBackend(ShardSet(engine.collection, engine.builds, 0, 2), None)
    service = CollectionService("rows", engine.collection, engine.builds, [half, other], timeout=0.5)
    with TestClient(build_api(Services({"rows": service})), raise_server_exceptions=False) as client:
        hits = client.post(SEARCH, json={"vectors": QUERIES.tolist(), "explain": True}).json()["results"]
        assert all(hit["partial"] for hit in hits)
        assert all(len(hit["ids"]) == 10 for hit in hits)
        assert all(row < ROWS // 2 for hit in hits for row in hit["rows"])
        assert hits[0]["explain"]["missing_groups"] == [1]
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["missing_groups"]) == (503, {"rows": [1]})
        assert "partial" in client.get("/collections/rows?row=row-1").text
        assert "hilbertflow_partial_answers_total" in client.get("/metrics").text


def test_no_shard_at_all_is_a_503(engine: SearchEngine) -> None:
    """Retryable, and said so."""
    service = CollectionService("rows", engine.collection, engine.builds, [Broken(), Broken()])
    with TestClient(build_api(Services({"rows": service})), raise_server_exceptions=False) as client:
        reply = client.post(SEARCH, json={"vectors": QUERIES.tolist()})
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "ConnectionError" in reply.json()["detail"]


def test_a_group_of_another_version_is_not_merged(engine: SearchEngine, tmp_path: Path) -> None:
    """Row numbers of another fingerprint mean other rows: the group counts as missing."""
    other = SearchEngine.open(archive_vectors(tmp_path, clustered(ROWS, DIM, seed=3), "ip"))
    groups = [LocalBackend(ShardSet(e.collection, e.builds, g, 2), None) for g, e in enumerate((engine, other))]
    service = CollectionService("rows", engine.collection, engine.builds, groups)
    results = asyncio.run(service.search(QUERIES, Query(tier="exact")))
    assert results.partial
    assert results.rows.max() < ROWS // 2


def test_an_encoder_that_hangs_keeps_nobody(engine: SearchEngine) -> None:
    """503 after the time that a shard may take, and the request's place is free again."""

    async def encode(texts: list[str]) -> F32:
        await asyncio.sleep(3600)
        raise AssertionError

    services = served(engine, encoders={"rows": Encoding(encode)}, limits=Limits(search_seconds=0.05))
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        reply = client.post(SEARCH, json={"texts": ["a"]})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "encoder" in reply.json()["detail"]
    assert services.active == 0


def test_too_many_at_once_get_a_503(engine: SearchEngine) -> None:
    """Beyond `waiting` requests, at once and with Retry-After."""
    services = served(engine, limits=Limits(waiting=1))
    services.active = 1
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        reply = client.post(SEARCH, json={"vectors": QUERIES.tolist()})
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        services.active = 0
        assert client.post(SEARCH, json={"vectors": QUERIES.tolist()}).status_code == 200


def test_keys_open_what_their_scopes_say(engine: SearchEngine, tmp_path: Path) -> None:
    """No key, a wrong one, one without the scope; rotated and broken files while serving; tokens are never kept."""
    reader, reader_hash = new_key()
    stranger, stranger_hash = new_key()
    path = tmp_path / "keys.yaml"
    entry = {"name": "reader", "sha256": reader_hash, "scopes": ["read:rows"]}
    other = {"name": "stranger", "sha256": stranger_hash, "scopes": ["admin:other"]}
    path.write_text(yaml.safe_dump({"keys": [entry, other]}))
    with TestClient(build_api(served(engine, keys=Keys(str(path)))), raise_server_exceptions=False) as client:
        body = {"vectors": QUERIES.tolist()}

        def status(token: str | None, path: str = SEARCH) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return (
                client.post(path, json=body, headers=headers) if path == SEARCH else client.get(path, headers=headers)
            ).status_code

        assert (status(None), status("wrong"), status(stranger), status(reader)) == (401, 401, 403, 200)
        assert (status(None, "/"), status(None, "/v1/collections"), status(None, "/healthz")) == (401, 401, 200)
        assert status(reader, "/") == 200
        listed = client.get("/v1/collections", headers={"Authorization": f"Bearer {stranger}"}).json()
        assert listed == {"collections": []}
        bearer = {"Authorization": f"Bearer {stranger}"}
        assert client.get(SEARCH.removesuffix("/search"), headers=bearer).json()["remedy"].startswith("use a key with")
        path.write_text(yaml.safe_dump({"keys": [entry | {"scopes": ["metrics:*"]}, other]}))
        assert (status(reader, "/metrics"), status(reader), status(stranger, "/metrics")) == (200, 403, 403)
        path.write_text(yaml.safe_dump({"keys": [entry | {"scopes": ["read:*"]}, other]}))
        assert (status(reader, "/metrics"), status(None, "/metrics")) == (200, 401)
        path.write_text("keys: [{name: broken")
        assert status(reader) == 200
        path.write_text(yaml.safe_dump({"keys": [other | {"scopes": ["write:*"]}]}))
        assert (status(reader), status(stranger)) == (401, 200)
        assert reader not in path.read_text()


def test_readiness_names_what_a_key_may_read(engine: SearchEngine, tmp_path: Path) -> None:
    """Whether all is ready is told to anybody, as probes need it; names are not."""
    (reader, reader_hash), (stranger, stranger_hash) = new_key(), new_key()
    path = tmp_path / "keys.yaml"
    keys = [{"name": "reader", "sha256": reader_hash, "scopes": ["read:rows"]},
            {"name": "stranger", "sha256": stranger_hash, "scopes": ["admin:other"]}]  # fmt: skip
    path.write_text(yaml.safe_dump({"keys": keys}))
    half = LocalBackend(ShardSet(engine.collection, engine.builds, 0, 2), None)
    service = CollectionService("rows", engine.collection, engine.builds, [half, Broken()], timeout=0.5)

    async def encode(texts: list[str]) -> F32:
        return np.ones((len(texts), DIM), np.float32)

    services = Services({"rows": service}, encoders={"rows": Encoding(encode, model="a")}, keys=Keys(str(path)))
    with TestClient(build_api(services), raise_server_exceptions=False) as client:

        def told(token: str | None) -> tuple[int, dict[str, Any]]:
            reply = client.get("/readyz", headers={"Authorization": f"Bearer {token}"} if token else {})
            return reply.status_code, reply.json()

        assert told(None) == told("wrong") == (503, {"ready": False})
        assert told(stranger) == (503, {"ready": False, "missing_groups": {}, "encoders": []})
        status, seen = told(reader)
        assert (status, seen["missing_groups"], seen["encoders"][0]["model"]) == (503, {"rows": [1]}, "a")


@pytest.mark.parametrize(
    "text", ["", "keys: 3", "keys: [{name: a}]", "keys: [{name: a, sha256: xyz, scopes: []}]", "[", None,
             "keys: [{name: a, sha256: '" + "0" * 64 + "', scopes: ['fly:rows']}]"],
)  # fmt: skip
def test_bad_key_files(tmp_path: Path, text: str | None) -> None:
    """Refused at the start, naming the file."""
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HilbertflowError, match=r"keys\.yaml"):
        Keys(str(path))


def test_queries_in_flight_gather_the_next_batch() -> None:
    """A lone query goes at once; those that arrive meanwhile go together; each gets its own rows; faults reach all."""
    sizes: list[int] = []

    async def run() -> None:
        gate = asyncio.Event()

        async def search(key: str, vectors: F32) -> F32:
            sizes.append(len(vectors))
            await gate.wait()
            if key == "bad":
                raise ValueError("no")
            return vectors * 2

        batcher: Batcher[str, F32, F32] = Batcher(search, rows=8)
        asks = [asyncio.create_task(batcher.submit("a", np.full((1, 2), i, np.float32))) for i in range(12)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asks[10].cancel()
        gate.set()
        replies = await asyncio.gather(*asks, return_exceptions=True)
        for i, reply in enumerate(replies):
            if i == 10:
                assert isinstance(reply, asyncio.CancelledError)
                continue
            assert not isinstance(reply, BaseException)
            result, place = reply
            assert result[place].tolist() == [[2 * i, 2 * i]]
        with pytest.raises(ValueError, match="no"):
            await batcher.submit("bad", np.zeros((1, 2), np.float32))
        await batcher.submit("a", np.zeros((20, 2), np.float32))

    asyncio.run(run())
    assert sizes == [8, 3, 1, 20]


def test_configurations(tmp_path: Path) -> None:
    """A file of our own and the same inside one for `serve deploy`; paths relative to the file."""
    docs = {"name": "docs", "url": "archives/collections/docs", "encoder": {"model": "models/clip"}}
    ours = {"collections": [docs], "encoder": {"model": "package://x/y"}, "port": 0}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(ours))
    config = load_config(str(path))
    assert config.collections[0].url == str(tmp_path / "archives/collections/docs")
    assert config.collections[0].encoder == EncoderConfig(model=str(tmp_path / "models/clip"))
    assert config.encoder == EncoderConfig(model="package://x/y")
    wrapped = {"applications": [{"name": "x", "import_path": "cluster.serve_app:application", "args": ours}]}
    path.write_text(yaml.safe_dump(wrapped))
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collection": []}, "did you mean 'collections'"), ({"port": 99999}, "port"),
        ({"collections": []}, "collections"),
        ({"collections": [{"name": "a", "url": "x", "replica": 2}]}, "did you mean 'replicas'"),
        ({"collections": [{"name": "../a", "url": "x"}]}, r"collections\.0\.name"),
        ({"collections": [{"name": "a", "url": "x", "tier": "warm"}]}, "tier"),
        ({"collections": [{"name": "a", "url": "x"}] * 2}, "two collections or models have the same name"),
        ({"host": "0.0.0.0"}, "not loopback"), ({"host": "example.org"}, "not loopback"),
        ({"models": {"a": "x"}}, "models: is .*give a list of parts with name, url"),
        ({"models": ["x"]}, r"models\.0: is x; give a part with name, url"),
        ({"limits": {"body_byte": 3}}, "did you mean 'body_bytes'"), ({"encoder": {}}, r"encoder\.model"),
    ],
)  # fmt: skip
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    """One line that names the key and the nearest there is."""
    body = {"collections": [{"name": "a", "url": "x"}]} | change
    with pytest.raises(HilbertflowError, match=message) as caught:
        parse_config(body, "serve.yaml")
    assert "\n" not in str(caught.value)
    assert "serve.yaml" in str(caught.value)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    """Missing, not YAML, not a mapping, no application of ours."""
    for text in (None, "a: [", "[1, 2]", "\xff", "applications: []", "applications: 3"):
        path = tmp_path / "serve.yaml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text, encoding="latin-1")
        with pytest.raises(HilbertflowError, match=r"serve\.yaml"):
            load_config(str(path))
