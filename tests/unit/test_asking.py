"""Everything a query may say: radius, level, overrides, k up to 10,000, explain, recall on the live collection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.radius import grown
from cluster.results import recall
from operators.errors import HilbertflowError
from pipelines import cli
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 3000, 12
QUERIES = clustered(20, DIM, seed=9)


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    url = archive_vectors(tmp_path_factory.mktemp("asking"), clustered(ROWS, DIM), request.param,
                          {"lines": np.arange(ROWS) % 10})  # fmt: skip
    build_indexes(url, ["ivfpq", "hnsw"], actors=0)
    engine = SearchEngine.open(url)
    engine.upsert([f"late-{i}" for i in range(50)], clustered(50, DIM, seed=77), {"lines": np.arange(50) % 10})
    return engine


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
@pytest.mark.parametrize("filter", [None, "lines < 3"])
def test_a_radius_gives_all_rows_within_it(engine: SearchEngine, tier: str, filter: str | None) -> None:
    """Against the oracle's scores; rows of the log too; nothing outside; never more than k."""
    everything = engine.search(QUERIES, ROWS + 50, "exact", filter)
    far = engine.collection.metric == "l2"
    radius = float(np.quantile(everything.scores, 0.05 if far else 0.95))
    inside = everything.scores <= radius if far else everything.scores >= radius
    found = engine.search(QUERIES, 10_000, tier, filter, radius=radius)
    assert (found.scores[found.rows >= 0] <= radius).all() if far else (found.scores[found.rows >= 0] >= radius).all()
    true = np.where(inside, everything.rows, -1)
    assert recall(found.rows, true) >= (1.0 if tier == "exact" else 0.95)
    if tier == "exact":
        assert (found.rows >= 0).sum() == inside.sum()
    assert engine.search(QUERIES, 7, tier, filter, radius=radius).rows.shape[1] <= 7
    nothing = engine.search(QUERIES, 10, tier, filter, radius=-1.0 if far else 1e9)
    assert nothing.rows.shape == nothing.ids.shape == (len(QUERIES), 0)


def test_a_range_search_grows_no_further_than_it_must() -> None:
    asked = []

    def search(k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        return np.arange(k, dtype=np.float32)[None], np.arange(k)[None]

    assert grown(search, 10_000, 149.5, "l2")[1].shape == (1, 150) and asked == [100, 400]
    asked.clear()
    assert grown(search, 300, 1e9, "l2")[1].shape == (1, 300) and asked == [100, 300]


def test_levels_of_the_exact_scan(engine: SearchEngine) -> None:
    """A coarser level reads less and finds most; an index has no levels; a level that is not there is refused."""
    exact, coarse = engine.search(QUERIES, 10, "exact"), engine.search(QUERIES, 10, level=0)
    assert coarse.explain["tier"] == "exact" and coarse.explain["level"] == "0" and exact.explain["level"] == "exact"
    assert coarse.explain["bytes_read"] < exact.explain["bytes_read"]
    finest = max(level for level in engine.collection.levels if level != "exact")
    fine = recall(engine.search(QUERIES, 10, "exact", level=finest), exact)
    assert 0.05 < recall(coarse, exact) < fine and fine > 0.5
    with pytest.raises(HilbertflowError, match="no level 99"):
        engine.search(QUERIES, 10, "exact", level=99)
    with pytest.raises(HilbertflowError, match="level does not apply"):
        engine.search(QUERIES, 10, "hnsw", level=0)


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
def test_k_of_thousands_and_batches(engine: SearchEngine, tier: str) -> None:
    found = engine.search(QUERIES, 10_000, tier)
    assert found.rows.shape == (len(QUERIES), ROWS + 50)
    assert (np.sort(found.rows, axis=1) == np.arange(ROWS + 50)).all()
    one = engine.search(QUERIES[3], 5, tier)
    assert one.rows.shape == (1, 5)


@pytest.mark.parametrize(
    ("tier", "settings"), [("exact", {}), ("exact", {"level": 0}), ("ivfpq", {"nprobe": 3}), ("hnsw", {"ef": 50})]
)
def test_explain_tells_where_it_looked_and_what_it_took(
    engine: SearchEngine, tier: str, settings: dict[str, int]
) -> None:
    told = engine.search(QUERIES, 10, tier, **settings).explain
    assert told["tier"] == tier and told["reason"] and told["version"] == 1 and told["queries"] == len(QUERIES)
    assert told["rows_scanned"] > 0 and told["log_rows"] == 50
    assert set(told["seconds"]) == {"load", "filter", "search", "ids"}
    if tier == "exact":
        assert told["requests"] >= told["rounds"] >= 1 and told["bytes_read"] > 0
    else:
        assert told["level"] == "index" and settings.items() <= told["settings"].items() and told["rounds"] == 0
        assert (told["lists_probed"] > 0) == (tier == "ivfpq")
    json.dumps(told)


def test_recall_of_the_live_collection(engine: SearchEngine) -> None:
    """Of rows while nothing was asked, of what was asked later, of given queries; a poor setting shows."""
    fresh = SearchEngine.open(engine.collection.url)
    rows = fresh.estimate_recall("hnsw", count=32)
    assert rows.of == "rows" and rows.queries == 32 and rows.low <= rows.recall <= rows.high and rows.recall > 0.9
    assert fresh.estimate_recall("exact", count=16).recall == 1.0
    for query in QUERIES:
        fresh.search(query, 10, "hnsw")
    recent = fresh.estimate_recall("hnsw", count=16)
    assert recent.of == "recent" and recent.queries == 16
    given = fresh.estimate_recall("ivfpq", QUERIES, nprobe=1, refine=1)
    true = fresh.search(QUERIES, 10, "exact")
    assert given.recall == pytest.approx(recall(fresh.search(QUERIES, 10, "ivfpq", nprobe=1, refine=1), true), abs=1e-3)
    assert given.recall < 0.95
    with pytest.raises(HilbertflowError, match="count"):
        fresh.estimate_recall("hnsw", count=0)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.call(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_rows_by_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upsert a file in batches, search what it holds, send it again under its key, delete, say how many are left."""
    url = archive_vectors(tmp_path / "a", clustered(300, DIM), "l2", {"lines": np.arange(300)})
    vectors = clustered(30, DIM, seed=4)
    pq.write_table(
        pa.table(
            {
                "id": [f"row-{i}" for i in range(10)] + [f"neu-{i}" for i in range(20)],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
                "lines": np.arange(30),
            }
        ),
        tmp_path / "rows.parquet",
    )
    more = ("upsert", url, str(tmp_path / "rows.parquet"), "--key", "monday", "--batch", "16", "--json")
    code, out, err = call(capsys, *more)
    assert (code, err) == (0, "")
    assert {"rows": 30, "version": 2, "count": 320, "repeated": 0}.items() <= json.loads(out).items()
    assert {"version": 2, "repeated": 30}.items() <= json.loads(call(capsys, *more)[1]).items()
    np.save(tmp_path / "q.npy", vectors[25])
    code, out, err = call(capsys, "search", url, "--vector", f"{tmp_path}/q.npy", "-k", "3", "--json", "--explain")
    (answer,) = json.loads(out)["results"]
    assert answer["ids"][0] == "neu-15" and answer["explain"]["log_rows"] == 30
    code, out, err = call(capsys, "search", url, "--vector", f"{tmp_path}/q.npy", "--radius", "0.0001", "--explain")
    assert code == 0 and "neu-15" in out and "rounds" in out and "neu-14" not in out
    code, out, err = call(capsys, "search", url, "--id", "neu-15", "-k", "2", "--json")
    assert "neu-15" not in json.loads(out)["results"][0]["ids"]
    (tmp_path / "gone").write_text("neu-15\nnever\n")
    code, out, err = call(capsys, "delete", url, "--ids", str(tmp_path / "gone"), "--id", "row-299", "--json")
    assert {"deleted": 2, "asked": 3, "count": 318}.items() <= json.loads(out).items()
    code, out, err = call(capsys, "search", url, "--id", "neu-15")
    assert code == 1 and "no row has the id" in err and len(err.strip().splitlines()) == 1
    code, out, err = call(capsys, "upsert", url, str(tmp_path / "rows.parquet"), "--only-new")
    assert code == 1 and "exists" in err
    code, out, err = call(capsys, "upsert", url, str(tmp_path / "q.npy"))
    assert code == 1 and len(err.strip().splitlines()) == 1
