"""``bench embeddings``: bytes a vector against recall, ours beside FAISS's codecs and embzip; levels; small files.

Recall is set recall@10 of an exhaustive scan for held-out queries: over the decoded rows, or by the codec's own
distances where it has no decoded rows to speak of (RaBitQ). Bytes are all that a reader needs: codes, transform,
codebooks, tables, centroids, the list of each row, headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import hfz, hfz_fit
from pipelines import console
from pipelines.bench import row_codecs
from pipelines.bench.collections import archived
from pipelines.bench.datasets import Dataset, cache_dir, load
from pipelines.bench.report import Chart, Table
from pipelines.bench.row_codecs import Coded
from pipelines.bench.search import shortened
from storage.archive import open as open_archive
from storage.collection import CollectionArchive

F32 = npt.NDArray[np.float32]

QUICK_ROWS, QUERIES = 4000, 1000
TARGETS = ((0.95, 0.65), (0.90, 0.80))
"""Recall@10, and the share of the cheapest FAISS codec's bytes that ours should reach it with."""
PUBLISHED = {64: (27.25, 0.788), 128: (17.47, 0.906), 384: (7.11, 0.995)}
"""embzip's own table, 1,000 rows of MiniLM: m, ratio, cosine."""
_MARGIN = 0.002  # of recall, that a rate aimed at a target is chosen with


@dataclass(frozen=True)
class Point:
    """A codec on a set: bytes a vector, recall@10, mean cosine (None without decoded rows), seconds of training, MB/s
    of float32 coded and decoded."""

    family: str
    name: str
    bytes: float
    recall: float
    cosine: float | None
    train: float
    encode: float
    decode: float | None

    @property
    def ours(self) -> bool:
        """Whether this library made it."""
        return self.family.startswith("ours")


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` takes 4,000 rows of each set, 300 queries and fewer codecs."""
    import faiss

    faiss.omp_set_num_threads(1)  # k-means of a few dimensions is slower on two
    whole = (load("gloss"), load("fashion"))
    sets = [shortened(s, QUICK_ROWS, 300) if quick else shortened(s, len(s.train), QUERIES) for s in whole]
    for data in sets:
        found, missing = points(data, quick)
        yield curve(data, found, missing)
        yield verdicts(data, found)
    for data in sets:
        yield levels(data)
    yield small(whole[0])
    yield controls(sets[0], 4000 if quick else 20_000)


def factories(dim: int, quick: bool) -> list[str]:
    """Factory strings of FAISS's codecs for a dimension, of each kind at the rates where it can matter."""
    turned = f"RR{dim},"  # RaBitQ expects its rows turned at random
    if quick:
        # FAISS's product quantizers train for a minute on pictures and reach no recall asked for; embzip has one.
        return ["SQ4", "SQ6", *(f"{turned}RaBitQ{b}" for b in (2, 3, 4))]
    quarter, half = dim // 4, dim // 2
    more = dim // 3 if dim % 3 == 0 else half
    made = ["SQ4", "SQ6", "SQ8", "RaBitQ", *(f"RaBitQ{b}" for b in range(2, 9))]
    made += [f"{turned}RaBitQ{b}" for b in (2, 3, 4, 5)] + [f"IVF256,RaBitQ{b}" for b in (3, 4)]
    made += [f"PQ{m}" for m in (dim // 8, quarter, half)] + [f"PQ{half}x4"]
    made += [f"OPQ{m},PQ{m}" for m in (dim // 8, quarter, more)]
    return [*made, f"PRQ{dim // 8}x2x8"]


def points(data: Dataset, quick: bool) -> tuple[list[Point], list[str]]:
    """Every codec on a set, and those that could not be measured, with the reason."""
    rows, dim = data.train, data.train.shape[1]
    rivals: dict[str, Callable[[], Coded]] = {
        factory: lambda f=factory: row_codecs.with_faiss(rows, data.metric, f)  # type: ignore[misc]
        for factory in factories(dim, quick)
    }
    for m in (dim // 16,) if quick else (dim // 16, dim // 2):
        rivals[f"embzip, m={m}"] = lambda m=m: row_codecs.with_embzip(rows, m)  # type: ignore[misc]
    found, missing = [], []
    for name, rival in rivals.items():
        try:
            found.append(measured(data, rival()))
        except (ImportError, RuntimeError, NotImplementedError) as error:
            missing.append(f"{name}: {str(error).strip().splitlines()[-1][-100:]}")
    found += our_points(data, (0.8, 1.8) if quick else (0.5, 1.0, 1.5, 2.0), row_codecs.ours, True)
    count = max(1, min(len(rows) // 64, 512))

    def in_lists(rows: F32, bits: float) -> Coded:
        return row_codecs.ours_in_lists(rows, bits, count)

    found += our_points(data, (1.2,) if quick else (0.5, 1.0, 1.5), in_lists, not quick)
    return found, missing


def our_points(data: Dataset, bits: Sequence[float], code: Callable[[F32, float], Coded], aimed: bool) -> list[Point]:
    """Ours at some rates, and where it is `aimed`, at those where the targets are just reached."""
    tried = [(rate, measured(data, code(data.train, rate))) for rate in bits]
    for target, _ in TARGETS if aimed else ():
        for _ in range(3):  # the share missed falls about evenly with the rate, on a logarithmic scale
            aim = float(np.log(1 - target - _MARGIN))
            known = [(float(np.log(max(1 - p.recall, 1e-4))), rate) for rate, p in tried]
            (low, a), (high, b) = sorted(known, key=lambda at: abs(at[0] - aim))[:2]
            rate = max(a + (b - a) * (aim - low) / (high - low) if high != low else 1.1 * max(a, b), 0.05)
            tried.append((rate, measured(data, code(data.train, rate))))
            if tried[-1][1].recall >= target:
                break
    return [point for _, point in tried]


def measured(data: Dataset, coded: Coded) -> Point:
    """The figures of a codec on a set."""
    rows, values, decoded = data.train, data.train.nbytes / 1e6, coded.decoded
    found = scan(data, decoded) if decoded is not None else coded.search(data.test)
    console.note(f"{data.name}: {coded.name}: {coded.size / len(rows):.1f} bytes, recall {data.recall(found):.4f}")
    return Point(
        coded.family, coded.name, coded.size / len(rows), data.recall(found),
        None if decoded is None else cosine(rows, decoded), coded.taken.get("train", 0.0),
        values / max(coded.taken["encode"], 1e-9),
        values / max(coded.taken["decode"], 1e-9) if "decode" in coded.taken else None,
    )  # fmt: skip


def scan(data: Dataset, decoded: F32) -> npt.NDArray[Any]:
    """The 10 decoded rows nearest to each query, all of them compared."""
    import faiss

    kind = faiss.METRIC_INNER_PRODUCT if data.metric == "ip" else faiss.METRIC_L2
    near: npt.NDArray[Any] = faiss.knn(data.test, np.ascontiguousarray(decoded, np.float32), 10, metric=kind)[1]
    return near


def cosine(rows: F32, decoded: F32) -> float:
    """Mean cosine between rows and what they decode to."""
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(decoded, axis=1)
    return float(np.mean(np.einsum("ij,ij->i", rows, decoded) / np.maximum(norms, 1e-30)))


def curve(data: Dataset, found: list[Point], missing: list[str]) -> Table:
    """All codecs, fewest bytes first."""
    rows = tuple(
        (p.name, p.family, f"{p.bytes:.1f}", f"{p.recall:.4f}", "" if p.cosine is None else f"{p.cosine:.4f}",
         f"{p.train:.1f}", f"{p.encode:.0f}", "" if p.decode is None else f"{p.decode:.0f}")
        for p in sorted(found, key=lambda p: p.bytes)
    )  # fmt: skip
    notes = (
        "every side cost counted; recall of an exhaustive scan, held-out queries; MB/s float32, one thread of FAISS",
        f"all trained on {row_codecs.SAMPLE:,} rows at most; k-means of product quantizers cut to 10 rounds, OPQ to 4,"
        " residual quantizers to a beam of 1; LSQ left out (its training takes hours)",
        "RaBitQ by its own distances, queries of 8 bits (as good as float ones, and 100 times as fast): it has no"
        " decoded rows of more than one bit; embzip trains while it encodes",
        *(f"not measured: {name}" for name in missing),
    )
    return Table(
        f"Bytes against recall: {data.name}, {len(data.train):,} x {data.train.shape[1]}, {data.metric}",
        ("codec", "kind", "bytes/vector", "recall@10", "cosine", "train s", "encode MB/s", "decode MB/s"), rows, notes,
        Chart("bytes/vector", "recall@10", "kind", log_x=True, log_y=True, complement=True),
    )  # fmt: skip


def verdicts(data: Dataset, found: list[Point]) -> Table:
    """Ours against the cheapest other codec at the recalls that were aimed at."""
    rows = []
    for target, share in TARGETS:
        reached = [[p for p in found if p.ours is mine and p.recall >= target] for mine in (True, False)]
        mine, theirs = (min(some, key=lambda p: p.bytes, default=None) for some in reached)
        said = [f"{p.bytes:.1f} ({p.name}, {p.recall:.4f})" if p else "none reaches it" for p in (mine, theirs)]
        ratio = mine.bytes / theirs.bytes if mine and theirs else float("nan")
        verdict = f"<= {share:.2f}: {'reached' if ratio <= share else 'MISSED'}"
        rows.append((f">= {target:.2f}", *said, f"{ratio:.3f}", verdict))
    return Table(
        f"Verdicts: {data.name}", ("recall@10", "ours, bytes", "cheapest rival, bytes", "ratio", "target"), tuple(rows)
    )


def levels(data: Dataset) -> Table:
    """A collection archived in lists: each prefix of its levels, and all of them beside one lossless copy."""
    home = cache_dir() / "cold" / f"{data.name}-{len(data.train)}"
    home.mkdir(parents=True, exist_ok=True)
    np.save(home / "train.npy", data.train)
    handle = open_archive(archived(home, home / "train.npy", data.metric))
    assert isinstance(handle, CollectionArchive)
    stored = {name: size for name, size in handle.place.sizes().items() if not name.startswith("indexes/")}
    total, body = sum(stored.values()), {name: int(sizes.sum()) for name, sizes in handle.chunks.sizes.items()}
    told = sum(size for name, size in stored.items() if name.startswith(("ids/", "rows/")))
    spent = total - told - sum(body[name] for name in handle.code.names)
    source = np.asarray(handle.source_rows(0, len(handle)))
    rows: list[tuple[Any, ...]] = [
        ("ids, twice, and places in the source", _each(told, data), "", ""),
        ("transform, lists, tables, sizes of chunks", _each(spent, data), "", ""),
    ]
    for level in range(handle.code.depth):
        spent += body[f"level{level}"]
        bits = 8 * body[f"level{level}"] / data.train.size
        found, near = _prefix(handle, data, source, level)
        rows.append((f"levels 0 to {level}; the last {bits:.2f} bits/value", _each(spent, data), f"{found:.4f}",
                     f"{near:.4f}"))  # fmt: skip
    same = np.array_equal(handle.take(np.argsort(source)).view(np.uint32), data.train.view(np.uint32))
    rows.append(("all levels, without ids", _each(total - told, data), "1.0000" if same else "NOT EXACT", "1.0000"))
    copies = row_codecs.lossless(data.train)
    rows += [(f"one lossless copy: {name}", _each(size, data), "1.0000", "1.0000") for name, size in copies.items()]
    best = min(copies.values())
    ratios = (total - told) / best, total / best
    verdict = "reached" if ratios[0] <= 1.02 else "MISSED"
    said = f"all levels: {ratios[0]:.4f} of the smallest copy, {ratios[1]:.4f} with ids, which a copy has not: <= 1.02 "
    return Table(
        f"Levels: {data.name}, {len(handle):,} rows archived in {len(handle.centroids):,} lists",
        ("what", "bytes/vector", "recall@10", "cosine"), tuple(rows), (said + verdict,),
    )  # fmt: skip


def _prefix(handle: CollectionArchive, data: Dataset, source: npt.NDArray[np.int64], level: int) -> tuple[float, float]:
    """Recall and mean cosine of the rows at a level."""
    decoded = np.empty_like(data.train)
    decoded[source] = handle.read(0, len(source), level)
    return data.recall(scan(data, decoded)), cosine(data.train, decoded)


def small(data: Dataset) -> Table:
    """embzip's own benchmark, 1,000 rows, against ``compress`` within the bytes that it publishes."""
    rows = data.train[np.sort(np.random.default_rng(0).permutation(len(data.train))[:1000])]
    shown: list[tuple[Any, ...]] = []
    for m, (ratio, published) in PUBLISHED.items():
        budget = rows.nbytes / ratio / len(rows)
        theirs, best = ("not installed", ""), published
        try:
            coded = row_codecs.with_embzip(rows, m)
            assert coded.decoded is not None
            here = cosine(rows, coded.decoded)
            theirs, best = (f"{coded.size / len(rows):.1f}", f"{here:.4f}"), max(published, here)
            budget = min(budget, coded.size / len(rows))
        except (ImportError, RuntimeError) as error:
            theirs = (type(error).__name__, "")
        file = hfz_fit.within(rows, budget)
        mine = cosine(rows, hfz.decode(file).astype(np.float32))
        shown.append((f"m={m}", f"{rows.nbytes / ratio / len(rows):.1f}", f"{published:.3f}", *theirs,
                      f"{len(file) / len(rows):.1f}", f"{mine:.4f}",
                      "reached" if mine >= best else "MISSED"))  # fmt: skip
    return Table(
        f"embzip's own benchmark: 1,000 rows of {data.name}, everything in one file",
        ("embzip", "published bytes", "cosine", "run here: bytes", "cosine here", "our bytes", "our cosine", "verdict"),
        tuple(shown), ("ours within the fewer of the two numbers of bytes; mean of each vector's cosine",),
    )  # fmt: skip


def controls(data: Dataset, count: int) -> Table:
    """What the gain comes from: rows with their columns shuffled apart, and Gaussian rows."""
    rng = np.random.default_rng(2)
    rows = data.train[:count]
    shuffled = np.stack([rng.permutation(column) for column in rows.T], axis=1)
    gaussian = rng.standard_normal(rows.shape).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((rows.shape[1], rows.shape[1])))[0].astype(np.float32)
    shown: list[tuple[Any, ...]] = []
    for name, values in ((data.name, rows), ("the same, turned at random", rows @ turn),
                         ("columns shuffled apart", shuffled), ("Gaussian", gaussian)):  # fmt: skip
        coded = row_codecs.ours(np.ascontiguousarray(values), 1.8, emphasis=0.0)
        assert coded.decoded is not None
        spent = 8 * coded.size / values.size
        centred = values - values.mean(axis=0)
        noise = float(np.square(coded.decoded - values, dtype=np.float64).mean())
        bound = 0.5 * float(np.log2(np.square(centred, dtype=np.float64).mean() / noise))
        shown.append((name, f"{coded.size / len(values):.1f}", f"{spent:.3f}", f"{bound:.3f}", f"{spent - bound:+.3f}"))
    return Table(
        f"Controls: ours for least squared error, {count:,} rows",
        ("rows", "bytes/vector", "bits/value", "bound without structure", "difference"), tuple(shown),
        ("bound: Shannon's for Gaussian values of equal variance at the error reached; below it, structure was used",),
    )  # fmt: skip


def _each(size: int, data: Dataset) -> str:
    return f"{size / len(data.train):.1f}"
