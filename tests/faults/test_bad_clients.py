"""Clients that mean no good, against the real service: each gets a clear 4xx or a closed connection, others go on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from cluster import running
from pipelines.bench.soak import memory_of_children
from tests.archived_model import archived_model
from tests.collection_fixtures import archive_vectors, clustered

DIM = 8
SEARCH = "/v1/collections/rows/search"
GOOD = {"vectors": [[0.5] * DIM], "k": 3}


@pytest.fixture(scope="module")
def url(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service for all: a collection with hostile metadata, a model, short patience."""
    root = tmp_path_factory.mktemp("bad")
    rows = archive_vectors(root, clustered(300, DIM), "ip", {"title": ["<img src=x onerror=alert(1)>"] * 300})
    limits = {"head_seconds": 1.0, "body_seconds": 1.0, "body_bytes": 1 << 20}
    service = running.start(
        {
            "collections": [{"name": "rows", "url": rows}], "models": [{"name": "m", "url": archived_model(root)}],
            "port": 0, "limits": limits,
        }
    )  # fmt: skip
    yield service.url
    service.stop()


def fine(url: str) -> None:
    """Others are served."""
    reply = httpx.post(url + SEARCH, json=GOOD, timeout=30, trust_env=False)
    assert reply.status_code == 200, reply.text


def connected(url: str) -> socket.socket:
    """A bare connection."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def ended(connection: socket.socket) -> bytes:
    """What came until the service closed the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"vectors": [[', "application/json", 422), (b"\x00" * 1000, "application/json", 422),
        (b"{}", "text/xml", 415), (b"[" * 500_000, "application/json", 422),
        (json.dumps({"vectors": [[0.5] * 100_000]}).encode(), "application/json", 422),
        (b'{"vectors": [[' + b"NaN," * 7 + b"NaN]]}", "application/json", 422),
        (np.zeros(1_000_000, "<f4").tobytes(), "application/octet-stream", 413),
        (np.full(DIM, np.nan, "<f4").tobytes(), "application/octet-stream", 422),
    ],
    ids=["half a body", "zeros", "another type", "deep nesting", "a long vector", "NaN", "a million values", "raw NaN"],
)  # fmt: skip
def test_nonsense_in_bodies(url: str, body: bytes, kind: str, status: int) -> None:
    """A problem document, and the next client is answered."""
    reply = httpx.post(url + SEARCH, content=body, headers={"Content-Type": kind}, timeout=30, trust_env=False)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert body[:40].decode("latin-1") not in reply.text
    fine(url)


def test_too_long_a_body_is_refused_before_it_is_sent(url: str) -> None:
    """By its declared length: the answer comes though not a byte of the body does."""
    with connected(url) as connection:
        connection.sendall(f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")
    fine(url)


def test_slow_clients_are_let_go(url: str) -> None:
    """A head a byte at a time, no head at all, a body that does not come: closed or 408 within their limits."""
    began = time.monotonic()
    with connected(url) as silent, connected(url) as head, connected(url) as body:
        head.sendall(b"POST /v1/collections/rows/search HTTP/1.1\r\nHost:")
        body.sendall(f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b"408" in body.recv(64)
        assert ended(head) == b""
        assert ended(silent) == b""
    assert time.monotonic() - began < 15
    fine(url)


@pytest.mark.parametrize("path", [SEARCH, "/v1/collections/none/search"])
def test_a_body_that_goes_on_after_its_answer(url: str, path: str) -> None:
    """Refused by its length, or for its path, and dripped on: the connection ends soon, a kept one does not."""
    with connected(url) as dripping, httpx.Client(base_url=url, timeout=30, trust_env=False) as kept:
        dripping.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert dripping.recv(64).startswith((b"HTTP/1.1 413", b"HTTP/1.1 404"))
        assert kept.post(path, content=b"x" * (1 << 20)).status_code in (404, 415, 422)
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + 20:
                dripping.sendall(b"x")
                time.sleep(0.2)
        assert kept.get("/healthz").status_code == 200
    fine(url)


def test_clients_that_leave(url: str) -> None:
    """In the middle of their body, and before their answer: nobody else notices."""
    head = f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n"
    for number in range(40):
        with connected(url) as connection:
            body = np.zeros((500, DIM), "<f4").tobytes()
            connection.sendall(
                f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // (1 + number % 2)]
            )
    with httpx.stream("GET", f"{url}/v1/models/m/tensors/layer.0.weight", timeout=30, trust_env=False) as reply:
        assert reply.status_code == 200
        next(reply.iter_raw(100))
    fine(url)


@pytest.mark.parametrize(
    "path",
    ["/v1/collections/../../etc/passwd", "/v1/collections/..%2f..%2fetc%2fpasswd",
      "/v1/models/m/tensors/../../../etc/passwd",
     "/v1/models/m/tensors/%2e%2e%2f%2e%2e%2fmanifest.json", "/v1/models/%00",
      "/v1/models/m/tensors/a%0d%0aX-Evil:%201",
     "/static/../cluster/auth.py", "//etc/passwd", "/v1/collections/" + "a" * 5000],
)  # fmt: skip
def test_path_tricks(url: str, path: str) -> None:
    """404, and no header of the client's making."""
    with connected(url) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        reply = ended(connection)
    assert reply.startswith(b"HTTP/1.1 404"), reply[:200]
    assert b"\r\nX-Evil" not in reply
    assert b"root:" not in reply


def test_bytes_that_are_no_http(url: str) -> None:
    """Closed, perhaps with a 400."""
    for junk in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 200_000 + b"\r\n\r\n",
        b"\r\n" * 100,
    ):
        with connected(url) as connection:
            connection.sendall(junk)
            assert not ended(connection).startswith(b"HTTP/1.1 2")
    fine(url)


def test_html_in_metadata_is_escaped(url: str) -> None:
    """On the page; as JSON it is what it is, and browsers are told not to guess."""
    page = httpx.get(f"{url}/collections/rows?row=row-1", timeout=30, trust_env=False)
    assert "<img src=x" not in page.text
    reply = httpx.post(url + SEARCH, json=GOOD, timeout=30, trust_env=False)
    assert reply.json()["results"][0]["metadata"][0]["title"].startswith("<img")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in httpx.get(f"{url}/v1/collections", headers={"Origin": "http://evil"},
                                                          trust_env=False).headers  # fmt: skip


def test_five_hundred_connections_at_once(url: str) -> None:
    """All are answered, and the memory of the service stays bounded."""
    body = json.dumps(GOOD).encode()
    request = (
        f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + body
    fine(url)
    before = memory_of_children()
    connections = [connected(url) for _ in range(500)]
    try:
        for connection in connections:
            connection.sendall(request)
        statuses = {ended(connection)[9:12] for connection in connections}
    finally:
        for connection in connections:
            connection.close()
    assert statuses <= {b"200", b"503"}
    assert b"200" in statuses
    assert memory_of_children() < before + (200 << 20)
    fine(url)
