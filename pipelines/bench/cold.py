"""``bench cold``: search of a collection where it lies, by bytes, requests and latency, beside LanceDB.

Everything is counted the same way for all: on S3 by the server (bodies and requests of a bucket each), on disk by the
kernel (bytes that the process's reads returned). Opening is not counted; caches are as each system has them by default.
Recall is set recall@10 against the exact scan, on held-out queries.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.chunk_cache import CACHE_BYTES
from cluster.cold import Cold
from cluster.cold_plan import usual_nprobe
from cluster.engine import SearchEngine
from cluster.index_kind import Overrides
from operators import lists
from pipelines.bench import lance
from pipelines.bench.collections import archived
from pipelines.bench.datasets import Dataset, cache_dir, exact_neighbors, load
from pipelines.bench.report import Table
from pipelines.bench.s3_server import Sent, free_ports, server
from storage.collection import CollectionArchive

TARGET = 0.95
KB_TARGET = 250
QUICK_ROWS, QUERIES = 10_000, 200
Setting = dict[str, int]
Ask = Callable[[npt.NDArray[np.float32], Setting], npt.NDArray[Any]]
GAPS = (0, 1024, 4096, 16_384)
OURS = {"ours": CACHE_BYTES, "bare": 0}
"""Bytes of chunks that are kept between queries, by what stands beside LanceDB."""


@dataclass(frozen=True)
class Point:
    """One system at one setting: recall@10, median seconds, bytes and requests a query (not seen on disk)."""

    name: str
    setting: Setting
    recall: float
    seconds: float
    bytes: float
    requests: float | None = None


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` takes 10,000 rows and 100 queries."""
    data = _data(quick)
    home = cache_dir() / "cold" / f"{data.name}-{len(data.train)}"
    home.mkdir(parents=True, exist_ok=True)
    np.save(home / "train.npy", data.train)
    url = archived(home, home / "train.npy", data.metric)
    engine = SearchEngine.open(url, cache=0)  # what a query reads that nobody has asked before
    ladder = _ladder(engine.collection, quick)
    curve = [_read(engine, data, setting) for setting in ladder]
    yield _curve(data, engine.collection, curve)
    best = min((p for p in curve if p[0].recall >= TARGET), key=lambda p: p[0].bytes, default=curve[-1])[0]
    yield _orders(engine.collection, data, best.setting)
    peers = lance.built(home / "lance", data.train, data.metric, quick) if lance.available() else {}
    yield from _beside(data, url, best.setting, home / "lance", peers, quick)


def _data(quick: bool) -> Dataset:
    whole = load("gloss" if not quick or (cache_dir() / "gloss" / "about.json").exists() else "fashion")
    count = 100 if quick else QUERIES
    if not quick:
        return Dataset(whole.name, whole.metric, whole.train, whole.test[:count], whole.neighbors[:count])
    rows = np.sort(np.random.default_rng(0).choice(len(whole.train), QUICK_ROWS, replace=False))
    train = np.ascontiguousarray(whole.train[rows])
    near = exact_neighbors(train, whole.test[:count], whole.metric)
    return Dataset(whole.name, whole.metric, train, whole.test[:count], near)


def _ladder(collection: CollectionArchive, quick: bool) -> list[Setting]:
    """Every level at one number of lists, then from cheap to thorough."""
    usual, depth = usual_nprobe(len(collection.borders) - 1), collection.code.depth
    shares = (0.5, 1.0, 2.0) if quick else (0.2, 0.4, 0.7, 0.85, 1.0, 1.2, 2.0)
    probes = sorted({max(1, round(usual * share)) for share in shares})
    refines = (8,) if quick else (5, 8, 12)
    others = [level for level in range(depth + 1) if level != depth - 1]
    coarse = [{"nprobe": probes[len(probes) // 2], "refine": 8, "level": level} for level in others]
    return coarse + [{"nprobe": n, "refine": r, "level": depth - 1} for n in probes for r in refines]


def _read(engine: SearchEngine, data: Dataset, setting: Setting) -> tuple[Point, dict[str, Any]]:
    """A setting of the cold tier, each query alone, with what `explain` says of the last."""
    hits, taken, read, requests, told = 0, [], 0, 0, {}
    for query, truth in zip(data.test, data.neighbors, strict=True):
        began = time.perf_counter()
        found = engine.search(query, 10, "cold", None, **setting)
        taken.append(time.perf_counter() - began)
        hits += len(set(found.ids[0].tolist()) & set(map(str, truth[:10])))
        told = found.explain
        read, requests = read + told["bytes_read"], requests + told["requests"]
    n = len(data.test)
    return Point("hilbertflow", setting, hits / (10 * n), float(np.median(taken)), read / n, requests / n), told


def _curve(data: Dataset, collection: CollectionArchive, curve: Sequence[tuple[Point, dict[str, Any]]]) -> Table:
    rows = sorted(
        ((t["level"], p.setting["nprobe"], p.setting["refine"], f"{p.recall:.3f}", t["rounds"], f"{p.requests:.0f}",
          f"{p.bytes / 1000:.0f}") for p, t in curve),
        key=lambda row: (row[0], float(row[6])),
    )  # fmt: skip
    able = [p for p, _ in curve if p.recall >= TARGET]
    least = min((p.bytes for p in able), default=float("nan")) / 1000
    said = f"least at {TARGET}: {least:.0f} KB a query; the target on all of gloss is {KB_TARGET} KB"
    opened = sum(len(collection.place.read(key)) for key in (*collection.attributes["code_objects"], "planes.parquet"))
    return Table(
        f"What a query reads: {len(data.train):,} rows of {data.name}, {len(collection.borders) - 1:,} lists",
        ("finest level", "lists", "refine", "recall@10", "rounds", "requests", "KB"), tuple(rows),
        (said, f"opening reads {opened / 1000:,.0f} KB once (code, centroids, sizes of chunks)",
         "each query alone; ids come from memory"),
    )  # fmt: skip


class _Noting(Cold):
    """Keeps what was fetched."""

    def __init__(self, collection: CollectionArchive) -> None:
        super().__init__(collection)
        self.asked: list[Mapping[str, npt.NDArray[np.int64]]] = []

    def _read(self, wanted: Mapping[str, npt.NDArray[np.int64]]) -> Any:
        self.asked.append(wanted)
        return super()._read(wanted)


def _orders(collection: CollectionArchive, data: Dataset, setting: Setting) -> Table:
    """The chunks that queries really fetched, replayed with the lists in another order: requests and bytes."""
    cold = _Noting(collection)
    for query in data.test:
        cold.search(query[None], 10, Overrides(**setting))
    table, centroids = collection.chunks, collection.centroids
    orders = {
        "tour": np.arange(len(centroids)),
        "Hilbert": lists.hilbert(_leading(centroids)),
        "none": np.random.default_rng(0).permutation(len(centroids)),
    }
    rows = []
    for name, order in orders.items():
        chunks = np.concatenate([np.arange(table.first_chunk[i], table.first_chunk[i + 1]) for i in order])
        place = np.empty_like(chunks)
        place[chunks] = np.arange(len(chunks))
        for gap in GAPS:
            found = np.array([_requests(wanted, table.sizes, chunks, place, gap) for wanted in cold.asked]).sum(axis=0)
            requests, read = found / len(data.test)
            rows.append((name, gap, f"{requests:.0f}", f"{read / 1000:.0f}"))
    return Table(
        f"Order of the lists, and gaps read over to save a request ({_words(setting)})",
        ("order of lists", "gap, bytes", "requests", "KB"), tuple(rows),
        ("the chunks that the queries fetched, laid out again in each order in one object a level",),
    )  # fmt: skip


def _leading(centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Eight principal components of the centroids."""
    centred = centroids - centroids.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, -8:], np.float32)


def _requests(
    wanted: Mapping[str, npt.NDArray[np.int64]], sizes: dict[str, Any], order: npt.NDArray[np.int64],
    place: npt.NDArray[np.int64], gap: int,
) -> tuple[int, int]:  # fmt: skip
    requests = read = 0
    for name, chunks in wanted.items():
        ends = np.cumsum(sizes[name][order], dtype=np.int64)
        at = np.sort(place[chunks])
        begin, end = ends[at] - sizes[name][order][at], ends[at]
        holes = begin[1:] - end[:-1]
        requests += 1 + int((holes > gap).sum())
        read += int((end - begin).sum() + holes[holes <= gap].sum())
    return requests, read


def _beside(data: Dataset, url: str, setting: Setting, folder: Path, peers: dict[str, str], quick: bool) -> list[Table]:
    """Ours and LanceDB's best settings, in turns, on disk and on S3."""
    swept = lance.SETTINGS[:: 3 if quick else 1]
    tuned = {name: _tuned(lance.ask(str(folder), name, data.metric), data, swept) for name in peers}
    contenders = [("hilbertflow", "ours", setting), ("hilbertflow, nothing kept", "bare", setting)]
    for name, points in tuned.items():
        able = [p for p in points if p.recall >= TARGET] or [max(points, key=lambda p: p.recall)]
        chosen = {id(p): p for p in (min(able, key=lambda p: p.bytes), min(able, key=lambda p: p.seconds))}
        contenders += [(f"LanceDB {peers[name]}", name, point.setting) for point in chosen.values()]
    disk = _turns(data, [(c, _opened(c, url, str(folder), data.metric)) for c in contenders], None)
    with tempfile.TemporaryDirectory() as scratch:
        port = free_ports(1)[0]
        buckets = {contender[1]: f"bench-{contender[1]}" for contender in contenders}
        with server(Path(scratch), *buckets.values(), metrics=port):
            for name in OURS:
                _upload(Path(url), f"s3://{buckets[name]}/rows")
            for name in tuned:
                _upload(folder / f"{name}.lance", f"s3://{buckets[name]}/{name}.lance")
            far = {name: f"s3://{bucket}" for name, bucket in buckets.items()}
            opened = [(c, _opened(c, f"{far[c[1]]}/rows", far[c[1]], data.metric)) for c in contenders]
            remote = _turns(data, opened, (port, buckets))
    notes = () if peers else ("LanceDB is not installed: pip install lancedb",)
    return [
        Table(
            f"Beside LanceDB, {where}: {len(data.train):,} rows of {data.name}, recall@10 of {TARGET} asked",
            ("system", "setting", "recall@10", "median ms", "KB", "requests"),
            tuple((p.name, _words(p.setting), f"{p.recall:.3f}", f"{1000 * p.seconds:.1f}", f"{p.bytes / 1000:.0f}",
                   None if p.requests is None else f"{p.requests:.0f}") for p in points), notes,
        )
        for where, points in (("on disk", disk), ("on S3", remote))
    ]  # fmt: skip


def _tuned(ask: Ask, data: Dataset, settings: Sequence[Setting]) -> list[Point]:
    """Settings of LanceDB's, on disk, over some of the queries."""
    some = Dataset(data.name, data.metric, data.train, data.test[:50], data.neighbors[:50])
    return [_turns(some, [(("", "", setting), ask)], None)[0] for setting in settings]


def _opened(contender: tuple[str, str, Setting], url: str, folder: str, metric: str) -> Ask:
    if contender[1] not in OURS:
        return lance.ask(folder, contender[1], metric)
    engine = SearchEngine.open(url, cache=OURS[contender[1]])
    return lambda query, setting: engine.search(query, 10, "cold", None, **setting).ids[0]


def _turns(
    data: Dataset, asks: Sequence[tuple[tuple[str, str, Setting], Ask]], on_s3: tuple[int, dict[str, str]] | None
) -> list[Point]:
    """Each query by each contender in turn; one with several settings has its bytes apart by the disk's count only."""
    for (_, _, setting), ask in asks:  # opens what is read once
        for query in data.test[-3:]:
            ask(query, setting)
    hits = np.zeros(len(asks))
    taken: list[list[float]] = [[] for _ in asks]
    sent = np.zeros((len(asks), 2))
    for query, truth in zip(data.test[:-3], data.neighbors[:-3], strict=True):
        for at, ((_, kind, setting), ask) in enumerate(asks):
            before = _sent(kind, on_s3)
            began = time.perf_counter()
            found = ask(query, setting)
            taken[at].append(time.perf_counter() - began)
            sent[at] += np.subtract(_sent(kind, on_s3), before)
            hits[at] += len(set(map(int, found)) & set(truth[:10].tolist()))
    count = len(data.test) - 3
    return [
        Point(name, setting, hits[at] / (10 * count), float(np.median(taken[at])), sent[at][1] / count,
              sent[at][0] / count if on_s3 else None)
        for at, ((name, _, setting), _) in enumerate(asks)
    ]  # fmt: skip


def _sent(kind: str, on_s3: tuple[int, dict[str, str]] | None) -> tuple[int, int]:
    """Requests and bytes so far."""
    if on_s3 is not None:
        found = Sent.now(on_s3[0], on_s3[1][kind])
        return found.requests, found.bytes
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return 0, int(fields["rchar"])


def _upload(folder: Path, url: str) -> None:
    from storage.fs import Location

    target = Location(url)
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        target.write_atomic(str(path.relative_to(folder)), path.read_bytes())


def _words(setting: Setting) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items() if name != "level")
