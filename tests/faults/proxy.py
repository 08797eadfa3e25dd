"""A proxy between client and S3 server that does what networks, servers and proxies do on bad days."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.session

ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}
KINDS = ("500", "slow down", "reset", "truncated", "cut", "stall", "other range", "whole", "stale", "expired")
_ONLY = {"other range": "range", "whole": "range", "stale": ("LIST",), "truncated": ("GET", "LIST"),
         "cut": ("GET", "LIST"), "stall": ("GET", "LIST")}  # fmt: skip


@dataclass
class Fault:
    """What goes wrong, and when.

    Parameters
    ----------
    kind: one of `KINDS`. ``truncated`` breaks off before the announced length, ``cut`` announces less; ``other range``
        and ``whole`` answer ranges only, ``stale`` repeats the first answer to a listing.
    method, key: of the requests that it meets, with ``LIST`` for listings; empty for all. The key is a regular
        expression, searched for.
    chance: of meeting it.
    times: how often at most.
    """

    kind: str
    method: str = ""
    key: str = ""
    chance: float = 1.0
    times: int = 1_000_000
    done: int = 0


@dataclass
class Proxy:
    """What it was asked, and what it shall do next; ``moved`` has bytes of objects by method and key."""

    url: str
    upstream: str
    stall_s: float
    faults: list[Fault] = field(default_factory=list)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    random: random.Random = field(default_factory=random.Random)
    listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    client: Any = None
    closing: threading.Event = field(default_factory=threading.Event)
    watch: Callable[[str, str, int], None] | None = None
    """Told method and key of every request with 0 before it goes on, and with the status of its answer."""

    def begin(self, *faults: Fault, seed: int = 0) -> None:
        """Forget what was asked; these faults from now on."""
        self.random.seed(seed)
        self.asked.clear()
        self.moved.clear()
        self.listings.clear()
        self.faults = list(faults)

    def met(self) -> int:
        """How often something went wrong."""
        return sum(fault.done for fault in self.faults)

    def choose(self, method: str, key: str, ranged: bool) -> str:
        """The fault that a request meets; empty for none."""
        with self.lock:
            self.asked[method, key] += 1
            for fault in self.faults:
                fits = fault.method in ("", method) and re.search(fault.key, key) and fault.done < fault.times
                if fault.kind in _ONLY:
                    fits = fits and (ranged if _ONLY[fault.kind] == "range" else method in _ONLY[fault.kind])
                if fits and self.random.random() < fault.chance:
                    fault.done += 1
                    return fault.kind
        return ""


@contextmanager
def proxy(upstream: str, stall_s: float) -> Iterator[Proxy]:
    """Run it on loopback; ``upstream`` is the server's URL, ``stall_s`` how long a stall lasts."""
    server = _Server(("127.0.0.1", 0), _Handler)
    mine = Proxy(f"http://127.0.0.1:{server.server_address[1]}", upstream, stall_s)
    mine.client = botocore.session.get_session().create_client("s3", endpoint_url=upstream)
    server.proxy = mine  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        mine.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients here are killed: their connections break
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second must not wait for an acknowledgement

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        parts = urlsplit(self.path)
        query, listing = parse_qs(parts.query), "list-type" in parts.query
        key = parts.path.lstrip("/") + ("/" + query.get("prefix", [""])[0] if listing else "")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mine: Proxy = self.server.proxy  # type: ignore[attr-defined]
        kind = mine.choose("LIST" if listing else self.command, key, self.headers.get("Range") is not None)
        if kind in ERRORS:
            status, code, text = ERRORS[kind]
            said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
            self.send(status, [("Content-Type", "application/xml")], said.encode())
            return
        if kind == "reset":
            self.hang_up()
            return
        told = ("LIST" if listing else self.command, key)
        try:
            if mine.watch is not None:
                mine.watch(*told, 0)
            status, headers, data = self.forward(mine.upstream, body)
        except (OSError, http.client.HTTPException):  # there is no server, or none any more
            self.hang_up()
            return
        if mine.watch is not None:
            mine.watch(*told, status)
        if status < 300 and told[0] in ("GET", "PUT"):
            length = int(self.headers.get("x-amz-decoded-content-length") or len(body))
            with mine.lock:
                mine.moved[told] += length if told[0] == "PUT" else len(data)
        if kind == "stale" and listing:
            asked = re.sub(r"&?continuation-token=[^&]*", "", self.path)
            status, headers, data = mine.listings.setdefault(asked, (status, headers, data))
        elif kind in ("other range", "whole") and status == 206:
            status, headers, data = self.wrong(kind, parts.path.lstrip("/"), headers, data)
        elif kind == "cut":
            data = data[: len(data) // 2]
        if kind in ("truncated", "stall"):
            self.head(status, headers, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stall":
                mine.closing.wait(mine.stall_s)
            self.hang_up()
            return
        self.send(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def forward(self, upstream: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        address = urlsplit(upstream)
        connection = http.client.HTTPConnection(str(address.hostname), address.port)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)  # the host too: it is part of what was signed
            connection.endheaders(body)
            reply = connection.getresponse()
            data = reply.read()
            kept = [(n, v) for n, v in reply.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
            return reply.status, kept, data
        finally:
            connection.close()

    def wrong(
        self, kind: str, path: str, headers: list[tuple[str, str]], data: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        bucket, _, key = path.partition("/")
        mine: Proxy = self.server.proxy  # type: ignore[attr-defined]
        whole = mine.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        kept = [(n, v) for n, v in headers if n.lower() not in ("content-range", "content-length")]
        if kind == "whole":
            return 200, kept, whole
        start = len(whole) - len(data)  # as long as what was asked for, from the end
        if data == whole[start:]:
            start = 0
        return 206, [*kept, ("Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(whole)}")], \
            whole[start : start + len(data)]  # fmt: skip

    def send(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        told = next((int(v) for n, v in headers if n.lower() == "content-length"), 0)
        self.head(status, headers, told if self.command == "HEAD" else len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def head(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def hang_up(self) -> None:
        """Close with a reset, not in order."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
