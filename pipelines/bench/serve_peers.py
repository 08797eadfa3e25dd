"""Endpoints of peers, filled with the same rows: Chroma's HTTP server, and LanceDB behind the least FastAPI.

They are found in this Python, or in the one that ``HILBERTFLOW_PEERS`` names (their pins and ours do not always agree):
``python -m venv peers && peers/bin/pip install chromadb lancedb fastapi uvicorn``. What they hold stays in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.media import FLOATS, JSON
from pipelines import console
from pipelines.bench.datasets import Dataset
from pipelines.bench.http_field import BATCH, K, Target, free_port, script, server

PEERS = "HILBERTFLOW_PEERS"
TARGET = 0.95  # recall
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass(frozen=True)
class Peer:
    """A peer's endpoint at the setting that reaches the recall."""

    single: Target
    batch: Target
    setting: str
    recall: float


def peers(folder: Path, data: Dataset, stack: ExitStack) -> tuple[list[Peer], tuple[str, ...]]:
    """Start those that are installed over ``folder/train.npy``; also what to say of the others."""
    python = os.environ.get(PEERS, sys.executable)
    found, notes = [], []
    for name, module in (("chroma", "chromadb"), ("lance", "lancedb")):
        asking = [python, "-c", f"from importlib.metadata import version; print(version({module!r}))"]
        version = subprocess.run(asking, capture_output=True, text=True)
        if version.returncode:
            notes.append(f"not installed: {module} ({PEERS} can name a Python that has it)")
            continue
        port, kept = free_port(), folder / f"{name}-{version.stdout.strip()}"
        console.say(f"filling {name}")
        command = script("peer_servers.py", name, folder / "train.npy", data.metric, kept, port, python=python)
        process, line = stack.enter_context(server(command, "ready"))
        found.append(_chroma(port, line.split()[2], process, data) if name == "chroma" else _lance(port, data))
    return found, tuple(notes)


def _chroma(port: int, collection: str, process: subprocess.Popen[str], data: Dataset) -> Peer:
    path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{collection}/query"

    def body(queries: npt.NDArray[np.float32]) -> bytes:
        return json.dumps({"query_embeddings": queries.tolist(), "n_results": K, "include": ["distances"]}).encode()

    def recall(ef: int) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{ef}\n")
        process.stdin.flush()
        process.stdout.readline()
        reply = httpx.post(f"http://127.0.0.1:{port}{path}", content=body(data.test), headers=headers, timeout=300,
                           trust_env=False).raise_for_status()  # fmt: skip
        return data.recall(np.array([[int(name) for name in some] for some in reply.json()["ids"]]), K)

    headers = {"Content-Type": JSON}
    ef, reached = lowest(recall)
    queries = np.resize(data.test, (BATCH, data.test.shape[1]))
    single = Target("Chroma, its HTTP server", port, path, headers, tuple(body(q[None]) for q in data.test))
    batch = Target("Chroma, its HTTP server", port, path, headers, (body(queries),), BATCH)
    return Peer(single, batch, f"ef_search {ef}", reached)


def _lance(port: int, data: Dataset) -> Peer:
    def recall(setting: tuple[int, int]) -> float:
        reply = httpx.post(
            f"http://127.0.0.1:{port}{path(setting)}", content=data.test.astype("<f4").tobytes(), timeout=300,
            trust_env=False,
        ).raise_for_status()  # fmt: skip
        table = pa.ipc.open_stream(reply.content).read_all()
        ids, numbers = table.column("id").to_numpy(), table.column("query_index").to_numpy()
        found = np.full((len(data.test), K), -1, np.int64)
        for number in range(len(data.test)):
            some = ids[numbers == number][:K]
            found[number, : len(some)] = some
        return data.recall(found, K)

    def path(setting: tuple[int, int]) -> str:
        return f"/search?k={K}&ef={setting[0]}&refine={setting[1]}"

    settings = [(ef, refine) for ef in EFS for refine in (0, 2) if ef >= K * refine]
    best, reached = settings[-1], 0.0
    for setting in settings:
        best, reached = setting, recall(setting)
        if reached >= TARGET:
            break
    queries = np.resize(data.test, (BATCH, data.test.shape[1])).astype("<f4")
    headers = {"Content-Type": FLOATS}
    name = "LanceDB behind FastAPI"
    single = Target(name, port, path(best), headers, tuple(q.astype("<f4").tobytes() for q in data.test))
    return Peer(
        single, Target(name, port, path(best), headers, (queries.tobytes(),), BATCH),
        f"IVF_HNSW_SQ, ef {best[0]}, refine {best[1]}", reached,
    )  # fmt: skip


def lowest(recall: Callable[[int], float]) -> tuple[int, float]:
    """The first width that reaches the recall asked for, and the recall."""
    reached = 0.0
    for ef in EFS:
        reached = recall(ef)
        if reached >= TARGET:
            return ef, reached
    return EFS[-1], reached
