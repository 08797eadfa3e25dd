"""Chunks that a search in place has read are not read again, within a bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.chunk_cache import ENTRY_BYTES, ChunkCache
from cluster.cold import Cold
from cluster.engine import SearchEngine
from cluster.index_kind import Overrides
from cluster.level_pool import LevelPool
from tests.collection_fixtures import archive_vectors, clustered

VECTORS, QUERIES = clustered(6000, 16), clustered(40, 16, seed=7)  # more than a group of queries


def test_what_is_kept_is_bounded_and_what_was_used_last() -> None:
    asked: list[dict[str, list[int]]] = []
    cache = ChunkCache(3 * (100 + ENTRY_BYTES))

    def get(cache: ChunkCache, **wanted: list[int]) -> None:
        given = {name: np.array(chunks, np.int64) for name, chunks in wanted.items()}
        read = cache.absent(given)
        asked.append({name: chunks.tolist() for name, chunks in read.items()})
        came = {name: [bytes([chunk]) * 100 for chunk in chunks.tolist()] for name, chunks in read.items()}
        found = cache.complete(given, read, came)
        assert found == {name: [bytes([chunk]) * 100 for chunk in chunks] for name, chunks in wanted.items()}

    get(cache, cells=[1, 2])
    get(cache, cells=[2, 1], exact=[1])
    assert asked == [{"cells": [1, 2]}, {"exact": [1]}] and cache.hits == 2
    get(cache, cells=[2])
    get(cache, cells=[9])  # in the place of the one that was used longest ago
    get(cache, cells=[1, 2, 9], exact=[1])
    assert asked[2:] == [{}, {"cells": [9]}, {"cells": [1]}] and cache.hits == 6
    get(cache, cells=list(range(20, 60)))  # more than it keeps
    get(cache, cells=list(range(57, 60)))
    assert asked[6] == {} and cache.hits == 9
    nothing = ChunkCache(0)
    for _ in range(2):
        get(nothing, cells=[1])
    assert asked[7:] == [{"cells": [1]}] * 2


@pytest.mark.parametrize("slots", [0, 3, 10, 25, 39, 50])
def test_a_pool_gives_the_rows_of_chunks_whatever_it_keeps(slots: int) -> None:
    """Against a dictionary: short chunks, chunks read beside those wanted, wide values, room for none, some or all."""
    rng = np.random.default_rng(slots)
    heights = rng.integers(1, 5, 40)
    rows = {chunk: rng.integers(-90, 90, (heights[chunk], 6)).astype(np.int8) for chunk in range(40)}
    rows[7] = rows[7].astype(np.int16) * 100  # never fits
    pool = LevelPool(40, 4, 6, np.int8, slots * 4 * 6)
    assert pool.limit == min(slots, 40) * 4 * 6
    for step in range(200):
        wanted = np.sort(rng.choice(40, rng.integers(1, 20), replace=False))
        absent = pool.absent(wanted)
        assert not slots or step or len(absent) == len(wanted)
        spare = pool.absent(np.setdiff1d(np.arange(40), wanted)[: rng.integers(0, 3)])
        read = np.sort(np.concatenate([absent, spare if len(absent) else spare[:0]]))
        came = np.concatenate([np.empty((0, 6), np.int8), *(rows[chunk] for chunk in read)])
        found = pool.complete(wanted, heights[wanted], read, heights[read], came)
        np.testing.assert_array_equal(found, np.concatenate([rows[chunk] for chunk in wanted]))
        if slots >= 39:
            assert set(pool.absent(read).tolist()) <= {7}  # beside it the others are kept
    assert 40 - len(pool.absent(np.arange(40))) == min(slots, 39)


def test_a_pool_keeps_what_was_used_last() -> None:
    pool, one = LevelPool(9, 1, 1, np.int8, 2), np.ones(1, np.int64)
    for chunk in (1, 2, 1, 3):
        read = pool.absent(np.array([chunk]))
        pool.complete(np.array([chunk]), one, read, one[: len(read)], np.full((len(read), 1), chunk, np.int8))
    assert pool.absent(np.arange(9)).tolist() == [0, 2, 4, 5, 6, 7, 8]


def test_a_query_that_was_asked_before_reads_nothing(tmp_path: Path) -> None:
    """The same answers, at every level; rounds, requests and bytes tell it, and how many chunks were kept."""
    url = archive_vectors(tmp_path, VECTORS, "l2")
    engine, without, little, some = (SearchEngine.open(url, cache=cache) for cache in (128 << 20, 0, 20_000, 150_000))
    for level in range(engine.collection.code.depth + 1):
        expected = without.search(QUERIES, 10, "cold", level=level)
        first, again = (engine.search(QUERIES, 10, "cold", level=level) for _ in range(2))
        others = (bounded.search(QUERIES, 10, "cold", level=level) for bounded in (little, some) for _ in range(2))
        for found in (first, again, *others):
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_array_equal(found.scores, expected.scores)
            assert found.ids.tolist() == expected.ids.tolist()
        told = again.explain
        assert (told["rounds"], told["requests"], told["bytes_read"]) == (0, 0, 0) and told["cache_hits"] > 0
        assert without.search(QUERIES, 10, "cold", level=level).explain["bytes_read"] > 0


def test_only_later_searches_read_over_more(tmp_path: Path) -> None:
    """What is read over is kept: queries that go on need fewer requests than with the first one's gap.

    Not where a level cannot be kept whole: then they read no more than those that keep nothing.
    """
    collection = SearchEngine.open(archive_vectors(tmp_path, VECTORS, "l2")).collection
    every = Cold(collection), Cold(collection, cache=0), Cold(collection, cache=30_000)
    first = [cold.search(QUERIES[:1], 10, Overrides())[2] for cold in every]
    assert len({(effort.requests, effort.bytes_read) for effort in first}) == 1
    later = [[cold.search(query[None], 10, Overrides())[2] for query in QUERIES[1:]] for cold in every]
    requests, read, hits = (
        [sum(getattr(effort, name) for effort in efforts) for efforts in later]
        for name in ("requests", "bytes_read", "cache_hits")
    )
    assert requests[0] < requests[1] / 2 and read[0] < read[1] and hits[0] > 0 == hits[1]
    assert hits[2] > 0 and requests[2] > requests[0] and read[2] < read[1]
