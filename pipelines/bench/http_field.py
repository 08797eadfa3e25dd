"""Servers started for a benchmark, and the clients that ask them, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operators.errors import HilbertflowError

CLIENTS, BATCH, K = 8, 1024, 10
_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]


@dataclass(frozen=True)
class Target:
    """Where and how one contender is asked.

    bodies: requests' bodies, asked in turn; queries: in one body.
    """

    name: str
    port: int
    path: str
    headers: dict[str, str]
    bodies: tuple[bytes, ...]
    queries: int = 1


@dataclass(frozen=True)
class Seen:
    """What closed-loop clients saw: answers a second, milliseconds, and replies that were not 200."""

    rate: float
    p50: float
    p99: float
    bad: int


def asked(target: Target, clients: int, seconds: float) -> Seen:
    """Let `clients` ask a target for so long."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(target.bodies))
        file.flush()
        offsets = [0]
        for body in target.bodies:
            offsets.append(offsets[-1] + len(body))
        spec = {
            "port": target.port, "path": target.path, "headers": target.headers, "bodies": file.name,
            "offsets": offsets, "clients": clients, "seconds": seconds,
        }  # fmt: skip
        done = subprocess.run(script("http_load.py"), input=json.dumps(spec), capture_output=True, text=True)
    if done.returncode:
        raise HilbertflowError(f"the clients failed ({done.stderr.strip().splitlines()[-1]})", where=target.name)
    seen = json.loads(done.stdout)
    bad = sum(count for status, count in seen["statuses"].items() if status != "200")
    return Seen(seen["rate"], seen["p50"], seen["p99"], bad)


def in_turns(targets: Sequence[Target], clients: int, seconds: float, rounds: int) -> dict[str, Seen]:
    """The best round of each, asked in turns so that all meet the same machine."""
    best: dict[str, Seen] = {}
    for _ in range(rounds):
        for target in targets:
            seen = asked(target, clients, seconds)
            if target.name not in best or seen.rate > best[target.name].rate:
                best[target.name] = seen
    return best


def script(name: str, *given: object, python: str = sys.executable) -> list[str]:
    """The command that runs a file of this folder; -P keeps the folder, with its `collections.py`, off the path."""
    return [python, "-P", str(_HERE / name), *map(str, given)]


@contextmanager
def server(command: Sequence[str], ready: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that is ready when it prints a line that begins so; the end of its input ends it, or SIGTERM."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "RAY_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would stop a server that complains a lot
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith(ready)), "")
            if not line:
                said.seek(0)
                last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
                raise HilbertflowError(f"did not start ({last})", where=" ".join(command[:3]))
            yield process, line.strip()
        finally:
            process.stdin.close()
            if "serve" in command:
                process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def free_port(width: int = 1) -> int:
    """A port that is free, with those after it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        taken = []
        for at in range(port, port + width):
            with socket.socket() as each:
                taken.append(each.connect_ex(("127.0.0.1", at)) == 0)
        if not any(taken) and port + width < 65_536:
            return port
