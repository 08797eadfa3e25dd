"""The cold tier against the exact scan: recall, filters, levels, what it reads, and damage met on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cluster.cold import Cold
from cluster.cold_plan import plan
from cluster.engine import SearchEngine
from cluster.index_kind import Overrides
from cluster.results import recall
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 6000, 24
FADING = np.float32(0.8) ** np.arange(DIM, dtype=np.float32)  # directions matter less and less, as in embeddings
VECTORS = clustered(ROWS, DIM, centres=300) * FADING
QUERIES = clustered(40, DIM, seed=7, centres=300) * FADING
COLUMNS = {"colour": ["red" if i % 2 else "blue" for i in range(ROWS)], "size": list(range(ROWS))}


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    root = tmp_path_factory.mktemp(request.param)
    return SearchEngine.open(archive_vectors(root, VECTORS, request.param, COLUMNS), cache=0)


def test_recall_and_what_is_read(engine: SearchEngine) -> None:
    oracle, found = engine.search(QUERIES, 10, "exact"), engine.search(QUERIES, 10, "cold")
    assert recall(found, oracle) >= 0.95
    told = found.explain
    assert told["tier"] == "cold" and told["rounds"] == 3 and told["level"] == "level2"
    assert told["lists_probed"] > 0 and 0 < told["rows_scanned"] < oracle.explain["rows_scanned"]
    alone = engine.search(QUERIES[:1], 10, "cold")
    assert alone.rows.tolist() == found.rows[:1].tolist()  # whoever is asked beside it
    assert 0 < alone.explain["bytes_read"] < told["bytes_read"] < len(QUERIES) * alone.explain["bytes_read"]
    assert set(told["seconds"]) == {"load", "filter", "search", "ids"}
    order = np.sort(found.scores, axis=1)
    np.testing.assert_array_equal(found.scores, order if engine.collection.metric == "l2" else order[:, ::-1])


def test_levels_are_ever_nearer_and_the_last_is_exact(engine: SearchEngine) -> None:
    oracle = engine.search(QUERIES, 10, "exact")
    reached = [recall(engine.search(QUERIES, 10, "cold", level=level), oracle) for level in range(4)]
    assert reached[0] < reached[1] < reached[2] <= reached[3] + 0.02
    rounds = [engine.search(QUERIES[:1], 10, "cold", level=level).explain["rounds"] for level in range(4)]
    assert rounds == [1, 2, 3, 3]
    exact = engine.search(QUERIES, 10, "cold", level=3, nprobe=10_000, refine=1000)
    np.testing.assert_array_equal(exact.rows, oracle.rows)
    np.testing.assert_array_equal(exact.scores, oracle.scores)
    with pytest.raises(HilbertflowError, match=r"no level 4.*0 to 3"):
        engine.search(QUERIES, 10, "cold", level=4)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_filters_find_k_rows_whenever_k_match(engine: SearchEngine, share: float) -> None:
    rule = f"size < {int(ROWS * share)}"
    oracle, found = (engine.search(QUERIES, 10, tier, rule) for tier in ("exact", "cold"))
    assert found.rows.shape == oracle.rows.shape == (len(QUERIES), min(10, int(ROWS * share)))
    assert (found.rows >= 0).all() and recall(found, oracle) >= 0.95
    assert not engine.search(QUERIES, 10, "cold", "size < 0").rows.size


def test_ids_of_large_collections_come_with_the_answer(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    known = engine.search(QUERIES, 10, "cold")
    monkeypatch.setattr("cluster.cold.HELD_IDS", 0)
    other = SearchEngine.open(engine.collection.url)
    found = other.search(QUERIES, 10, "cold")
    assert found.ids.tolist() == known.ids.tolist() and found.explain["rounds"] == 3
    rows = engine.collection.metadata(found.rows.reshape(-1)).column("id").to_pylist()
    assert found.ids.reshape(-1).tolist() == rows


def test_more_rows_than_lists_hold(engine: SearchEngine) -> None:
    found = engine.search(QUERIES[:2], ROWS + 5, "cold", nprobe=1)
    assert found.rows.shape == (2, ROWS) and np.array_equal(np.sort(found.rows[0]), np.arange(ROWS))
    assert len(set(engine.search(QUERIES[:1], 500, "cold", nprobe=1).rows[0].tolist())) == 500


def test_rows_that_changed(tmp_path: Path) -> None:
    engine = SearchEngine.open(archive_vectors(tmp_path, VECTORS, "l2", COLUMNS))
    best = engine.search(QUERIES[:1], 3, "cold")
    engine.delete([best.ids[0, 0]])
    engine.upsert(["new"], QUERIES[:1])
    now = engine.search(QUERIES[:1], 3, "cold")
    assert now.ids[0].tolist() == ["new", *best.ids[0, 1:].tolist()]


def test_groups_of_shards_answer_as_one(engine: SearchEngine) -> None:
    cold, count = Cold(engine.collection), engine.collection.count
    halves = [cold.search(QUERIES, 10, Overrides(), None, span)[1] for span in ((0, count // 2), (count // 2, count))]
    oracle = engine.search(QUERIES, 10, "exact").rows
    assert recall(np.concatenate(halves, axis=1), oracle) >= 0.95


def test_auto_takes_it_where_comparing_every_row_would_take_long(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.tiers == ("exact", "cold")
    assert engine.search(QUERIES[:1], 5).explain["tier"] == "exact"
    assert engine.search(QUERIES[:1], 5, nprobe=4).explain["tier"] == "cold"
    monkeypatch.setattr("cluster.planner.SCAN_BYTES", 1000)
    told = engine.search(QUERIES[:1], 5).explain
    assert told["tier"] == "cold" and "no index" in told["reason"]
    with pytest.raises(HilbertflowError, match="ef does not apply to tier 'cold'"):
        engine.search(QUERIES, 5, "cold", ef=5)


def test_without_lists_there_is_no_cold_tier(tmp_path: Path) -> None:
    engine = SearchEngine.open(archive_vectors(tmp_path, VECTORS[:300]))
    assert engine.tiers == ("exact",)
    with pytest.raises(HilbertflowError, match=r"lie in lists.*there is exact"):
        engine.search(QUERIES, 5, "cold")


def test_damage_and_loss_while_reading(tmp_path: Path) -> None:
    url = archive_vectors(tmp_path, VECTORS, "l2")
    engine = SearchEngine.open(url, cache=0)
    assert engine.search(QUERIES, 5, "cold").rows.shape == (len(QUERIES), 5)
    objects = [path for path in Path(url, "level1", "c").rglob("*") if path.is_file()]
    for path in objects:
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:])
    with pytest.raises(HilbertflowError, match=r"level1.*damaged in chunk \d+.*verify"):
        engine.search(QUERIES, 5, "cold", nprobe=1000, refine=1000)
    for path in objects:
        path.unlink()
    with pytest.raises(HilbertflowError, match=r"level1.*does not exist"):
        engine.search(QUERIES, 5, "cold")
    assert engine.search(QUERIES, 5, "cold", level=0).rows.shape == (len(QUERIES), 5)


def test_a_plan_takes_three_steps_at_most() -> None:
    assert plan(0, 3) == (("level0",),)
    assert plan(2, 3) == (("level0",), ("level1",), ("level2",))
    assert plan(3, 3) == (("level0",), ("level1",), ("level2", "cells", "exact"))
    assert plan(4, 5) == (("level0",), ("level1",), ("level2", "level3", "level4"))
    assert plan(1, 1) == (("level0",), ("cells", "exact"))
    assert all(len(plan(level, depth)) <= 3 for depth in range(1, 8) for level in range(depth + 1))


def test_settings_are_asked_over_tuned_over_usual(engine: SearchEngine) -> None:
    cold = Cold(engine.collection, Overrides(nprobe=5, refine=3))
    found = dataclasses.asdict(cold.settings(Overrides(refine=9), 10))
    assert (found["nprobe"], found["refine"], found["level"]) == (5, 9, 2)


def test_rows_outside_a_radius_are_not_answered(engine: SearchEngine) -> None:
    """Exact scores decide, unless a level is asked for."""
    everything = engine.search(QUERIES, ROWS, "exact")
    far = engine.collection.metric == "l2"
    radius = float(np.quantile(everything.scores, 0.01 if far else 0.99))
    found = engine.search(QUERIES, 200, "cold", radius=radius)
    assert found.explain["level"] == "exact" and (found.rows >= 0).sum() > 100
    for rows, numbers, scores in zip(found.rows, everything.rows, everything.scores, strict=True):
        within = set(numbers[scores <= radius if far else scores >= radius].tolist())
        assert set(rows[rows >= 0].tolist()) <= within
    assert engine.search(QUERIES, 200, "cold", radius=radius, level=1).explain["level"] == "level1"
