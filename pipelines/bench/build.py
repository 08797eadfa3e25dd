"""``bench build``: a collection indexed by a pool of actors: what sharding costs, what a second worker brings, how much
memory a builder takes.

The rows are made: 384-d, in clusters whose members vary in a few directions only, as embeddings do; the queries are
others of the same clusters. They stream from a .npy file through the archive into the shards.
``HILBERTFLOW_BUILD_ROWS`` sets how many rows the last table takes (a million in full).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.artefact import Artefact, train
from cluster.build import build_indexes, build_name, open_collection
from cluster.build_pool import build_shards
from cluster.builder import shard_tasks
from cluster.engine import SearchEngine
from cluster.exact import ExactScan
from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind, Overrides
from cluster.index_store import indexes_of, load_build
from cluster.ivfpq import IvfPq
from cluster.query import Query
from cluster.results import recall
from pipelines import console
from pipelines.bench.datasets import cache_dir
from pipelines.bench.report import Table
from pipelines.recipe import load
from pipelines.run import Report, local_ray
from pipelines.run import run as run_recipe

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

DIM, CLUSTERS, DIRECTIONS, QUERIES, SEED = 384, 2000, 24, 500, 20260101
BLOCK = 16_384
SHARDS = (1, 2, 4, 8)
KINDS: tuple[IndexKind, ...] = (IvfPq(), Hnsw())
GROWN = 500 << 20  # what a builder may take beyond its shard


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` takes 20,000 rows in each."""
    small = 20_000 if quick else 100_000
    large = int(os.environ.get("HILBERTFLOW_BUILD_ROWS", 0)) or (20_000 if quick else 1_000_000)
    url, _ = _archived(small)
    queries = clustered(QUERIES, SEED + 1)
    yield _sharded(url, queries, _truth(small, queries))
    yield _workers(url, quick)
    yield _large(large)


def clustered(rows: int, seed: int) -> F32:
    """Rows of some clusters, unit length: (rows, 384) float32. A cluster has a centre and 24 directions of its own."""
    shape, random = np.random.default_rng(SEED), np.random.default_rng(seed)
    centres = shape.normal(size=(CLUSTERS, DIM)).astype(np.float32)
    axes = shape.normal(size=(CLUSTERS // 20, DIRECTIONS, DIM)).astype(np.float32)  # clusters share them by twenty
    of = random.integers(0, CLUSTERS, rows)
    values = centres[of] + 0.25 * random.normal(size=(rows, DIM)).astype(np.float32)
    along = random.normal(size=(rows, DIRECTIONS)).astype(np.float32)
    for group in np.unique(of // 20):
        mine = of // 20 == group
        values[mine] += 0.3 * along[mine] @ axes[group]
    unit: F32 = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def blocks(rows: int) -> Iterator[F32]:
    """All rows, block by block."""
    for at in range(0, rows, BLOCK):
        yield clustered(min(BLOCK, rows - at), SEED + 2 + at)


def _folder(rows: int) -> Path:
    return cache_dir() / "build" / f"{rows}"


def _archived(rows: int) -> tuple[str, Report]:
    """The collection of so many rows, made and archived if it is not there; and the run that saw to it."""
    folder = _folder(rows)
    folder.mkdir(parents=True, exist_ok=True)
    if not (source := folder / "rows.npy").exists():
        scratch = folder / "rows.part"
        out = np.lib.format.open_memmap(scratch, "w+", np.float32, (rows, DIM))
        for number, block in enumerate(blocks(rows)):
            out[number * BLOCK : number * BLOCK + len(block)] = block
        out.flush()
        del out
        scratch.rename(source)
    recipe = load("vectors", [f"source.path={source}", f"sink.path={folder / 'archives'}", "index=null"])
    report = run_recipe(recipe)
    return report.url, report


def _truth(rows: int, queries: F32, k: int = 10) -> I64:
    """The nearest rows, by their numbers in the source."""
    scan, at = ExactScan(queries, k, "ip"), 0
    for block in blocks(rows):
        scan.feed(block, np.arange(at, at + len(block)))
        at += len(block)
    return scan.best()[1]


def _found(url: str, kind: str, queries: F32, setting: Overrides, threads: int = 1) -> tuple[I64, float, int]:
    """Rows found, by their numbers in the source; seconds of the batch; rows compared."""
    engine = SearchEngine.open(url, threads=threads)
    query = Query(10, kind, None, setting)
    engine.answer(queries[:8], query)
    began = time.perf_counter()
    answer = engine.answer(queries, query)
    taken = time.perf_counter() - began
    return answer.ids.astype(np.int64), taken, int(answer.explain["rows_scanned"])


def _sharded(url: str, queries: F32, truth: I64) -> Table:
    """One setting, more and more shards."""
    rows: list[tuple[Any, ...]] = []
    worst, count = 0.0, 0
    for kind in KINDS:
        setting = Overrides(nprobe=24, refine=8) if kind.kind == "ivfpq" else Overrides(ef=48, refine=4)
        whole = 0.0
        for shards in SHARDS:
            began = time.perf_counter()
            build_indexes(url, [replace(kind, shards=shards)], actors=0, threads=2, device="cpu")
            seconds = time.perf_counter() - began
            found, taken, compared = _found(url, kind.kind, queries, setting)
            reached = recall(found, truth)
            whole = reached if shards == 1 else whole
            worst, count = max(worst, whole - reached), SearchEngine.open(url).collection.count
            rows.append(
                (kind.kind, shards, f"{reached:.4f}", f"{reached - whole:+.4f}", f"{compared / len(queries):,.0f}",
                 f"{len(queries) / taken:,.0f}", f"{seconds:.1f}")
            )  # fmt: skip
    said = "met" if worst <= 0.005 else "MISSED"
    return Table(
        f"recall@10 by number of shards, the same setting: {count:,} x {DIM}, clustered",
        ("tier", "shards", "recall@10", "to one shard", "rows compared a query", "queries/s, 1 thread", "build s"),
        tuple(rows), (f"wanted: within .005 of one shard; most lost {worst:.4f}: {said}",
                      "0.0 s: it was built by an earlier run"),
    )  # fmt: skip


def _workers(url: str, quick: bool) -> Table:
    """One worker and two over four shards, in turns; with the time that actors take to start."""
    collection = open_collection(url)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    kind = Hnsw(shards=4)
    artefact = train(collection, kind, 2)
    peaks: dict[int, list[int]] = {1: [], 2: []}
    largest = 0
    for number in range(1 if quick else 2):
        for workers in (1, 2):
            taken, peak, largest = _pooled(url, artefact, kind, workers, f"bench-{number}-{workers}")
            seconds[workers].append(taken)
            peaks[workers].append(peak)
    best = {workers: min(times) for workers, times in seconds.items()}
    rows = [
        (workers, f"{best[workers]:.1f}", f"{collection.count / best[workers]:,.0f}", f"{best[1] / best[workers]:.2f}",
         console.size(max(peaks[workers])), console.size(max(peaks[workers]) - largest))
        for workers in (1, 2)
    ]  # fmt: skip
    said = "met" if best[1] / best[2] >= 1.7 else "MISSED"
    grown = max(max(p) for p in peaks.values()) - largest
    return Table(
        f"workers of a build: hnsw, four shards of {collection.count // 4:,} rows ({console.size(largest)} each)",
        ("workers", "s", "rows/s", "to one", "largest builder", "beyond its shard"), tuple(rows),
        (f"wanted: 1.7 x with two: {said}; at most {console.size(GROWN)} beyond the shard: "
         f"{'met' if grown <= GROWN else 'MISSED'}",),
    )  # fmt: skip


def _pooled(url: str, artefact: Artefact, kind: IndexKind, workers: int, name: str) -> tuple[float, int, int]:
    """Seconds from the first actor's start to the last shard's end; peak bytes of a builder; of the largest shard."""
    import ray

    collection = open_collection(url)
    place = indexes_of(collection)
    asked: dict[str, Any] = {}

    def started(actor: Any) -> None:
        if (key := str(actor)) not in asked:  # not waited for: the next actor would start later than it does in a build
            asked[key] = actor.process.remote()

    with local_ray(None):
        work = [(artefact, task) for task in shard_tasks(name, collection.count, kind.shards)]
        peak, largest = 0, 0
        began = time.perf_counter()
        for _, stored in build_shards(url, work, workers, started):
            largest = max(largest, stored.bytes)
            up, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=0)
            peak = max([peak, *map(_peak, ray.get(up))])
        taken = time.perf_counter() - began
    shutil.rmtree(Path(place.url) / name, ignore_errors=True)
    return taken, peak, largest


def _peak(process: int) -> int:
    """Most bytes that a process of this machine was resident with."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _large(rows: int) -> Table:
    """Archive, build, search: seconds, memory, recall."""
    said: list[tuple[Any, ...]] = []
    began = time.perf_counter()
    url, report = _archived(rows)
    taken = time.perf_counter() - began
    peak = max(report.peak_memory.values(), default=0)
    said.append(("archive", f"{taken:.0f}", f"{rows / taken:,.0f}", console.size(peak) if peak else None, None, None))
    collection, queries = open_collection(url), clustered(QUERIES, SEED + 1)
    truth = _truth(rows, queries)
    for kind in KINDS:
        shards = replace(kind, shards=4, target_recall=0.95)
        began = time.perf_counter()
        built = build_indexes(url, [shards], actors=0, threads=2, device="cpu")
        taken = time.perf_counter() - began
        build = built.get(kind.kind) or load_build(indexes_of(collection), build_name(collection, shards))
        found, searched, _ = _found(url, kind.kind, queries, build.tuned)
        said.append(
            (f"{kind.kind}, 4 shards", f"{taken:.0f}", f"{rows / taken:,.0f}" if built else None,
             console.size(_peak(os.getpid())), f"{recall(found, truth):.4f}", f"{len(queries) / searched:,.0f}")
        )  # fmt: skip
    return Table(
        f"all of it: {rows:,} x {DIM} float32 ({console.size(4 * rows * DIM)}), clustered, on {os.cpu_count()} cores",
        ("step", "s", "rows/s", "most memory", "recall@10", "queries/s, 1 thread"), tuple(said),
        ("memory of a build is that of this process: one shard, a batch, and the sample that is trained on",
         "recall is that of fresh queries at settings that were tuned to .95"),
    )  # fmt: skip
