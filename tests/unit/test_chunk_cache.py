"""Chunks that a search in place has read are not read again, within a bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.chunk_cache import ENTRY_BYTES, ChunkCache
from cluster.engine import SearchEngine
from cluster.vectors import I64
from tests.collection_fixtures import archive_vectors, clustered


def test_what_is_kept_is_bounded_and_what_was_used_last() -> None:
    asked: list[dict[str, list[int]]] = []

    def fetch(wanted: Mapping[str, I64]) -> dict[str, list[bytes]]:
        asked.append({name: chunks.tolist() for name, chunks in wanted.items()})
        return {name: [bytes([chunk]) * 100 for chunk in chunks.tolist()] for name, chunks in wanted.items()}

    cache = ChunkCache(3 * (100 + ENTRY_BYTES))

    def get(**wanted: list[int]) -> None:
        given = {name: np.array(chunks, np.int64) for name, chunks in wanted.items()}
        found = cache.fetched(given, fetch)
        assert found == {name: [bytes([chunk]) * 100 for chunk in chunks] for name, chunks in wanted.items()}

    get(level0=[1, 2])
    get(level0=[2, 1], level1=[1])
    assert asked == [{"level0": [1, 2]}, {"level1": [1]}] and cache.hits == 2
    get(level0=[2])
    get(level0=[9])  # in the place of the one that was used longest ago
    get(level0=[1, 2, 9], level1=[1])
    assert asked[2:] == [{"level0": [9]}, {"level0": [1]}] and cache.hits == 6
    get(level0=list(range(20, 60)))  # more than it keeps
    get(level0=list(range(57, 60)))
    assert len(asked) == 5 and cache.hits == 9
    nothing = ChunkCache(0)
    for _ in range(2):
        nothing.fetched({"level0": np.array([1])}, fetch)
    assert asked[5:] == [{"level0": [1]}] * 2


def test_a_query_that_was_asked_before_reads_nothing(tmp_path: Path) -> None:
    """The same answers; rounds, requests and bytes tell it, and how many chunks were kept."""
    vectors, queries = clustered(6000, 16), clustered(40, 16, seed=7)  # more than a group of queries
    url = archive_vectors(tmp_path, vectors, "l2")
    engine, without = SearchEngine.open(url), SearchEngine.open(url, cache=0)
    expected = without.search(queries, 10, "cold")
    first, again = (engine.search(queries, 10, "cold") for _ in range(2))
    for found in (first, again, without.search(queries, 10, "cold")):
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.ids.tolist() == expected.ids.tolist()
    told = again.explain
    assert (told["rounds"], told["requests"], told["bytes_read"]) == (0, 0, 0) and told["cache_hits"] > 0
    assert without.search(queries, 10, "cold").explain["bytes_read"] > 0
