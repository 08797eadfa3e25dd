"""The index that chooses itself: by recall and memory, held to on queries that it has not seen."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.autotune import choose_index, is_chosen
from cluster.build import build_indexes, open_collection
from cluster.engine import SearchEngine
from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind, Overrides
from cluster.index_store import current_builds, current_choice, indexes_of, load_index
from cluster.ivfpq import IvfPq
from cluster.results import recall
from cluster.shard import Shard
from cluster.tune import Questions
from operators.errors import HilbertflowError
from pipelines.cli import app
from pipelines.recipe import Recipe
from pipelines.run import run_here
from tests.collection_fixtures import archive_vectors, clustered

HELD_BY_SHARDS = """
import ctypes, gc, sys
from cluster.build import open_collection
from cluster.index_store import current_builds, indexes_of
from cluster.shard import Shard

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Told = type("Mallinfo", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in FIELDS]})
library = ctypes.CDLL("libc.so.6")
library.mallinfo2.restype = Told

def given_out():
    gc.collect()
    told = library.mallinfo2()
    return told.uordblks + told.hblkhd

collection = open_collection(sys.argv[1])
build = current_builds(indexes_of(collection))[sys.argv[2]]
Shard.load(collection, build, 0)  # what is compiled and opened once is not the index's
before = given_out()
shards = [Shard.load(collection, build, number) for number in range(build.kind.shards)]
print(given_out() - before)
"""
ROWS, DIM = 4500, 48
FRESH = clustered(400, DIM, seed=77, centres=400, spread=0.8)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of many wide clusters, so that no setting finds everything."""
    return archive_vectors(tmp_path_factory.mktemp("auto"), clustered(ROWS, DIM, centres=400, spread=0.8), "ip")


def reached(url: str) -> tuple[str, float]:
    """The tier that answers, and its recall@10 on fresh queries."""
    engine = SearchEngine.open(url)
    tier = str(current_choice(indexes_of(engine.collection))["tier"])  # type: ignore[index]
    found = engine.search(FRESH, 10, None if tier != "cold" else "cold")
    assert found.explain["tier"] == tier
    return tier, recall(found, engine.search(FRESH, 10, "exact"))


@pytest.mark.parametrize(
    ("memory", "tier", "kept"),
    [(None, "hnsw", "fp16"), (1_200_000, "hnsw", "sq8"), (600_000, "ivfpq", None), (1_000, "cold", "the archive")],
)
def test_the_fastest_that_fits_is_taken_and_holds_on_fresh_queries(
    url: str, memory: int | None, tier: str, kept: str | None
) -> None:
    """Within .01 of the target on queries that tuning has not seen; what it holds in memory fits."""
    choose_index(url, target_recall=0.95, memory=memory, actors=0)
    taken, found = reached(url)
    assert taken == tier
    assert found >= 0.94
    collection = open_collection(url)
    chosen = current_choice(indexes_of(collection))
    assert chosen is not None
    (trial,) = [trial for trial in chosen["trials"] if trial.get("chosen")]
    assert kept is None or trial["kept"] == kept
    assert memory is None or all(t["bytes"] > memory for t in chosen["trials"] if not t["fits"])
    for build in current_builds(indexes_of(collection)).values():
        shard = Shard.load(collection, build, 0)
        resident = getattr(shard.index, "bytes", build.bytes)
        assert 0.97 * resident <= trial["bytes"] <= 1.25 * resident
    assert choose_index(url, target_recall=0.95, memory=memory, actors=0) == {}
    assert is_chosen(collection, 0.95, memory, 1) and not is_chosen(collection, 0.9, memory, 1)


def test_a_wider_search_costs_more_in_two_shards_too(url: str) -> None:
    """A shard without a query's nearest lists reads the next ones, not all of its rows; the cheapest setting is few
    lists, as with one shard.
    """
    kind = IvfPq(shards=2, target_recall=0.9)
    build_indexes(url, [kind], actors=0)
    collection = open_collection(url)
    build = current_builds(indexes_of(collection))["ivfpq"]
    alone = [(t["nprobe"], t["kilobytes"]) for t in build.trials if t["refine"] == 2]
    assert all(more >= 0.98 * less for (_, less), (_, more) in itertools.pairwise(alone))
    queries = Questions.of(collection).queries
    for number in range(2):
        shard = Shard.load(collection, build, number)
        _, rows, effort = shard.search(queries, 10, Overrides(nprobe=1))
        assert (rows >= 0).all()
        assert effort.rows_scanned < len(queries) * (shard.stop - shard.start) / 4


@pytest.mark.parametrize("kind", [IvfPq(), IvfPq(refine="sq8", shards=2), Hnsw(), Hnsw(store="sq8", shards=2)])
def test_the_memory_that_is_told_is_what_the_allocator_holds(url: str, kind: IndexKind) -> None:
    """At least, and a tenth less at most: centroids and axes of every shard, and what FAISS rounds up, are counted."""
    build_indexes(url, [kind], actors=0)
    collection = open_collection(url)
    build = current_builds(indexes_of(collection))[kind.kind]
    told = build.kind.resident(load_index(indexes_of(collection), build.artefact_file), build.count, build.dim)
    # A process of its own: in this one, what threads of other tests give back would be counted as the index's.
    held = int(subprocess.check_output([sys.executable, "-c", HELD_BY_SHARDS, url, kind.kind], text=True))
    assert 0.9 * told <= held <= 1.03 * told


def test_a_row_does_not_lead_to_its_own_neighbours(url: str) -> None:
    """Rows asked as queries are found as hard as queries from elsewhere: their own links are not followed."""
    build = build_indexes(url, [Hnsw(links=8, ef_construction=40)], actors=0).get("hnsw")
    collection = open_collection(url)
    shard = Shard.load(collection, build or current_builds(indexes_of(collection))["hnsw"], 0)
    asked = Questions.of(collection)
    with_links = asked.recall(shard.search(asked.queries, 11, Overrides(ef=12, refine=2))[1])
    without = asked.recall(shard.search(asked.queries, 11, Overrides(ef=12, refine=2), own=asked.own)[1])
    assert without < with_links


def test_the_recipe_and_what_info_tells(tmp_path: Path) -> None:
    """`index: {target_recall, memory}` chooses; `info` shows what was tried."""
    vectors = clustered(5000, 32)
    np.save(tmp_path / "v.npy", vectors)
    body = {
        "name": "v", "source": {"kind": "vectors", "path": str(tmp_path / "v.npy")},
        "operators": [{"kind": "row_blocks"}, {"kind": "row_code"}, {"kind": "frame_encode", "coder": "rans"}],
        "sink": {"path": str(tmp_path / "a")}, "index": {"target_recall": 0.9, "memory": "200MB"},
    }  # fmt: skip
    report = run_here(Recipe.model_validate_json(json.dumps(body)), indexes=True)
    assert report.indexes == ("hnsw",)
    assert run_here(Recipe.model_validate_json(json.dumps(body)), indexes=True).indexes == ()
    said = CliRunner().invoke(app, ["info", report.url]).output
    assert "tried for recall@10 of 0.9 in 200 MB" in said and "chosen" in said
    told = json.loads(CliRunner().invoke(app, ["info", report.url, "--json"]).output)
    assert told["chosen"]["memory"] == 200_000_000 and told["chosen"]["trials"][0]["recall"] >= 0.9
    SearchEngine.open(report.url).delete(["7", "8"])  # the estimate is of the rows as they stand
    measured = json.loads(CliRunner().invoke(app, ["info", report.url, "--recall", "--json"]).output)["recall"]
    assert set(measured) == {"cold", "hnsw"}
    for tier in measured.values():
        assert 0.85 < tier["low"] <= tier["recall"] <= tier["high"] <= 1 and (tier["queries"], tier["k"]) == (64, 10)
    assert "95 % interval" in CliRunner().invoke(app, ["info", report.url, "--recall"]).output


def test_memory_is_for_auto_only(tmp_path: Path) -> None:
    """A kind that is named has the memory that it has."""
    body = {
        "name": "v", "source": {"kind": "vectors", "path": "v.npy"},
        "operators": [{"kind": "row_blocks"}, {"kind": "row_code"}, {"kind": "frame_encode"}],
        "sink": {"path": "a"}, "index": {"kind": "hnsw", "memory": "200MB"},
    }  # fmt: skip
    with pytest.raises((HilbertflowError, ValueError), match="takes what memory it takes"):
        Recipe.model_validate_json(json.dumps(body))
