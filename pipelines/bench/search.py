"""``bench search``: our in-memory tiers beside the libraries that people use, in one run, in turns.

Recall is set recall@10 against the exact scan, on held-out queries. A figure of speed is the fastest of several batches
of all queries, each contender in turn; ours go through `SearchEngine` over the archived collection, ids included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import console
from pipelines.bench.arena import Corner, corners
from pipelines.bench.collections import archived
from pipelines.bench.contenders import BUILD_THREADS, CONTENDERS, Setting
from pipelines.bench.datasets import Dataset, cache_dir, load
from pipelines.bench.report import Table

TARGETS = (0.90, 0.95, 0.99)
THREADS = (1, 2)
QUICK_ROWS, QUERIES = 20_000, 1000
CLOSER = 3  # settings that are added around each recall, each between two that were there
SVS = "SVS Vamana32"


@dataclass(frozen=True)
class Point:
    """One setting of one contender: recall@10, and queries a second by number of threads."""

    name: str
    setting: Setting
    recall: float
    rates: dict[int, float]


@dataclass(frozen=True)
class Field:
    """All that was measured on one data set."""

    dataset: str
    rows: int
    dim: int
    corners: list[Corner]
    points: list[Point]

    def fastest(self, name: str, target: float, threads: int) -> Point | None:
        """The fastest setting of a contender that reaches a recall."""
        able = [p for p in self.points if p.name == name and p.recall >= target and threads in p.rates]
        return max(able, key=lambda point: point.rates[threads], default=None)

    def front(self, name: str, threads: int) -> list[Point]:
        """Settings that no other of the same contender beats in both recall and speed."""
        mine = sorted(
            (p for p in self.points if p.name == name and threads in p.rates), key=lambda p: -p.rates[threads]
        )
        front: list[Point] = []
        for point in mine:
            if not front or point.recall > front[-1].recall:
                front.append(point)
        return front


def run(quick: bool, plots: Path | None = None) -> Iterator[Table]:
    """All tables; ``quick`` takes 20,000 rows of each data set and fewer settings; plots: a folder for pictures."""
    for name in ("gloss", "fashion"):
        yield from _compared(load(name), quick, plots)


def _compared(data: Dataset, quick: bool, plots: Path | None) -> list[Table]:
    data = shortened(data, QUICK_ROWS if quick else len(data.train), QUERIES)
    folder = cache_dir() / "search" / f"{data.name}-{len(data.train)}"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        np.save(folder / f"{part}.npy", getattr(data, part))
    url = archived(folder, folder / "train.npy", data.metric)
    names = [name for name, contender in CONTENDERS.items() if contender.installed]
    absent = sorted({c.module for c in CONTENDERS.values() if not c.installed})
    with ExitStack() as stack:
        console.say(f"{data.name}: building {', '.join(names)}")
        opened, failed = corners(names, folder / "train.npy", folder / "test.npy", data.metric, url, stack)
        field = Field(data.name, len(data.train), data.train.shape[1], opened, _measure(data, opened, quick))
        single = {
            corner.name: corner.singly(point.setting, 200)
            for corner in opened
            if (point := field.fastest(corner.name, 0.95, 1)) is not None
        }
    notes = tuple(failed) + ((f"not installed: {', '.join(absent)}",) if absent else ())
    if plots is not None:
        from pipelines.bench.search_plot import draw

        draw(field, plots / f"search-{data.name}.png")
    return [_speeds(field, notes), _costs(field, single), _verdicts(field), _fronts(field)]


def shortened(data: Dataset, rows: int, queries: int) -> Dataset:
    """The first queries over an even choice of the rows, with their exact answer."""
    if rows >= len(data.train):
        return Dataset(data.name, data.metric, data.train, data.test[:queries], data.neighbors[:queries])
    from pipelines.bench.datasets import exact_neighbors

    train = np.ascontiguousarray(data.train[np.linspace(0, len(data.train) - 1, rows).astype(np.int64)])
    test = np.ascontiguousarray(data.test[:queries])
    return Dataset(data.name, data.metric, train, test, exact_neighbors(train, test, data.metric))


def _measure(data: Dataset, opened: Sequence[Corner], quick: bool) -> list[Point]:
    """Recall of every setting; then speed, in rounds, of those that some recall asked for could be reached with."""
    reached: dict[tuple[str, int], float] = {}
    settings: dict[str, list[Setting]] = {}
    for corner in opened:
        swept = [(item, data.recall(corner.found(item))) for item in CONTENDERS[corner.name].settings[:: 1 + quick]]
        for target in TARGETS:
            for _ in range(CLOSER):
                if (closer := between(swept, target)) is not None:
                    swept.append((closer, data.recall(corner.found(closer))))
        settings[corner.name] = [setting for setting, _ in swept]
        reached |= {(corner.name, i): recall for i, (_, recall) in enumerate(swept)}
    best: dict[tuple[str, int], dict[int, float]] = {key: {} for key, value in reached.items() if value >= 0.85}
    for threads in THREADS:
        for _ in range(2 if quick else 4):
            for at in range(max(map(len, settings.values()))):  # in turns: the i-th setting of each, then the next
                for corner in opened:
                    if (key := (corner.name, at)) in best:
                        rate = len(data.test) / corner.timed(settings[corner.name][at], threads)
                        best[key][threads] = max(rate, best[key].get(threads, 0.0))
    return [Point(name, settings[name][i], reached[name, i], rates) for (name, i), rates in best.items()]


def between(swept: Sequence[tuple[Setting, float]], target: float) -> Setting | None:
    """A setting halfway between the cheapest that reaches a recall and the next one down, which does not.

    The first value of a setting is its width; what is swept is too coarse to tell who is fastest at a given recall.
    None where nothing lies between, or nothing reaches it.
    """
    able = [setting for setting, recall in swept if recall >= target]
    if not able:
        return None
    (name, width), *others = min((list(setting.items()) for setting in able), key=lambda items: [v for _, v in items])
    below = [
        setting[name] for setting, recall in swept
        if recall < target and setting[name] < width and all(setting[key] == value for key, value in others)
    ]  # fmt: skip
    middle = (max(below, default=width) + width) // 2
    return {name: middle, **dict(others)} if max(below, default=width) < middle < width else None


def _speeds(field: Field, notes: tuple[str, ...]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for corner in field.corners:
        points = [field.fastest(corner.name, target, threads) for threads in THREADS for target in TARGETS]
        rates = [
            None if point is None else f"{point.rates[threads]:,.0f}"
            for point, threads in zip(points, [t for t in THREADS for _ in TARGETS], strict=True)
        ]
        rows.append((corner.name, *rates))
    columns = [f"≥ {target:.2f}, {threads} thr" for threads in THREADS for target in TARGETS]
    title = f"queries a second by recall@10 and threads: {field.dataset}, {field.rows:,} x {field.dim}"
    return Table(title, ("contender", *columns), tuple(rows), notes)


def _costs(field: Field, single: dict[str, float]) -> Table:
    rows = [
        (corner.name, f"{corner.built.seconds:.1f}", console.size(corner.built.resident),
         console.size(corner.built.stored), f"{corner.built.resident / field.rows:.0f}",
         f"{single[corner.name] * 1e6:.0f}" if corner.name in single else None)
        for corner in field.corners
    ]  # fmt: skip
    return Table(
        f"what an index takes: {field.dataset}",
        ("contender", "build s", "resident", "on disk", "bytes a row", "µs a query sent alone, ≥ .95"), tuple(rows),
        (f"ours are built by one thread from the archive, the others by {BUILD_THREADS} from memory",
         f"float32 vectors take {4 * field.dim} bytes a row"),
    )  # fmt: skip


def _verdicts(field: Field) -> Table:
    memory = {corner.name: corner.built.resident for corner in field.corners}
    ours = [name for name in memory if CONTENDERS[name].ours]
    peers = [name for name in memory if not CONTENDERS[name].ours and name != SVS]
    rows: list[tuple[Any, ...]] = []
    for threads in THREADS:
        for target in TARGETS:
            best, rival = _best(field, ours, target, threads), _best(field, peers, target, threads)
            svs = field.fastest(SVS, target, threads)
            if best is None or rival is None:
                rows.append((threads, f"{target:.2f}", best and best.name, rival and rival.name, None, None, None))
                continue
            rate, to_beat = best.rates[threads], rival.rates[threads]
            points = [field.fastest(name, target, threads) for name in ours]
            least = min(
                (memory[p.name] for p in points if p and p.rates[threads] >= to_beat), default=memory[best.name]
            )
            rows.append(
                (threads, f"{target:.2f}", best.name, rival.name, f"{rate / to_beat:.2f}",
                 f"{rate / svs.rates[threads]:.2f}" if svs else None, f"{least / memory[rival.name]:.2f}")
            )  # fmt: skip
    return Table(
        f"ours against the best of the others: {field.dataset}",
        ("threads", "recall@10 ≥", "our best", "their best", "speed ratio", "to SVS", "resident ratio"), tuple(rows),
        ("wanted: 1.00 or more, 0.80 or more, 0.50 or less once at .95 (our smallest that is as fast as their best)",),
    )  # fmt: skip


def _best(field: Field, names: Sequence[str], target: float, threads: int) -> Point | None:
    able = [point for name in names if (point := field.fastest(name, target, threads)) is not None]
    return max(able, key=lambda point: point.rates[threads], default=None)


def _fronts(field: Field) -> Table:
    rows = [
        (corner.name, " ".join(f"{key}={value}" for key, value in point.setting.items()), f"{point.recall:.4f}",
         f"{point.rates[1]:,.0f}")
        for corner in field.corners
        for point in reversed(field.front(corner.name, 1))
    ]  # fmt: skip
    return Table(
        f"Pareto fronts, one thread: {field.dataset}", ("contender", "setting", "recall@10", "queries/s"), tuple(rows)
    )
