"""Rows over HTTP: put in, replaced, deleted, seen by the next search in every tier; nonsense refused."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.build import build_indexes
from cluster.config import Limits
from cluster.engine import SearchEngine
from cluster.local_backend import LocalBackend
from cluster.query import Query
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32
from cluster.versions import Version, newest, open_version
from storage.rowlog import RowLog
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 600, 8
PATH, SEARCH = "/v1/collections/rows/rows", "/v1/collections/rows/search"
ARROW = "application/vnd.apache.arrow.stream"


def service_over(now: Version) -> CollectionService:
    """Two groups; each with its own look at the log, as if they were in processes of their own."""
    groups = [LocalBackend(ShardSet(now.collection, now.builds, group, 2), None) for group in range(2)]
    return CollectionService("rows", now.collection, now.builds, groups, version=now.name, log=RowLog(now.collection))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """600 rows with metadata and a graph."""
    columns = {"lines": np.arange(ROWS), "title": [f"t{i}" for i in range(ROWS)]}
    url = archive_vectors(tmp_path, clustered(ROWS, DIM), "l2", columns)
    build_indexes(url, ["hnsw"], actors=0)
    return url


@pytest.fixture
def client(url: str) -> Iterator[TestClient]:
    """Without keys; reopens when asked to reload."""

    def reopen(old: CollectionService) -> CollectionService | None:
        return None if newest(url) == old.version else service_over(open_version(url))

    services = Services({"rows": service_over(open_version(url))}, limits=Limits(rows=100), reopen=reopen)
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        yield client


def nearest(client: TestClient, vector: F32, **options: Any) -> dict[str, Any]:
    """The only answer to one query."""
    reply = client.post(SEARCH, json={"vectors": [vector.tolist()], "k": 3, **options})
    assert reply.status_code == 200, reply.text
    (hit,) = reply.json()["results"]
    assert not hit["partial"]
    return dict(hit)


@pytest.mark.parametrize("tier", ["exact", "hnsw"])
def test_changes_are_seen_by_the_next_search(client: TestClient, url: str, tier: str) -> None:
    """Put in, replaced, deleted: ids, scores and metadata, by JSON and by Arrow; the archive's own rows too."""
    spot = np.full(DIM, 40, np.float32)
    body = {"ids": ["new", "row-5"], "vectors": [spot.tolist(), (spot + 1).tolist()], "metadata": {"lines": [7, 8]}}
    receipt = client.post(PATH, json=body)
    assert (receipt.status_code, receipt.json()) == (200, {"version": 1, "rows": 2, "repeated": False})
    hit = nearest(client, spot, tier=tier)
    assert hit["ids"][:2] == ["new", "row-5"]
    assert hit["scores"][:2] == [0, DIM]
    assert hit["metadata"][0] == {"lines": 7, "title": None}
    assert nearest(client, spot, tier=tier, filter="lines == 8")["ids"][0] == "row-5"
    vector = pa.FixedSizeListArray.from_arrays(pa.array(spot + 2), DIM)
    table = pa.table({"id": ["new"], "vector": vector, "lines": [9]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert client.post(PATH, content=sink.getvalue(), headers={"Content-Type": ARROW}).json()["version"] == 2
    assert nearest(client, spot, tier=tier)["ids"][:2] == ["row-5", "new"]
    assert client.delete(PATH, params={"id": ["row-5", "nobody"]}).json()["rows"] == 2
    assert client.request("DELETE", PATH, json={"ids": ["row-9"]}).json()["version"] == 4
    assert nearest(client, spot, tier=tier)["ids"][0] == "new"
    everything = client.post(SEARCH, json={"vectors": [spot.tolist()], "k": 1000, "tier": tier}).json()["results"][0]
    assert sorted(everything["ids"]) == sorted({f"row-{i}" for i in range(ROWS)} - {"row-5", "row-9"} | {"new"})
    about = client.get("/v1/collections/rows").json()
    assert (about["count"], about["rows_version"]) == (ROWS - 1, 4)
    assert 'hilbertflow_rows_changed_total{collection="rows",op="upsert"} 3.0' in client.get("/metrics").text
    engine = SearchEngine.open(url)  # durable: another process finds the same
    assert engine.search(spot, 1000, tier).ids[0].tolist() == everything["ids"]


def test_a_key_makes_a_change_once(client: TestClient) -> None:
    """The same key and content: the first receipt; another content under the key is refused."""
    body: dict[str, Any] = {"ids": ["a"], "vectors": [[0.0] * DIM]}
    headers = {"Idempotency-Key": "k1"}
    first = client.post(PATH, json=body, headers=headers).json()
    again = client.post(PATH, json=body, headers=headers).json()
    assert again == first | {"repeated": True}
    other = client.post(PATH, json=body | {"ids": ["b"]}, headers=headers)
    assert other.status_code == 422
    assert client.get("/v1/collections/rows").json()["rows_version"] == first["version"]


def test_a_version_can_be_asked_for(client: TestClient, url: str) -> None:
    """Another process writes: a search that names its version sees it at once; one that is not there is refused."""
    engine = SearchEngine.open(url)
    spot = np.full(DIM, -30, np.float32)
    receipt = engine.upsert(["elsewhere"], spot[None])
    assert nearest(client, spot, version=receipt.version)["ids"][0] == "elsewhere"
    reply = client.post(SEARCH, json={"vectors": [spot.tolist()], "version": 99})
    assert reply.status_code == 422
    assert "the newest is 1" in reply.json()["remedy"]


def test_a_new_index_takes_over(client: TestClient, url: str) -> None:
    """`reload` swaps to what was built since; nothing to do is said too; changed rows stay."""
    spot = np.full(DIM, 40, np.float32)
    client.post(PATH, json={"ids": ["new"], "vectors": [spot.tolist()]})
    before = client.get("/v1/collections/rows").json()
    assert client.post("/v1/collections/rows/reload").json() == {"swapped": False, "version": before["version"]}
    build_indexes(url, ["ivfpq"], actors=0)
    assert client.post(SEARCH, json={"vectors": [spot.tolist()], "tier": "ivfpq"}).status_code == 422
    assert client.post("/v1/collections/rows/reload").json()["swapped"] is True
    after = client.get("/v1/collections/rows").json()
    assert after["version"] != before["version"]
    assert set(after["tiers"]) >= {"ivfpq", "hnsw"}
    assert nearest(client, spot, tier="ivfpq")["ids"][0] == "new"
    text = client.get("/metrics").text
    assert f'version="{before["version"]}"' not in text


def test_queries_in_flight_end_on_the_version_they_began_with(url: str) -> None:
    """One waits in its shard while another version takes over: it is answered by the old one, the next by the new."""
    begun, go = asyncio.Event(), asyncio.Event()

    class Held(LocalBackend):
        async def search(self, query: Query, vectors: F32, version: int) -> Answer:
            begun.set()
            await go.wait()
            return await super().search(query, vectors, version)

    def opened(kind: type[LocalBackend]) -> CollectionService:
        now = open_version(url)
        shards = ShardSet(now.collection, now.builds)
        return CollectionService("rows", now.collection, now.builds, [kind(shards, None)], version=now.name)

    async def run() -> None:
        services = Services({"rows": opened(Held)}, reopen=lambda old: opened(LocalBackend))
        transport = httpx.ASGITransport(build_api(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            body = {"vectors": [[0.0] * DIM], "k": 3}
            early = asyncio.create_task(http.post(SEARCH, json=body))
            await begun.wait()
            before = services.collections["rows"].version
            build_indexes(url, ["ivfpq"], actors=0)
            reply = await http.post("/v1/collections/rows/reload")
            assert reply.json()["swapped"] and reply.json()["version"] != before
            late = (await http.post(SEARCH, json=body)).json()["results"][0]
            assert not early.done()
            go.set()
            old = (await early).json()["results"][0]
            assert old["ids"] == late["ids"] and not old["partial"]

    asyncio.run(run())


GOOD: dict[str, Any] = {"ids": ["a"], "vectors": [[1.0] * DIM]}


@pytest.mark.parametrize(
    "body",
    [
        {}, [], "x", {"ids": []}, GOOD | {"ids": ["a", "a"], "vectors": [[1.0] * DIM] * 2}, GOOD | {"ids": [""]},
        GOOD | {"ids": ["x" * 10_001]}, GOOD | {"ids": [3]}, GOOD | {"vectors": [[1.0]]},
        GOOD | {"vectors": [[1e300] * DIM]},
        GOOD | {"vectors": [["a"] * DIM]}, GOOD | {"vectors": "%"}, GOOD | {"vectors": "AAAA"}, GOOD | {"op": "drop"},
        GOOD | {"texts": ["a"]}, {"ids": ["a"], "texts": ["no encoder"]}, {"ids": ["a"]},
        GOOD | {"metadata": {"lines": ["x"]}}, GOOD | {"metadata": {"nothing": [1]}},
        GOOD | {"metadata": {"lines": [1, 2]}},
        GOOD | {"metadata": {"lines": [2**70]}}, GOOD | {"metadata": {"lines": [1], "title": ["a", "b"]}},
        GOOD | {"metadata": {"lines": [{"deep": []}]}}, GOOD | {"metadata": {"x": [1, "a"]}}, GOOD | {"surprise": 1},
        {"op": "append", "ids": ["row-1"], "vectors": [[1.0] * DIM]}, GOOD | {"ids": ["\ud800"]},
    ],
)  # fmt: skip
def test_changes_that_cannot_be_kept(client: TestClient, body: Any) -> None:
    """422 with a problem document, and nothing is changed."""
    import json

    reply = client.post(PATH, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/collections/rows").json()["rows_version"] == 0


def test_limits_and_guards(client: TestClient, url: str, tmp_path: Path) -> None:
    """Too many rows, no ids, both places, other types; a reader may not write; a read-only collection takes none."""
    many = {"ids": [str(i) for i in range(101)], "vectors": [[0.0] * DIM] * 101}
    assert client.post(PATH, json=many).status_code == 413
    assert client.delete(PATH).status_code == 422
    assert client.request("DELETE", PATH, params={"id": "a"}, json={"ids": ["a"]}).status_code == 422
    assert client.post(PATH, content=b"x", headers={"Content-Type": "text/csv"}).status_code == 415
    assert client.post(PATH, content=b"x", headers={"Content-Type": ARROW}).status_code == 422
    assert client.post(f"{PATH}?op=drop", content=b"x", headers={"Content-Type": ARROW}).status_code == 422
    whole = {"ids": ["a"], "vectors": base64.b64encode(np.zeros(DIM, "<f4").tobytes()).decode()}
    assert client.post(PATH, json=whole).status_code == 200
    token, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: a, sha256: {digest}, scopes: ['read:rows']}}]")
    services = Services({"rows": service_over(open_version(url))}, keys=Keys(str(path)))
    with TestClient(build_api(services), raise_server_exceptions=False) as guarded:
        headers = {"Authorization": f"Bearer {token}"}
        assert guarded.post(PATH, json=whole).status_code == 401
        assert guarded.post(PATH, json=whole, headers=headers).status_code == 403
        assert guarded.delete(PATH, params={"id": "a"}, headers=headers).status_code == 403
        assert guarded.post("/v1/collections/rows/reload", headers=headers).status_code == 403
    services = Services({"rows": service_over(open_version(url))}, read_only=frozenset({"rows"}))
    with TestClient(build_api(services), raise_server_exceptions=False) as guarded:
        reply = guarded.post(PATH, json=whole)
        assert reply.status_code == 403
        assert "read-only" in reply.json()["detail"]


def test_a_column_of_a_name_that_the_flow_uses(tmp_path: Path) -> None:
    """It has an underscore behind its name in a collection; whoever leaves that out is told."""
    url = archive_vectors(tmp_path, clustered(ROWS, DIM), "l2", {"text": [f"t{i}" for i in range(ROWS)]})
    with TestClient(build_api(Services({"rows": service_over(open_version(url))}))) as client:
        body = {"ids": ["a"], "vectors": [[0.0] * DIM]}
        reply = client.post(PATH, json=body | {"metadata": {"text": ["x"]}})
        assert (reply.status_code, reply.json()["remedy"]) == (422, "the column is called text_ here")
        assert client.post(PATH, json=body | {"metadata": {"text_": ["x"]}}).is_success
        found = client.post(SEARCH, json={"vectors": body["vectors"], "filter": 'text == "x"'})
        assert (found.status_code, found.json()["remedy"]) == (422, "the column is called text_ here")
        assert nearest(client, np.zeros(DIM, np.float32), filter='text_ == "x"')["ids"] == ["a"]


def test_values_of_another_type_are_refused_with_a_remedy(client: TestClient) -> None:
    """In JSON by their type, in Arrow by the cast that fails."""
    body = {"ids": ["a"], "vectors": [[0.0] * DIM], "metadata": {"lines": ["many"]}}
    reply = client.post(PATH, json=body)
    assert (reply.status_code, reply.json()["detail"]) == (422, "the values are not int64")
    assert reply.json()["remedy"].startswith("send values of that type")
    table = pa.table({"id": ["a"], "vector": [[0.0] * DIM], "lines": ["many"]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    reply = client.post(PATH, content=sink.getvalue(), headers={"Content-Type": ARROW})
    assert (reply.status_code, reply.json()["remedy"]) == (422, "send values of type int64, or null")
