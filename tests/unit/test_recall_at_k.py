"""Recall as more rows are asked for than settings were tuned for: it holds, unless the caller says how hard to look."""

from __future__ import annotations

import pytest

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.hnsw import Hnsw
from cluster.index_kind import Overrides
from cluster.ivfpq import IvfPq
from cluster.probing import lists_for
from cluster.results import recall
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 8000, 24
QUERIES = clustered(40, DIM, seed=9, centres=400, spread=0.8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SearchEngine:
    """Rows of many wide clusters, whose nearest 1,000 lie in many lists, in two shards."""
    vectors = clustered(ROWS, DIM, centres=400, spread=0.8)
    url = archive_vectors(tmp_path_factory.mktemp("many"), vectors)
    build_indexes(url, ["ivfpq", "hnsw"], shards=2, target_recall=0.95, actors=0)
    return SearchEngine.open(url)


@pytest.mark.parametrize("tier", ["ivfpq", "hnsw"])
@pytest.mark.parametrize("k", [100, 1000])
def test_recall_holds_as_k_grows(engine: SearchEngine, tier: str, k: int) -> None:
    """Within .03 of what it was tuned to at 10; explain shows the settings that were in force."""
    found = engine.search(QUERIES, k, tier)
    assert recall(found, engine.search(QUERIES, k, "exact")) >= 0.92
    tuned = engine.builds[tier].tuned.given()
    assert found.explain["settings"].items() != tuned.items()
    assert all(value >= tuned[name] for name, value in found.explain["settings"].items())
    assert engine.search(QUERIES, 10, tier).explain["settings"] == tuned


@pytest.mark.parametrize("k", [100, 1000])
def test_recall_in_place_holds_too(engine: SearchEngine, k: int) -> None:
    """By exact scores, so that lists alone decide; a caller's `nprobe` stands."""
    few, many, every = (engine.search(QUERIES, n, tier, **asked) for n, tier, asked in
                        ((10, "cold", {"level": 3}), (k, "cold", {"level": 3}), (k, "exact", {})))  # fmt: skip
    assert recall(many, every) >= recall(few, engine.search(QUERIES, 10, "exact")) - 0.03
    assert many.explain["lists_probed"] > few.explain["lists_probed"]
    asked = engine.search(QUERIES, k, "cold", level=3, nprobe=1)
    assert asked.explain["lists_probed"] < many.explain["lists_probed"]


def test_what_the_caller_asks_for_is_what_is_done(engine: SearchEngine) -> None:
    """`nprobe` and `ef` of a query stand at any k."""
    found, tuned = engine.search(QUERIES, 100, "ivfpq", nprobe=3), engine.search(QUERIES, 100, "ivfpq")
    assert found.explain["settings"]["nprobe"] == 3
    assert found.explain["lists_probed"] < tuned.explain["lists_probed"]
    assert engine.search(QUERIES, 100, "hnsw", ef=7).explain["settings"]["ef"] == 7


def test_lists_grow_more_slowly_than_k_and_have_room_for_it() -> None:
    """As the root of k beside the rows of a list; never more lists than there are, never fewer than were tuned."""
    assert [lists_for(20, k, 367, 60_000) for k in (1, 10, 100, 1000)] == [20, 20, 28, 69]
    assert lists_for(5, 1000, 134, 8000) == 50
    assert lists_for(5, 10_000, 134, 8000) == 134
    assert [lists_for(n, 11, 1000, 8000) for n in (1, 2, 4, 8)] == [1, 2, 4, 8]  # where a query leaves its own row out
    assert lists_for(1, 1000, 1, 8000) == 1


def test_kinds_widen_only_what_is_set() -> None:
    """None stays the kind's own default; candidates are a multiple of k as it is."""
    assert IvfPq(lists=134).for_rows(Overrides(refine=2), 1000, 8000) == Overrides(refine=2)
    assert IvfPq(lists=134).for_rows(Overrides(nprobe=5, refine=2), 1000, 8000) == Overrides(nprobe=50, refine=2)
    assert Hnsw().for_rows(Overrides(ef=22, refine=2), 1000, 8000) == Overrides(ef=1248, refine=2)
    assert Hnsw().for_rows(Overrides(ef=22), 10, 8000) == Overrides(ef=22)
    assert Hnsw().for_rows(Overrides(refine=2), 100, 8000) == Overrides(refine=2)
