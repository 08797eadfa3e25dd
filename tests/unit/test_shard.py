"""One shard in memory, and the exact scan that judges it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import shard as shard_module
from cluster.build import build_indexes, open_collection
from cluster.exact import ExactScan
from cluster.hnsw import Hnsw, principal
from cluster.index_kind import IndexKind, Overrides
from cluster.index_store import Build, current_builds, indexes_of
from cluster.ivfpq import IvfPq
from cluster.results import NO_ROW, merge, recall
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 3000, 24
QUERIES = clustered(50, DIM, seed=9)
KINDS = {
    "fp16": IvfPq(lists=20, nprobe=8),
    "sq8": IvfPq(lists=20, nprobe=8, refine="sq8"),
    "archive": IvfPq(lists=20, nprobe=8, refine="archive"),
    "codes": IvfPq(lists=20, nprobe=8, refine="none"),
    "hnsw": Hnsw(ef_construction=60),
    "hnsw8": Hnsw(store="sq8", ef_construction=60),
}
LEAST = {"fp16": 0.95, "sq8": 0.9, "archive": 0.95, "codes": 0.3, "hnsw": 0.97, "hnsw8": 0.9}


@pytest.fixture(scope="module")
def by_metric(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CollectionArchive]:
    """3,000 rows, archived for each metric."""
    root, vectors = tmp_path_factory.mktemp("shard"), clustered(ROWS, DIM)
    return {
        metric: open_collection(archive_vectors(root / metric, vectors, metric)) for metric in ("l2", "ip", "cosine")
    }


@pytest.fixture
def collection(by_metric: dict[str, CollectionArchive]) -> CollectionArchive:
    """The one compared by inner product."""
    return by_metric["ip"]


def exact(collection: CollectionArchive, k: int, rows: I64 | None = None, queries: F32 = QUERIES) -> tuple[F32, I64]:
    """The oracle, over all rows or some."""
    scan = ExactScan(queries, k, collection.metric)
    rows = np.arange(collection.count) if rows is None else rows
    scan.feed(collection.take(rows), rows)
    return scan.best()


def shards(collection: CollectionArchive, kind: IndexKind) -> tuple[Build, list[Shard]]:
    """Built (or found built) and loaded."""
    build_indexes(collection.url, [kind], actors=0)
    build = current_builds(indexes_of(collection))[kind.kind]
    return build, [Shard.load(collection, build, number) for number in range(len(build.shards))]


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_finds_the_neighbours(by_metric: dict[str, CollectionArchive], name: str, metric: str) -> None:
    """Recall@10 against the exact scan; scores are the metric's, ordered, with the rows' global numbers."""
    collection = by_metric[metric]
    build, found = shards(collection, replace(KINDS[name], shards=3))
    queries = prepared(QUERIES, collection.metric)
    parts = [shard.search(queries, 10, Overrides()) for shard in found]
    for shard, (_, rows, effort) in zip(found, parts, strict=True):
        assert rows.min() >= shard.start
        assert rows.max() < shard.stop
        assert 0 < effort.rows_scanned < len(QUERIES) * (shard.stop - shard.start)
    scores, rows = merge([(s, r) for s, r, _ in parts], 10, collection.metric)
    true_scores, true_rows = exact(collection, 10)
    assert recall(rows, true_rows) >= LEAST[name]
    if name != "codes":
        same = rows == true_rows
        assert np.abs(scores - true_scores)[same].max() <= 0.03 * np.abs(true_scores).max()
    best_first = -scores if build.metric != "l2" else scores
    assert (np.diff(best_first, axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["fp16", "archive", "codes", "hnsw"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_a_filter_never_costs_rows(collection: CollectionArchive, name: str, share: float) -> None:
    """At any selectivity: k rows whenever k match, all of them matching, with the recall of the whole."""
    _, (shard,) = shards(collection, KINDS[name])
    matches = np.sort(np.random.default_rng(3).choice(ROWS, int(ROWS * share), replace=False))
    _, rows, _ = shard.search(prepared(QUERIES, collection.metric), 10, Overrides(), matches)
    assert rows.shape == (len(QUERIES), min(10, len(matches)))
    assert np.isin(rows, matches).all()
    assert recall(rows, exact(collection, 10, matches)[1]) >= LEAST[name]


@pytest.mark.parametrize("name", ["fp16", "archive", "hnsw", "hnsw8"])
@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("side", [1, -1])
def test_a_filter_that_goes_along_with_the_vectors(
    collection: CollectionArchive, name: str, share: float, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side of the first principal component: the rows near half of the queries are all of them, or none."""
    monkeypatch.setattr(shard_module, "FEW_ROWS", 50)  # let the index answer
    monkeypatch.setattr(shard_module, "FEW_SHARE", 0)
    _, (shard,) = shards(collection, KINDS[name])
    vectors = collection.read(0, ROWS)
    along = side * ((vectors - vectors.mean(axis=0)) @ principal(vectors, 1)[0])
    matches = np.sort(np.argsort(along)[: int(ROWS * share)])
    _, rows, effort = shard.search(prepared(QUERIES, collection.metric), 10, Overrides(), matches)
    assert np.isin(rows, matches).all()
    assert recall(rows, exact(collection, 10, matches)[1]) >= LEAST[name]
    assert effort.rows_scanned > 0


@pytest.mark.parametrize("name", ["fp16", "hnsw"])
def test_a_deleted_row_does_not_widen_the_search(
    collection: CollectionArchive, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows but three: about what all rows cost."""
    monkeypatch.setattr(shard_module, "FEW_ROWS", 50)
    _, (shard,) = shards(collection, KINDS[name])
    queries = prepared(QUERIES, collection.metric)
    whole = shard.search(queries, 10, Overrides())[2].rows_scanned
    most = shard.search(queries, 10, Overrides(), np.setdiff1d(np.arange(ROWS), [5, 700, 2000]))[2].rows_scanned
    assert most < 1.6 * whole


@pytest.mark.parametrize("name", ["fp16", "codes", "hnsw"])
def test_a_starved_search_still_answers_in_full(collection: CollectionArchive, name: str) -> None:
    """One list, a narrow graph, k of a fifth of the rows: what the index does not reach is compared row by row."""
    _, (shard,) = shards(collection, KINDS[name])
    narrow = Overrides(ef=1) if name == "hnsw" else Overrides(nprobe=1)
    queries = prepared(QUERIES[:4], collection.metric)
    _, rows, _ = shard.search(queries, 600, narrow)
    assert rows.shape == (4, 600)
    assert (rows != NO_ROW).all()
    assert all(len(set(row)) == 600 for row in rows.tolist())
    _, everything, _ = shard.search(queries, ROWS + 5, narrow)
    assert (np.sort(everything, axis=1) == np.arange(ROWS)).all()


def test_a_filter_that_matches_nothing(collection: CollectionArchive) -> None:
    """No rows, not padding."""
    _, (shard,) = shards(collection, KINDS["hnsw"])
    scores, rows, _ = shard.search(prepared(QUERIES, collection.metric), 10, Overrides(), np.empty(0, np.int64))
    assert scores.shape == rows.shape == (len(QUERIES), 0)


def test_looking_harder_finds_more(collection: CollectionArchive) -> None:
    """The overrides do what they say: recall grows with nprobe, refine and ef."""
    truth = exact(collection, 64)[1]
    queries = prepared(QUERIES, collection.metric)
    for name, weak, strong in (
        ("fp16", Overrides(nprobe=1), Overrides(nprobe=20)),
        ("fp16", Overrides(nprobe=20, refine=1), Overrides(nprobe=20, refine=40)),
        ("hnsw", Overrides(ef=1), Overrides(ef=200)),
    ):
        _, (shard,) = shards(collection, KINDS[name])
        low, high = (recall(shard.search(queries, 64, setting)[1], truth) for setting in (weak, strong))
        assert low < high
        assert high >= 0.95


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    """A write that fails in the middle of an index file raises the storage's own error and leaves no file."""
    import resource

    url = archive_vectors(tmp_path, clustered(2000, 32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(HilbertflowError, match=r"shard-0\.hnsw\.faiss"):
            build_indexes(url, ["hnsw"], actors=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("shard-0.hnsw.faiss*"))
    assert list(build_indexes(url, ["hnsw"], actors=0)) == ["hnsw"]


# The exact scan: the oracle must itself be beyond doubt.


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 6), st.integers(1, 70), st.integers(1, 25),
    st.sampled_from(["l2", "ip", "cosine"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_scan_agrees_with_a_sort(rows: int, dim: int, k: int, batch: int, metric: str, seed: int) -> None:
    """Against float64 NumPy with a stable sort, on integers, so that scores tie: the same rows in the same order."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 3, (rows, dim)).astype(np.float32)
    queries = random.integers(-2, 3, (3, dim)).astype(np.float32)
    scan = ExactScan(queries, k, metric)
    for at in range(0, rows, batch):
        scan.feed(vectors[at : at + batch], np.arange(at, min(rows, at + batch)))
    scores, found = scan.best()
    a, b = prepared(queries, metric).astype(np.float64), prepared(vectors, metric).astype(np.float64)
    table = ((a[:, None] - b[None]) ** 2).sum(2) if metric == "l2" else (a[:, None] * b[None]).sum(2)
    table = table.astype(np.float32)
    order = np.argsort(table if metric == "l2" else -table, axis=1, kind="stable")[:, :k]
    assert np.array_equal(found, order)
    assert np.array_equal(scores, np.take_along_axis(table, order, 1))
    assert scan.scanned == rows


def test_the_scan_does_not_depend_on_batches_or_order() -> None:
    """Duplicates on every batch border, batches of other sizes, rows fed backwards: the same answer bit for bit."""
    vectors = clustered(3000, 24)
    vectors[::7] = vectors[3]
    queries = np.concatenate([vectors[3:4], clustered(9, 24, seed=4)])
    answers = []
    for batch, back in ((3000, False), (64, False), (700, True), (1, False)):
        scan = ExactScan(queries, 25, "l2")
        starts = list(range(0, 3000, batch))
        for at in reversed(starts) if back else starts:
            scan.feed(vectors[at : at + batch], np.arange(at, min(3000, at + batch)))
        answers.append(scan.best())
    for scores, rows in answers[1:]:
        assert np.array_equal(rows, answers[0][1])
        assert np.array_equal(scores, answers[0][0])
    same = np.flatnonzero((vectors == vectors[3]).all(axis=1))
    assert answers[0][1][0].tolist() == same[:25].tolist()


def test_the_scan_survives_huge_and_tiny_values() -> None:
    """Magnitudes whose squares leave float32: ranked as float64 ranks them."""
    random = np.random.default_rng(5)
    vectors = (random.normal(size=(200, 8)) * 10.0 ** random.integers(-25, 30, (200, 1))).astype(np.float32)
    scan = ExactScan(vectors[:5], 10, "ip")
    scan.feed(vectors, np.arange(200))
    table = vectors[:5].astype(np.float64) @ vectors.astype(np.float64).T
    with np.errstate(over="ignore"):
        table = table.astype(np.float32)
    assert np.array_equal(scan.best()[1], np.argsort(-table, axis=1, kind="stable")[:, :10])


def test_merge_and_recall() -> None:
    """Ties by row, padding last, set recall that ignores order and padding."""
    a = (np.array([[1.0, 2.0]], np.float32), np.array([[9, 4]]))
    b = (np.array([[1.0, 5.0, np.nan]], np.float32), np.array([[3, 1, NO_ROW]]))
    assert merge([a, b], 3, "l2")[1].tolist() == [[3, 9, 4]]
    assert merge([a, b], 9, "ip")[1].tolist() == [[1, 4, 3, 9, NO_ROW]]
    truth = np.array([[1, 2, 3], [4, 5, NO_ROW]])
    assert recall(np.array([[3, 1, 7], [5, 4, 1]]), truth) == pytest.approx(4 / 5)
    assert recall(np.array([[NO_ROW] * 3] * 2), truth) == 0.0
    with pytest.raises(HilbertflowError):
        recall(truth[:1], truth)
    with pytest.raises(HilbertflowError):
        merge([a], 3, "hamming")
