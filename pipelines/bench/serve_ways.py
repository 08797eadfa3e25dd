"""Ways into a Ray Serve deployment, each with a bare deployment behind it that only echoes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from contextlib import ExitStack
from typing import Any

import httpx

from cluster.media import FLOATS
from operators.errors import HilbertflowError
from pipelines.bench.http_field import CLIENTS, Seen, Target, asked, free_port, script, server
from pipelines.bench.report import Table

WAYS = {
    "proxy": "Serve's HTTP proxy (its default)", "haproxy": "Serve's HAProxy", "grpc": "Serve's gRPC proxy",
    "direct": "Serve's direct ingress", "own": "the replica's own listener",
}  # fmt: skip
DEFAULT = "own"  # of `listen` in the service's configuration
BYTES = 1536  # of a query of 384 float32


def ways(seconds: float) -> Table:
    """Requests a second and latencies of each."""
    rows: list[tuple[Any, ...]] = []
    rates: dict[str, float] = {}
    for way, name in WAYS.items():
        with ExitStack() as stack:
            try:
                target = echo(way, stack, b"x" * BYTES)
                seen = [_echoed(way, target, clients, seconds) for clients in (1, CLIENTS)]
            except HilbertflowError as error:
                rows.append((name, None, None, None, None, error.what))
                continue
        rates[way] = seen[1].rate
        rows.append((name, *(f"{s.rate:,.0f}" for s in seen), *(f"{s.p50:.2f} / {s.p99:.2f}" for s in seen), ""))
    best = max(rates, key=lambda way: rates[way])
    return Table(
        f"ways into Ray Serve: a bare deployment that echoes {BYTES:,} bytes",
        ("way in", "requests/s, 1 client", f"{CLIENTS} clients", "p50 / p99 ms, 1", f"p50 / p99 ms, {CLIENTS}", ""),
        tuple(rows),
        (f"the default is {WAYS[DEFAULT]}; the best by {CLIENTS} clients is {WAYS[best]}",),
    )


def echo(way: str, stack: ExitStack, body: bytes) -> Target:
    """Start one, to be asked with this body."""
    port = free_port(2)
    stack.enter_context(server(script("echo_server.py", way, port), "ready"))
    if way != "grpc":
        _await_echo(port)
    return Target(f"echo, {way}", port, "/", {"Content-Type": FLOATS}, (body,))


def _await_echo(port: int, patience: float = 30.0) -> None:
    """Until it answers: HAProxy is started over when it learns of a replica."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"http://127.0.0.1:{port}/", content=b"x", trust_env=False, timeout=5).status_code == 200:
                time.sleep(1)
                return
        time.sleep(0.2)
    raise HilbertflowError("does not answer", where=f"port {port}")


def _echoed(way: str, target: Target, clients: int, seconds: float) -> Seen:
    if way != "grpc":
        return asked(target, clients, seconds)
    command = script("grpc_load.py", target.port, clients, seconds, BYTES)
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Seen(seen["rate"], seen["p50"], seen["p99"], 0)
