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
KEPT = ("proxy", "direct", "own")  # stand on, to be asked again beside the service


def ways(seconds: float, body: bytes, kept: ExitStack) -> tuple[Table, dict[str, Target]]:
    """Requests a second and latencies of each, asked with this body; those that stand on in `kept`."""
    rows: list[tuple[Any, ...]] = []
    rates: dict[str, float] = {}
    echoes: dict[str, Target] = {}
    for way, name in sorted(WAYS.items(), key=lambda item: item[0] in KEPT):
        with ExitStack() as own:
            try:
                target = echo(way, kept if way in KEPT else own, body)
                seen = [_echoed(way, target, clients, seconds) for clients in (1, CLIENTS)]
            except HilbertflowError as error:
                if way in KEPT:
                    raise
                rows.append((name, None, None, None, None, error.what))
                continue
        if way in KEPT:
            echoes[way] = target
        rates[way] = seen[1].rate
        rows.append((name, *(f"{s.rate:,.0f}" for s in seen), *(f"{s.p50:.2f} / {s.p99:.2f}" for s in seen), ""))
    best = max(rates, key=lambda way: rates[way])
    table = Table(
        f"ways into Ray Serve: a bare deployment that echoes {len(body):,} bytes",
        ("way in", "requests/s, 1 client", f"{CLIENTS} clients", "p50 / p99 ms, 1", f"p50 / p99 ms, {CLIENTS}", ""),
        tuple(rows),
        (f"the default is {WAYS[DEFAULT]}; the best by {CLIENTS} clients is {WAYS[best]}",),
    )
    return table, echoes


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
    command = script("grpc_load.py", target.port, clients, seconds, len(target.bodies[0]))
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Seen(seen["rate"], seen["p50"], seen["p99"], 0)
