"""Answers of a server against what was asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.replies import WrongReplyError, check_reply


@pytest.mark.parametrize(
    ("asked", "content_range", "length"),
    [
        ("bytes=2-9", "bytes 2-9/100", 8),
        ("bytes=2-9", "bytes 2-9/*", None),
        ("bytes=90-199", "bytes 90-99/100", 10),  # the object ends early: whoever asked sees the length
        ("bytes=2-", "bytes 2-99/100", 98),
        ("bytes=-9", "bytes 91-99/100", 9),
        ("bytes=-900", "bytes 0-99/100", 100),
    ],
)
def test_right_answers(asked: str, content_range: str, length: int | None) -> None:
    check_reply(asked, 206, content_range, length)


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "length"),
    [
        ("bytes=2-9", 206, "bytes 3-10/100", 8),
        ("bytes=2-9", 206, "bytes 2-8/100", 7),
        ("bytes=2-9", 206, "bytes 2-8/*", 7),
        ("bytes=2-9", 206, "bytes 2-9/100", 7),
        ("bytes=2-9", 206, None, 8),
        ("bytes=2-9", 206, "items 2-9/100", 8),
        ("bytes=2-9", 200, None, 100),
        ("bytes=2-", 206, "bytes 0-97/100", 98),
        ("bytes=2-", 206, "bytes 2-98/100", 97),
        ("bytes=-9", 206, "bytes 0-8/100", 9),
        (None, 206, "bytes 0-8/100", 9),
    ],
)
def test_wrong_answers(asked: str | None, status: int, content_range: str | None, length: int) -> None:
    with pytest.raises(WrongReplyError):
        check_reply(asked, status, content_range, length)
    check_reply(None, 200, None, length)


@pytest.fixture
def simple(tmp_path: Path) -> Iterator[str]:
    """A server that knows no ranges: Python's own."""
    (tmp_path / "x").write_bytes(bytes(range(100)))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_is_named(simple: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.fs._ATTEMPTS", 2)
    assert Location(f"{simple}/x").read() == bytes(range(100))
    with pytest.raises(HilbertflowError, match=r"/x: cannot be read: the server sent the whole where bytes=0-99 was"):
        Location(f"{simple}/x").read("", 0, 100)
