"""Search over a collection that changes: every tier, every change, against brute force over what stands."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.exact import ExactScan
from cluster.results import recall
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 4000, 12
QUERIES = clustered(30, DIM, seed=9)


@pytest.fixture(scope="module", params=["l2", "cosine"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    """5,000 rows, 600 replaced, 300 deleted, 400 new, in a dozen batches."""
    columns = {"lines": np.arange(ROWS) % 100}
    url = archive_vectors(tmp_path_factory.mktemp("live"), clustered(ROWS, DIM), request.param, columns)
    build_indexes(url, ["ivfpq", "hnsw"], shards=2, actors=0)
    engine = SearchEngine.open(url)
    for part in range(4):
        new = clustered(250, DIM, seed=100 + part)
        names = [f"row-{i}" for i in range(part, 600, 4)] + [f"new-{part}-{i}" for i in range(100)]
        engine.upsert(names, new, {"lines": np.arange(250) % 100})
        engine.delete([f"row-{i}" for i in range(1000 + 100 * part, 1075 + 100 * part)])
    assert engine.version == 8
    return engine


def oracle(engine: SearchEngine, k: int, keep: object = None) -> np.ndarray:
    """Brute force over the rows that stand."""
    view = engine._set.view
    rows = np.concatenate([np.setdiff1d(np.arange(ROWS), view.gone), ROWS + view.live])
    if keep is not None:
        lines = view.table(rows).column("lines").to_numpy()
        rows = rows[keep(lines)]  # type: ignore[operator]
    scan = ExactScan(QUERIES, k, engine.collection.metric)
    scan.feed(view.take(rows), rows)
    return scan.best()[1]


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
def test_every_tier_sees_the_rows_that_stand(engine: SearchEngine, tier: str) -> None:
    """k rows, none of them gone, recall as before; ids and metadata of new rows too."""
    found, true = engine.search(QUERIES, 10, tier), oracle(engine, 10)
    assert found.rows.shape == (len(QUERIES), 10)
    assert not np.isin(found.rows, engine._set.view.gone).any()
    assert recall(found.rows, true) >= (1.0 if tier == "exact" else 0.95)
    assert (found.rows >= ROWS).any()
    assert engine.metadata(found.rows[0]).column("id").to_pylist() == found.ids[0].tolist()
    assert engine.rows(found.ids[0].tolist()).tolist() == found.rows[0].tolist()
    assert found.explain["version"] == 8 and found.explain["log_rows"] == 1000


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
@pytest.mark.parametrize(("text", "below"), [("lines < 50", 50), ("lines < 3", 3)])
def test_filters_hold_over_old_and_new_rows(engine: SearchEngine, tier: str, text: str, below: int) -> None:
    found = engine.search(QUERIES, 20, tier, text)
    assert recall(found.rows, oracle(engine, 20, lambda lines: lines < below)) >= (1.0 if tier == "exact" else 0.95)
    assert all(line < below for line in engine.metadata(found.rows.reshape(-1)).column("lines").to_pylist())


def test_changes_are_seen_by_the_next_query_and_after_a_restart(tmp_path: Path) -> None:
    """Ours at once, another's after refresh; nearest is what was just put where the query is."""
    url = archive_vectors(tmp_path, clustered(500, DIM), "ip")
    engine, other = SearchEngine.open(url), SearchEngine.open(url)
    query = np.full(DIM, 50.0)
    assert other.search(query, 1).ids[0, 0] != "top"
    assert engine.upsert(["top"], [query]).version == 1
    assert engine.search(query, 1).ids[0, 0] == "top"
    assert other.search(query, 1).ids[0, 0] != "top"
    assert other.refresh() and other.search(query, 1).ids[0, 0] == "top"
    assert SearchEngine.open(url).search(query, 1).ids[0, 0] == "top"
    engine.delete(["top"])
    assert engine.search(query, 1).ids[0, 0] != "top"
    with pytest.raises(HilbertflowError, match="exists"):
        engine.append(["row-3"], [query])
    assert SearchEngine.open(url).version == engine.version == 2


def test_a_search_sees_one_version_while_others_write(tmp_path: Path) -> None:
    """Two rows always change together; no answer ever shows one of them changed."""
    url = archive_vectors(tmp_path, clustered(500, DIM), "l2")
    engine, stop = SearchEngine.open(url), threading.Event()
    far = np.full((2, DIM), 100.0)
    engine.upsert(["a", "b"], far)

    def write() -> None:
        step = 1
        while not stop.is_set():
            engine.upsert(["a", "b"], far + step % 5)
            step += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(60):
            scores = engine.search(far[0], 2).scores[0]
            assert scores[0] == scores[1]
    finally:
        stop.set()
        thread.join()


def test_all_rows_may_go(tmp_path: Path) -> None:
    url = archive_vectors(tmp_path, clustered(200, DIM), "l2")
    build_indexes(url, ["hnsw"], actors=0)
    engine = SearchEngine.open(url)
    engine.delete([f"row-{i}" for i in range(199)])
    for tier in ("exact", "hnsw"):
        assert engine.search(QUERIES, 10, tier).ids.tolist() == [["row-199"]] * len(QUERIES)
    engine.delete(["row-199"])
    for tier in ("exact", "hnsw"):
        assert engine.search(QUERIES, 10, tier).rows.shape == (len(QUERIES), 0)
