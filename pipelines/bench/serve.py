"""``bench serve``: the endpoint beside bare Serve deployments, in-process search, and the endpoints of peers.

All servers stand at once and are asked in turns by clients in a process of their own, on the same cores; the best round
of each counts. Chroma and LanceDB are found in this Python, or in the one that ``HILBERTFLOW_PEERS`` names (their pins
and ours do not always agree): ``python -m venv peers && peers/bin/pip install chromadb lancedb fastapi uvicorn``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.wire import ARROW, FLOATS, JSON
from operators.errors import HilbertflowError
from pipelines import console
from pipelines.bench.collections import archived
from pipelines.bench.datasets import Dataset, cache_dir, load
from pipelines.bench.http_field import HERE, Seen, Target, asked, free_port, in_turns, server
from pipelines.bench.report import Table, median_seconds
from pipelines.bench.search import shortened

PEERS = "HILBERTFLOW_PEERS"
QUICK_ROWS, BATCH, CLIENTS, K = 20_000, 1024, 8, 10
TARGET = 0.95
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass(frozen=True)
class Plan:
    """How long things are measured."""

    seconds: float
    rounds: int


def run(quick: bool) -> list[Table]:
    """All tables; ``quick`` takes 20,000 rows and short rounds."""
    plan = Plan(1.0, 2) if quick else Plan(4.0, 4)
    data = shortened(load("gloss"), QUICK_ROWS if quick else 1 << 40, 1000)
    folder = cache_dir() / "search" / f"{data.name}-{len(data.train)}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", data.train)
    url = archived(folder, folder / "train.npy", data.metric)
    build_indexes(url, ["hnsw"], actors=0, threads=2)
    engine = SearchEngine.open(url, threads=1)
    ef, recall = _lowest(lambda ef: data.recall(engine.search(data.test, K, "hnsw", ef=ef).rows, K))
    tables = [_ways(plan)]
    with ExitStack() as stack:
        ours = _ours(url, stack)
        echoes = {
            way: _echo(way, stack, data.test[:1].astype("<f4").tobytes()) for way in ("direct", "own", "proxy")
        }  # fmt: skip
        tables.append(_single(ours, echoes, data, ef, plan))
        tables.append(_batches(engine, ours, data, ef, plan))
        peers, notes = _peers(folder, data, stack)
        tables.append(_beside(ours, peers, notes, data, ef, recall, plan))
    return tables


def _ways(plan: Plan) -> Table:
    """A bare deployment that echoes 1,536 bytes, behind every way in that Ray Serve offers and behind ours."""
    names = {
        "proxy": "Serve's HTTP proxy (its default)", "haproxy": "HAProxy", "grpc": "Serve's gRPC proxy",
        "direct": "Serve's direct ingress", "own": "the replica's own listener (our default)",
    }  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for way, name in names.items():
        with ExitStack() as stack:
            try:
                target = _echo(way, stack, b"x" * 1536)
            except HilbertflowError as error:
                rows.append((name, None, None, None, None, error.what))
                continue
            seen = [_echoed(way, target, clients, plan.seconds) for clients in (1, CLIENTS)]
        rows.append((name, *(f"{s.rate:,.0f}" for s in seen), *(f"{s.p50:.2f} / {s.p99:.2f}" for s in seen), ""))
    columns = (
        "way in",
        "requests/s, 1 client",
        f"{CLIENTS} clients",
        "p50 / p99 ms, 1",
        f"p50 / p99 ms, {CLIENTS}",
        "",
    )
    return Table("ways into Ray Serve: a bare deployment that echoes 1,536 bytes", columns, tuple(rows))


def _echoed(way: str, target: Target, clients: int, seconds: float) -> Seen:
    if way != "grpc":
        return asked(target, clients, seconds)
    command = [sys.executable, str(HERE / "grpc_load.py"), str(target.port), str(clients), str(seconds), "1536"]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Seen(seen["rate"], seen["p50"], seen["p99"], 0)


def _echo(way: str, stack: ExitStack, body: bytes) -> Target:
    port = free_port(2)
    stack.enter_context(server([sys.executable, str(HERE / "echo_server.py"), way, str(port)], "ready"))
    return Target(f"echo, {way}", port, "/", {"Content-Type": FLOATS}, (body,))


def _ours(url: str, stack: ExitStack) -> int:
    """Start `hilbertflow serve` with the collection twice; its port."""
    port = free_port()
    config = {
        "collections": [
            {"name": "here", "url": url, "placement": "ingress"},
            {"name": "apart", "url": url, "placement": "shards", "groups": 1},
        ],
        "port": port,
    }
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    stack.enter_context(server([sys.executable, "-m", "pipelines.cli", "serve", str(file)], "serving on"))
    return port


def _search(
    port: int, name: str, where: str, bodies: tuple[bytes, ...], kind: str, ef: int, queries: int = 1
) -> Target:
    path = f"/v1/collections/{where}/search?k={K}&tier=hnsw&ef={ef}&metadata=false"
    return Target(name, port, path, {"Content-Type": kind, "Accept": ARROW}, bodies, queries)


def _single(port: int, echoes: dict[str, Target], data: Dataset, ef: int, plan: Plan) -> Table:
    bodies = tuple(query.astype("<f4").tobytes() for query in data.test)
    ours = {
        "shard in the ingress replica": _search(port, "here", "here", bodies, FLOATS, ef),
        "shard in a deployment of its own": _search(port, "apart", "apart", bodies, FLOATS, ef),
    }
    targets = [*ours.values(), *echoes.values()]
    one, many = in_turns(targets, 1, plan.seconds, plan.rounds), in_turns(targets, CLIENTS, plan.seconds, plan.rounds)

    def row(name: str, target: Target) -> tuple[Any, ...]:
        seen, alone = many[target.name], one[target.name]
        times = (f"{some.p50:.2f} / {some.p99:.2f}" for some in (seen, alone))
        ratios = (f"{seen.rate / many[echoes[way].name].rate:.2f}" for way in ("proxy", "direct", "own"))
        return name, f"{seen.rate:,.0f}", *times, *ratios, seen.bad

    best = max(many["echo, direct"].rate, many["echo, proxy"].rate)
    words = {"direct": "echo, Serve's direct ingress", "own": "echo, own listener", "proxy": "echo, Serve's HTTP proxy"}
    return Table(
        f"single queries from {CLIENTS} clients: {len(data.train):,} x {data.train.shape[1]}, hnsw, ef {ef}, k {K}",
        ("served", "requests/s", "p50 / p99 ms", "p50 / p99 ms, 1 client", "of echo, proxy", "of echo, direct",
         "of echo, own", "not 200"),
        (*(row(name, target) for name, target in ours.items()), *(row(words[w], t) for w, t in echoes.items())),
        (_verdict("in the ingress, of the best echo that Serve offers", many["here"].rate / best, 0.9),
         _verdict("in a deployment, of the best echo that Serve offers", many["apart"].rate / best, 0.6),
         "clients and servers share the cores: a search takes processor time that an echo does not"),
    )  # fmt: skip


def _batches(engine: SearchEngine, port: int, data: Dataset, ef: int, plan: Plan) -> Table:
    queries = np.resize(data.test, (BATCH, data.test.shape[1])).astype("<f4")
    forms = {"float32": (FLOATS, queries.tobytes()), "Arrow IPC": (ARROW, _stream(queries))}
    inside = 0.0
    best: dict[str, Seen] = {}
    targets = [
        _search(port, f"{form}, {where}", where, (body,), kind, ef, BATCH)
        for form, (kind, body) in forms.items()
        for where in ("here", "apart")
    ]
    for _ in range(plan.rounds):
        taken = median_seconds(lambda: engine.search(queries, K, "hnsw", ef=ef), 3 if plan.seconds < 2 else 9)
        inside = max(inside, BATCH / taken)
        for target in targets:
            seen = asked(target, 2, max(2.0, plan.seconds))
            if target.name not in best or seen.rate > best[target.name].rate:
                best[target.name] = seen
    rows: list[tuple[Any, ...]] = [("in this process, no HTTP", f"{inside:,.0f}", "1.00", "", 0)]
    for target in targets:
        seen = best[target.name]
        ratio = f"{BATCH * seen.rate / inside:.2f}"
        rows.append((target.name, f"{BATCH * seen.rate:,.0f}", ratio, f"{seen.p50:.0f} / {seen.p99:.0f}", seen.bad))
    worst = min(BATCH * best[f"{form}, here"].rate for form in forms) / inside
    return Table(
        f"batches of {BATCH:,} from 2 clients, one search thread, ef {ef}",
        ("form, place", "queries/s", "of in-process", "p50 / p99 ms", "not 200"), tuple(rows),
        (_verdict("in the ingress, of in-process", worst, 0.8), "answers are Arrow IPC"),
    )  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A peer's endpoint at the setting that reaches the recall."""

    single: Target
    batch: Target
    setting: str
    recall: float


def _beside(
    port: int, peers: list[Peer], notes: tuple[str, ...], data: Dataset, ef: int, recall: float, plan: Plan
) -> Table:
    queries = np.resize(data.test, (BATCH, data.test.shape[1])).astype("<f4")
    bodies = tuple(query.astype("<f4").tobytes() for query in data.test)
    ours = Peer(
        _search(port, "hilbertflow", "here", bodies, FLOATS, ef),
        _search(port, "hilbertflow", "here", (queries.tobytes(),), FLOATS, ef, BATCH), f"hnsw, ef {ef}", recall,
    )  # fmt: skip
    everybody = [ours, *peers]
    single = in_turns([peer.single for peer in everybody], CLIENTS, plan.seconds, plan.rounds)
    batch = in_turns([peer.batch for peer in everybody], 2, max(2.0, plan.seconds), plan.rounds)
    rows = []
    for peer in everybody:
        one, many = single[peer.single.name], batch[peer.batch.name]
        rows.append(
            (peer.single.name, peer.setting, f"{peer.recall:.3f}", f"{one.rate:,.0f}", f"{one.p50:.2f} / {one.p99:.2f}",
             f"{peer.batch.queries * many.rate:,.0f}", one.bad + many.bad)
        )  # fmt: skip
    return Table(
        f"endpoints at recall@{K} ≥ {TARGET}: {len(data.train):,} x {data.train.shape[1]}",
        ("endpoint", "setting", "recall", f"single queries/s, {CLIENTS} clients", "p50 / p99 ms",
         f"queries/s in batches of {BATCH:,}", "not 200"),
        tuple(rows), notes,
    )  # fmt: skip


def _peers(folder: Path, data: Dataset, stack: ExitStack) -> tuple[list[Peer], tuple[str, ...]]:
    python = os.environ.get(PEERS, sys.executable)
    found, notes = [], []
    for name, module in (("chroma", "chromadb"), ("lance", "lancedb")):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
            notes.append(f"not installed: {module} ({PEERS} can name a Python that has it)")
            continue
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        port = free_port()
        console.say(f"filling {name}")
        command = [
            python,
            str(HERE / "peer_servers.py"),
            name,
            str(folder / "train.npy"),
            data.metric,
            scratch,
            str(port),
        ]
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
                           trust_env=False)  # fmt: skip
        return data.recall(np.array([[int(name) for name in some] for some in reply.json()["ids"]]), K)

    headers = {"Content-Type": JSON}
    ef, reached = _lowest(recall)
    queries = np.resize(data.test, (BATCH, data.test.shape[1]))
    single = Target("Chroma, its HTTP server", port, path, headers, tuple(body(q[None]) for q in data.test))
    batch = Target("Chroma, its HTTP server", port, path, headers, (body(queries),), BATCH)
    return Peer(single, batch, f"ef_search {ef}", reached)


def _lance(port: int, data: Dataset) -> Peer:
    def recall(setting: tuple[int, int]) -> float:
        reply = httpx.post(
            f"http://127.0.0.1:{port}{path(setting)}", content=data.test.astype("<f4").tobytes(), timeout=300,
            trust_env=False,
        )  # fmt: skip
        table = pa.ipc.open_stream(reply.content).read_all()
        ids, numbers = table.column("id").to_numpy(), table.column("query_index").to_numpy()
        found = np.full((len(data.test), K), -1, np.int64)
        for number in range(len(data.test)):
            some = ids[numbers == number][:K]
            found[number, : len(some)] = some
        return data.recall(found, K)

    def path(setting: tuple[int, int]) -> str:
        return f"/search?k={K}&ef={setting[0]}&refine={setting[1]}"

    settings = [(ef, refine) for ef in EFS for refine in (0, 2)]
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


def _lowest(recall: Callable[[int], float]) -> tuple[int, float]:
    """The first width that reaches the recall asked for, and the recall."""
    reached = 0.0
    for ef in EFS:
        reached = recall(ef)
        if reached >= TARGET:
            return ef, reached
    return EFS[-1], reached


def _stream(queries: npt.NDArray[np.float32]) -> bytes:
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), queries.shape[1])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _verdict(what: str, ratio: float, target: float) -> str:
    return f"{what}: {ratio:.2f}, target {target:.2f}: {'reached' if ratio >= target else 'MISSED'}"
