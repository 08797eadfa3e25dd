"""``bench serve``: the endpoint beside bare Serve deployments, in-process search, and the endpoints of peers.

All servers stand at once and are asked in turns by clients in a process of their own, on the same cores; the best round
of each counts. ``serve_ways`` compares the ways into Ray Serve, ``serve_peers`` starts the peers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.media import ARROW, FLOATS, JSON
from pipelines.bench.collections import archived
from pipelines.bench.datasets import Dataset, cache_dir, load
from pipelines.bench.http_field import BATCH, CLIENTS, K, Seen, Target, asked, free_port, in_turns, server
from pipelines.bench.report import Table, median_seconds
from pipelines.bench.search import shortened
from pipelines.bench.serve_peers import TARGET, Peer, lowest, peers
from pipelines.bench.serve_ways import ways

QUICK_ROWS = 20_000


@dataclass(frozen=True)
class Plan:
    """How long things are measured."""

    seconds: float
    rounds: int


def run(quick: bool) -> Iterator[Table]:
    """All tables, each when it is measured; ``quick`` takes 20,000 rows and short rounds."""
    plan = Plan(1.0, 2) if quick else Plan(3.0, 3)
    data = shortened(load("gloss"), QUICK_ROWS if quick else 1 << 40, 1000)
    folder = cache_dir() / "serve" / f"{data.name}-{len(data.train)}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", data.train)
    url = archived(folder, folder / "train.npy", data.metric)
    build_indexes(url, ["hnsw"], actors=0, threads=2)
    engine = SearchEngine.open(url, threads=1)

    def reached(ef: int) -> float:  # ids are numbers of the source's rows, which the archive keeps in another order
        return data.recall(engine.search(data.test, K, "hnsw", ef=ef).ids.astype(np.int64), K)

    ef, recall = lowest(reached)
    with ExitStack() as stack:
        table, echoes = ways(plan.seconds, data.test[:1].astype("<f4").tobytes(), stack)
        yield table
        ours = _ours(url, stack)
        yield _single(engine, ours, echoes, data, ef, plan)
        yield _batches(engine, ours, data, ef, plan)
        others, notes = peers(folder, data, stack)
        yield _beside(ours, others, notes, data, ef, recall, plan)


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
    return Target(name, port, path, {"Content-Type": kind, "Accept": JSON if queries == 1 else ARROW}, bodies, queries)


def _single(
    engine: SearchEngine, port: int, echoes: dict[str, Target], data: Dataset, ef: int, plan: Plan
) -> Table:  # fmt: skip
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
    turns = iter(range(1 << 30))

    def search() -> None:
        engine.search(data.test[next(turns) % len(data.test)], K, "hnsw", ef=ef)

    inside = 1000 * median_seconds(search, 300)
    added = one["here"].p50 - one["echo, own"].p50 - inside
    words = {"direct": "echo, Serve's direct ingress", "own": "echo, own listener", "proxy": "echo, Serve's HTTP proxy"}
    return Table(
        f"single queries from {CLIENTS} clients: {len(data.train):,} x {data.train.shape[1]}, hnsw, ef {ef}, k {K}",
        ("served", "requests/s", "p50 / p99 ms", "p50 / p99 ms, 1 client", "of echo, proxy", "of echo, direct",
         "of echo, own", "not 200"),
        (*(row(name, target) for name, target in ours.items()), *(row(words[w], t) for w, t in echoes.items())),
        (_verdict("in the ingress, of the best echo that Serve offers", many["here"].rate / best, 0.9),
         _verdict("in a deployment, of the best echo that Serve offers", many["apart"].rate / best, 0.6),
         f"parsing, batching and merging add {added:.2f} ms to one client's query, beside its search in process "
         f"({inside:.2f} ms) and its way (the echo), target 2.00: {'reached' if added <= 2 else 'MISSED'}",
         "an echo gets the same float32 and gives them back; a search gives its answer as JSON",
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


def _beside(
    port: int, others: list[Peer], notes: tuple[str, ...], data: Dataset, ef: int, recall: float, plan: Plan
) -> Table:
    queries = np.resize(data.test, (BATCH, data.test.shape[1])).astype("<f4")
    bodies = tuple(query.astype("<f4").tobytes() for query in data.test)
    ours = Peer(
        _search(port, "hilbertflow", "here", bodies, FLOATS, ef),
        _search(port, "hilbertflow", "here", (queries.tobytes(),), FLOATS, ef, BATCH), f"hnsw, ef {ef}", recall,
    )  # fmt: skip
    everybody = [ours, *others]
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
        tuple(rows), (*_winners(everybody, single, batch), *notes),
    )  # fmt: skip


def _winners(everybody: list[Peer], single: dict[str, Seen], batch: dict[str, Seen]) -> tuple[str, ...]:
    """How we stand to each peer; one that did not reach the recall is compared all the same."""
    ours, *others = everybody
    lines = []
    for peer in others:
        ratios = [seen[ours.single.name].rate / seen[peer.single.name].rate for seen in (single, batch)]
        word = "faster" if min(ratios) > 1 else "NOT FASTER"
        lines.append(f"{word} than {peer.single.name}: {ratios[0]:.1f} x single, {ratios[1]:.1f} x in batches")
    return tuple(lines)


def _stream(queries: npt.NDArray[np.float32]) -> bytes:
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), queries.shape[1])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _verdict(what: str, ratio: float, target: float) -> str:
    return f"{what}: {ratio:.2f}, target {target:.2f}: {'reached' if ratio >= target else 'MISSED'}"
