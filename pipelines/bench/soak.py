"""``bench soak``: the endpoint under load while rows change, indexes are swapped and shard actors are killed.

Clients ask at 70 % of the rate that was measured just before, of answers that were checked as well. Every answer is
checked against the rows of the very version that it says it is about: each id must exist, its score must be right, none
may be missing unless the answer is marked partial; answers of the exact tier must be the oracle's. What is counted as
wrong is listed with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from cluster.build import build_indexes
from cluster.config import parse_config
from cluster.hnsw import Hnsw
from cluster.index_store import current_names, indexes_of, publish
from cluster.versions import open_version
from pipelines.bench.collections import archived
from pipelines.bench.datasets import load
from pipelines.bench.processes import below
from pipelines.bench.report import Table
from pipelines.bench.search import shortened
from pipelines.bench.soak_load import BACKLOG, LATE_S, POOLS, Load, Tally
from pipelines.bench.soak_oracle import F32, K, Oracle

ROWS, SHARE = 4000, 0.7
FLAT = 1.1  # memory of the last quarter over that of the second


@dataclass(frozen=True)
class Schedule:
    """Seconds: of the whole, between swaps of the index, between kills, between changes of rows."""

    whole: float
    swap: float
    kill: float
    change: float = 0.5


def run(quick: bool) -> list[Table]:
    """10 minutes; ``quick`` takes half a minute with a swap every 6 seconds and a kill every 10."""
    data = shortened(load("gloss"), ROWS, 500)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/train.npy", data.train)
        url = archived(Path(folder), Path(folder) / "train.npy", data.metric)
        schedule = Schedule(30, 6, 10) if quick else Schedule(600, 60, 120)
        tally = soak(url, data.train, data.test, schedule)
    whole, ingress = _quarters(tally.memory), _quarters(tally.ingress)
    rows = (
        ("seconds", f"{schedule.whole:.0f}"),
        (f"requests/s asked for ({100 * SHARE:.0f} % of the maximum)", f"{tally.rate_asked:.0f}"),
        ("requests due / sent", f"{tally.due:,} / {tally.sent:,}"),
        (f"sent more than {1000 * LATE_S:.0f} ms late (at most {BACKLOG} at once)", f"{tally.late:,}"),
        ("answers checked", f"{len(tally.recalls) + tally.partial:,}"),
        ("of them by the exact tier", f"{tally.exact:,}"),
        ("wrong answers", sum(tally.wrong.values())), ("why", ", ".join(f"{n} {w}" for w, n in tally.wrong.items())),
        ("partial answers, marked", tally.partial), ("503 with Retry-After", tally.busy),
        (f"recall@{K}, mean", f"{np.mean(tally.recalls):.4f}"),
        ("p50 / p99 ms, from when it was due", "{:.1f} / {:.1f}".format(*np.percentile(tally.milliseconds, (50, 99)))),
        ("changes of rows", tally.changes), ("index swaps", tally.swaps), ("shard actors killed", tally.kills),
        ("memory of all replicas, second / last quarter, MB", f"{whole[0]:.0f} / {whole[1]:.0f}"),
        ("of the ingress, which lives throughout", f"{ingress[0]:.0f} / {ingress[1]:.0f}"),
    )  # fmt: skip
    growth = max(last / second for second, last in (whole, ingress))
    notes = (
        "no wrong answer" if not tally.wrong else "WRONG ANSWERS",
        f"memory {'is flat' if growth < FLAT else 'GROWS'}: last quarter over second {growth:.3f}",
    )
    return [Table(f"soak: {ROWS:,} x {data.train.shape[1]}, hnsw", ("what", "figure"), rows, notes)]


def soak(url: str, train: F32, queries: F32, schedule: Schedule, ids: list[str] | None = None) -> Tally:
    """Serve the collection at `url` (two shard groups of two replicas) and do all of it; inner product."""
    from cluster import running

    build_indexes(url, [Hnsw(shards=2)], actors=0, threads=2)
    first = current_names(indexes_of(open_version(url).collection))["hnsw"]
    build_indexes(url, [Hnsw(shards=2, links=12)], actors=0, threads=2)
    second = current_names(indexes_of(open_version(url).collection))["hnsw"]
    config = {
        "collections": [{"name": "rows", "url": url, "placement": "shards", "groups": 2, "replicas": 2}],
        "port": 0, "refresh_seconds": 0.5,
    }  # fmt: skip
    oracle, tally = Oracle(ids or [str(i) for i in range(len(train))], train), Tally()
    service = running.start(parse_config(config))
    try:
        asyncio.run(_all(service.url, url, queries, schedule, oracle, tally, (first, second)))
    finally:
        service.stop()
    return tally


async def _all(
    address: str, url: str, queries: F32, schedule: Schedule, oracle: Oracle, tally: Tally, builds: tuple[str, str]
) -> None:
    limits = httpx.Limits(max_connections=BACKLOG // POOLS)
    collection = open_version(url).collection
    turns = iter(range(1 << 30))

    async def swap() -> None:
        publish(indexes_of(collection), {"hnsw": builds[next(turns) % 2]})
        tally.swaps += 1

    async def kill() -> None:
        tally.kills += await asyncio.to_thread(_kill_one)

    async def measure() -> None:
        tally.memory.append(await asyncio.to_thread(memory_of_children))
        tally.ingress.append(await asyncio.to_thread(memory_of_children, ":ingress"))

    async with contextlib.AsyncExitStack() as stack:
        http = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits)
            )
            for _ in range(POOLS)
        ]
        before = Load(http, queries, oracle, Tally())
        with before.checking():
            for seconds in (3.0, 10.0):  # the first is not counted: connections, batches and expectations form
                tally.rate_asked = SHARE * await before.closed(seconds)
        tally.wrong += before.tally.wrong
        end, load_ = time.perf_counter() + schedule.whole, Load(http, queries, oracle, tally)
        with load_.checking():
            await asyncio.gather(
                load_.paced(tally.rate_asked, end), _every(schedule.change, end, load_.change),
                _every(schedule.swap, end, swap), _every(schedule.kill, end, kill), _every(1.0, end, measure),
            )  # fmt: skip


async def _every(seconds: float, end: float, act: Callable[[], Awaitable[None]]) -> None:
    due = time.perf_counter() + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await act()
        due = max(due + seconds, time.perf_counter())  # what took too long is not made up for


def _kill_one() -> bool:
    """End one replica of a shard group as a fault would; whether there was one."""
    import ray

    actors = [a for a in ray.util.list_named_actors(all_namespaces=True) if "shards-rows-" in a["name"]]
    if not actors:
        return False
    chosen = random.choice(actors)
    try:
        ray.kill(ray.get_actor(chosen["name"], namespace=chosen["namespace"]))
    except ValueError:  # it went meanwhile
        return False
    return True


def _quarters(memory: Sequence[int]) -> tuple[float, float]:
    """Medians of the second and the last quarter, MB."""
    quarter = max(1, len(memory) // 4)
    return float(np.median(memory[quarter : 2 * quarter])) / 1e6, float(np.median(memory[-quarter:])) / 1e6


def memory_of_children(named: str = "") -> int:
    """Resident bytes of the Serve replicas among this process's descendants, shared pages counted once a process.

    named: only of those whose name holds it.
    """
    total = 0
    for pid, name in below(os.getpid()).items():
        if "ray::ServeReplica" in name and named in name:
            with contextlib.suppress(OSError, IndexError):  # gone meanwhile
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total
