"""``bench soak``: the endpoint under load while rows change, indexes are swapped and shard actors are killed.

Clients ask at 70 % of the rate that was measured just before. Every answer is checked against the rows of the very
version that it says it is about: each id must exist, its score must be right, none may be missing unless the answer is
marked partial; answers of the exact tier must be the oracle's. What is counted as wrong is listed with its reason.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from cluster.build import build_indexes
from cluster.config import parse_config
from cluster.hnsw import Hnsw
from cluster.index_store import current_names, indexes_of, publish
from cluster.versions import open_version
from pipelines.bench.collections import archived
from pipelines.bench.datasets import load
from pipelines.bench.report import Table
from pipelines.bench.search import shortened

F32 = npt.NDArray[np.float32]
ROWS, CLIENTS, K, SHARE = 4000, 8, 10, 0.7
EXACT_SHARE = 0.01  # of the queries go to the exact tier
TOLERANCE = 0.02  # of a score: indexes keep float16


@dataclass(frozen=True)
class Schedule:
    """Seconds: of the whole, between swaps of the index, between kills, between changes of rows."""

    whole: float
    swap: float
    kill: float
    change: float = 0.5


@dataclass
class Tally:
    """What was seen."""

    rate_asked: float = 0.0
    answers: int = 0
    partial: int = 0
    busy: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    recalls: list[float] = field(default_factory=list)
    exact: int = 0
    changes: int = 0
    swaps: int = 0
    kills: int = 0
    milliseconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Memory of the last quarter over that of the second."""
        quarter = max(1, len(self.memory) // 4)
        return float(np.median(self.memory[-quarter:]) / np.median(self.memory[quarter : 2 * quarter]))


class Oracle:
    """Vectors by id at every version of the rows."""

    def __init__(self, ids: list[str], vectors: F32) -> None:
        self.ids, self.vectors = np.array(ids, object), vectors
        self._changes: list[dict[str, F32 | None]] = []
        self._known: dict[int, tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]] = {}

    def changed(self, version: int, rows: dict[str, F32 | None]) -> None:
        """A change made this version; None deletes."""
        assert version == len(self._changes) + 1, "somebody else wrote"
        self._changes.append(rows)

    @property
    def version(self) -> int:
        """The newest that is known."""
        return len(self._changes)

    def at(self, version: int) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
        """Ids and vectors; those of the last few versions are kept."""
        if version not in self._known:
            if len(self._known) > 8:
                self._known.pop(min(self._known))
            self._known[version] = self._made(version)
        return self._known[version]

    def _made(self, version: int) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
        latest: dict[str, F32 | None] = {}
        for rows in self._changes[:version]:
            latest |= rows
        keep = np.array([name not in latest for name in self.ids])
        late = {name: vector for name, vector in latest.items() if vector is not None}
        names = np.concatenate([self.ids[keep], np.array(list(late), object)])
        rows_ = [self.vectors[keep], *([np.stack(list(late.values()))] if late else [])]
        return names, np.concatenate(rows_).astype(np.float64)

    def fault(self, query: F32, hit: dict[str, Any], exact: bool) -> tuple[str, float]:
        """What is wrong with an answer (inner product), and its recall."""
        names, vectors = self.at(int(hit["explain"]["version"]))
        scores = vectors @ query.astype(np.float64)
        best = np.argsort(-scores, kind="stable")[:K]
        truth = dict(zip(names.tolist(), scores.tolist(), strict=True))
        found = hit["ids"]
        if len(found) < K and not hit["partial"]:
            return "short and not partial", 0.0
        if any(name not in truth for name in found):
            return "a row that does not exist at its version", 0.0
        if any(abs(truth[name] - score) > TOLERANCE for name, score in zip(found, hit["scores"], strict=True)):
            return "a wrong score", 0.0
        share = len(set(found) & set(names[best].tolist())) / K
        if exact and not hit["partial"] and share < 1:
            return "the exact tier misses a row", share
        return "", share


def run(quick: bool) -> list[Table]:
    """10 minutes; ``quick`` takes half a minute with a swap every 6 seconds and a kill every 10."""
    data = shortened(load("gloss"), ROWS, 500)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/train.npy", data.train)
        url = archived(Path(folder), Path(folder) / "train.npy", data.metric)
        schedule = Schedule(30, 6, 10) if quick else Schedule(600, 60, 120)
        tally = soak(url, data.train, data.test, schedule)
    answers = max(1, tally.answers)
    spent = np.sort(tally.milliseconds)
    rows = (
        ("seconds", f"{schedule.whole:.0f}"),
        (f"requests/s asked for ({100 * SHARE:.0f} % of the maximum)", f"{tally.rate_asked:.0f}"),
        ("answers checked", f"{tally.answers:,}"), ("of them by the exact tier", f"{tally.exact:,}"),
        ("wrong answers", sum(tally.wrong.values())), ("why", ", ".join(f"{n} {w}" for w, n in tally.wrong.items())),
        ("partial answers, marked", tally.partial), ("503 with Retry-After", tally.busy),
        (f"recall@{K}, mean", f"{np.mean(tally.recalls):.4f}"),
        ("p50 / p99 ms", f"{spent[answers // 2]:.1f} / {spent[int(0.99 * answers)]:.1f}"),
        ("changes of rows", tally.changes), ("index swaps", tally.swaps), ("shard actors killed", tally.kills),
        ("memory, last quarter over second", f"{tally.growth:.3f}"),
    )  # fmt: skip
    verdict = "no wrong answer" if not tally.wrong else "WRONG ANSWERS"
    flat = "memory is flat" if tally.growth < 1.1 else "MEMORY GROWS"
    return [Table(f"soak: {ROWS:,} x {data.train.shape[1]}, hnsw", ("what", "figure"), rows, (verdict, flat))]


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
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits) as http:
        for seconds in (3.0, 10.0):  # the first is not counted: connections, batches and expectations form
            began = time.perf_counter()
            counts = await asyncio.gather(*(_closed(http, queries, number, seconds) for number in range(CLIENTS)))
            tally.rate_asked = SHARE * sum(counts) / (time.perf_counter() - began)
        end = time.perf_counter() + schedule.whole
        collection = open_version(url).collection
        turns = iter(range(1 << 30))

        async def swap() -> None:
            publish(indexes_of(collection), {"hnsw": builds[next(turns) % 2]})
            tally.swaps += 1

        async def kill() -> None:
            await asyncio.to_thread(_kill_one)
            tally.kills += 1

        async def measure() -> None:
            tally.memory.append(await asyncio.to_thread(memory_of_children))

        await asyncio.gather(
            _paced(http, queries, end, oracle, tally),
            _every(schedule.change, end, lambda: _change(http, oracle, tally)),
            _every(schedule.swap, end, swap), _every(schedule.kill, end, kill), _every(1.0, end, measure),
        )  # fmt: skip


async def _closed(http: httpx.AsyncClient, queries: F32, number: int, seconds: float) -> int:
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        await _ask(http, queries[(number + count * CLIENTS) % len(queries)], "hnsw")
        count += 1
    return count


async def _ask(http: httpx.AsyncClient, query: F32, tier: str) -> httpx.Response:
    body = {"vectors": [query.tolist()], "k": K, "tier": tier, "explain": True, "metadata": False}
    return await http.post("/v1/collections/rows/search", json=body)


async def _paced(http: httpx.AsyncClient, queries: F32, end: float, oracle: Oracle, tally: Tally) -> None:
    """Requests at the rate, whether or not earlier ones are answered (at most 256 at once), each answer checked."""
    chance, gate = random.Random(1), asyncio.Semaphore(256)
    checks: asyncio.Queue[tuple[F32, dict[str, Any], bool]] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def one(query: F32, exact: bool) -> None:
        async with gate:
            began = time.perf_counter()
            try:
                reply = await _ask(http, query, "exact" if exact else "hnsw")
            except httpx.HTTPError as error:
                tally.wrong[f"no answer ({type(error).__name__})"] += 1
                return
            if reply.status_code == 503 and "retry-after" in reply.headers:
                tally.busy += 1
            elif reply.status_code != 200:
                tally.wrong[f"status {reply.status_code}"] += 1
            else:
                tally.milliseconds.append(1000 * (time.perf_counter() - began))
                tally.answers += 1
                checks.put_nowait((query, reply.json()["results"][0], exact))

    async def check() -> None:
        while True:
            query, hit, exact = await checks.get()
            while int(hit["explain"]["version"]) > oracle.version:  # the change's own answer is still on its way
                await asyncio.sleep(0.01)
            why, share = await asyncio.to_thread(oracle.fault, query, hit, exact)
            tally.partial += bool(hit["partial"])
            tally.exact += exact
            tally.recalls += [] if hit["partial"] else [share]
            if why:
                tally.wrong[why] += 1
            checks.task_done()

    checker = asyncio.create_task(check())
    began, count = time.perf_counter(), 0
    while time.perf_counter() < end:
        task = asyncio.create_task(one(queries[count % len(queries)], chance.random() < EXACT_SHARE))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        count += 1
        await asyncio.sleep(max(0.0, began + count / max(1.0, tally.rate_asked) - time.perf_counter()))
    await asyncio.gather(*tasks)
    await checks.join()
    checker.cancel()


async def _change(http: httpx.AsyncClient, oracle: Oracle, tally: Tally) -> None:
    """Put in copies of four rows, or delete two, so that answers change."""
    chance = random.Random(tally.changes)
    path, headers = "/v1/collections/rows/rows", {"Idempotency-Key": f"change-{tally.changes}"}
    names, vectors = await asyncio.to_thread(oracle.at, oracle.version)
    if tally.changes % 3 == 2:
        gone = [str(names[chance.randrange(len(names))]) for _ in range(2)]
        rows: dict[str, Any] = dict.fromkeys(gone)
        request = ("DELETE", {"ids": list(rows)})
    else:
        picked = [vectors[chance.randrange(len(vectors))] for _ in range(4)]
        rows = {f"new-{chance.randrange(200)}": vector.astype(np.float32) for vector in picked}
        request = ("POST", {"ids": list(rows), "vectors": [v.tolist() for v in rows.values() if v is not None]})
    for _ in range(20):  # the same key: sent again it changes nothing
        reply = await http.request(request[0], path, json=request[1], headers=headers)
        if reply.status_code == 200:
            # Known to the checker before any search that is asked from here on.
            oracle.changed(int(reply.json()["version"]), rows)
            tally.changes += 1
            return
        if reply.status_code != 503:
            tally.wrong[f"a change: status {reply.status_code}"] += 1
            return
        await asyncio.sleep(0.2)


async def _every(seconds: float, end: float, act: Callable[[], Awaitable[None]]) -> None:
    due = time.perf_counter() + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await act()
        due += seconds


def _kill_one() -> None:
    import ray

    actors = [a for a in ray.util.list_named_actors(all_namespaces=True) if "shards-rows-" in a["name"]]
    if actors:
        chosen = random.choice(actors)
        ray.kill(ray.get_actor(chosen["name"], namespace=chosen["namespace"]))


def memory_of_children() -> int:
    """Resident bytes of the Serve replicas among this process's descendants, shared pages counted once a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    ours, total = {os.getpid()}, 0
    for _ in range(6):
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    for pid in ours:
        try:
            if b"ray::ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes():
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total
