"""Duplicates, clusters, outliers and recommendations on truth that was planted, against brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from operators.errors import HilbertflowError
from pipelines.cli import call
from pipelines.uses.clusters import find_clusters
from pipelines.uses.duplicates import find_duplicates
from pipelines.uses.outliers import find_outliers
from pipelines.uses.recommend import recommend
from tests.collection_fixtures import F32, archive_vectors, clustered

DIM = 24


def components(near: Any) -> set[frozenset[int]]:
    """Connected components of two rows and more, of a (n, n) bool adjacency matrix."""
    root = np.arange(len(near))
    while True:  # every row takes the smallest root beside it, until none changes
        smaller = np.minimum(root, np.where(near, root, len(near)).min(axis=1))
        if (smaller == root).all():
            return {frozenset(np.flatnonzero(root == r).tolist()) for r in set(root) if (root == r).sum() > 1}
        root = smaller


def with_copies(rng: np.random.Generator) -> F32:
    """1,500 rows, 60 of them again with a little noise, a chain of steps, and four copies of one row to the byte."""
    rows = clustered(1500, DIM, seed=3, spread=0.6)
    again = rows[rng.choice(1500, 60, replace=False)] + 0.05 * rng.normal(size=(60, DIM))
    way = rng.normal(size=DIM)
    chain = [6 * rng.normal(size=DIM) + 0 * way]
    for _ in range(8):
        chain.append(chain[-1] + way / np.linalg.norm(way) * 0.8)
    return np.concatenate([rows, again, chain, np.repeat(rows[:1], 4, axis=0)]).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_duplicates_are_the_components_that_brute_force_finds(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(0)
    rows = with_copies(rng)[rng.permutation(1573)]
    url = archive_vectors(tmp_path, rows, metric)
    wide = rows.astype(np.float64)
    if metric == "l2":
        threshold = 0.7
        near = np.square(wide[:, None] - wide).sum(-1) <= threshold
    else:
        threshold = 0.99
        unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        near = unit @ unit.T >= threshold
    np.fill_diagonal(near, False)
    truth = components(near)
    found = find_duplicates(url, threshold, probes=0)
    assert {frozenset(group.positions.tolist()) for group in found.groups} == truth
    assert len(truth) > 40 and max(map(len, truth)) >= 5
    assert found.cut == 0 and found.compared < 1573**2 / 2
    assert found.spare == sum(len(group) - 1 for group in truth)
    few = find_duplicates(url, threshold, probes=2)
    assert few.compared < found.compared and few.spare >= 0.9 * found.spare
    for group in found.groups:
        assert group.positions[0] == group.positions.min()
        assert group.scores[0] == pytest.approx(0 if metric == "l2" else 1, abs=1e-6)


def test_duplicates_of_rows_that_are_all_alike_and_of_none(tmp_path: Path) -> None:
    same = archive_vectors(tmp_path / "same", np.ones((3000, 8), np.float32), "cosine")
    found = find_duplicates(same)
    assert len(found.groups) == 1 and len(found.groups[0].ids) == 3000 and found.pairs == 2999
    one = archive_vectors(tmp_path / "one", np.ones((1, 8), np.float32), "l2")
    assert find_duplicates(one, 1.0).groups == ()
    for threshold in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(HilbertflowError, match="threshold is"):
            find_duplicates(same, threshold)
    with pytest.raises(HilbertflowError, match="give --threshold"):
        find_duplicates(one)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_clusters_are_those_that_were_planted(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(1)
    centres, sizes = 4 * rng.normal(size=(7, DIM)), [600, 400, 300, 200, 100, 50, 30]
    label = rng.permutation(np.repeat(np.arange(7), sizes))
    rows = (centres[label] + 0.5 * rng.normal(size=(len(label), DIM))).astype(np.float32)
    url = archive_vectors(tmp_path, rows, metric)
    out = tmp_path / "clusters.parquet"
    found = find_clusters(url, 7, representatives=4, out=str(out))
    assert [c.size for c in found] == sizes
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == [f"row-{i}" for i in range(len(rows))]
    mine = table.column("cluster").to_numpy()
    for planted, c in enumerate(found):
        assert set(np.flatnonzero(mine == c.number)) == set(np.flatnonzero(label == planted))
        assert (label[c.positions] == planted).all() and len(c.ids) == 4
        scores = table.column("score").to_numpy()[mine == c.number]
        assert c.scores[0] == (scores.min() if metric == "l2" else scores.max())
        assert c.score == pytest.approx(float(scores.mean()), rel=1e-5)
    assert [c.ids for c in find_clusters(url, 7, representatives=4)] == [c.ids for c in found]
    assert sum(c.size for c in find_clusters(url, 1)) == len(rows)
    for k in (0, len(rows) + 1):
        with pytest.raises(HilbertflowError, match="clusters of"):
            find_clusters(url, k)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_outliers_are_those_of_brute_force(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(2)
    rows = clustered(1400, DIM, seed=5)
    planted = rng.choice(1400, 12, replace=False)
    rows[planted] = 8 * rng.normal(size=(12, DIM))
    url = archive_vectors(tmp_path, rows, metric)
    wide = rows.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    distance = np.square(wide[:, None] - wide).sum(-1)
    np.fill_diagonal(distance, np.inf)
    mean = np.sort(distance, axis=1)[:, :5].mean(axis=1)
    found = find_outliers(url, 12, neighbours=5)
    assert set(found.positions) == set(planted) and found.exact
    assert found.positions.tolist() == np.argsort(-mean)[:12].tolist()
    expected = mean[found.positions] if metric == "l2" else 1 - mean[found.positions] / 2
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)
    assert found.nearest == tuple(f"row-{i}" for i in distance[found.positions].argmin(axis=1))
    assert found.candidates < 1400 / 4
    assert len(find_outliers(url, 1400, neighbours=5).ids) == 1400
    with pytest.raises(HilbertflowError, match="count is 0"):
        find_outliers(url, 0)


@pytest.fixture(scope="module")
def tastes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five tight clusters of 200 rows in order, one of them in two halves that differ in a direction of their own."""
    rng = np.random.default_rng(4)
    centres = 3 * rng.normal(size=(5, DIM))
    rows = np.repeat(centres, 200, axis=0) + 0.15 * rng.normal(size=(1000, DIM))
    rows[900:] += 0.4 * centres[0] - 0.4 * centres[1]
    url = archive_vectors(
        tmp_path_factory.mktemp("tastes"), rows.astype(np.float32), "cosine",
        {"taste": np.arange(1000) // 200, "first_line": [f"taste {i // 200}" for i in range(1000)]},
    )  # fmt: skip
    build_indexes(url, ["hnsw"], actors=0)
    return url


def numbers(ids: tuple[str, ...]) -> Any:
    return np.array([int(name.removeprefix("row-")) for name in ids])


@pytest.mark.parametrize("tier", ["exact", "hnsw", None])
def test_recommendations_of_two_tastes(tastes: str, tier: str | None) -> None:
    found = recommend(tastes, ["row-5", "row-405"], k=300, tier=tier)
    rows, because = numbers(found.ids), numbers(found.because)
    assert set(rows // 200) == {0, 2} and not {5, 405} & set(rows)
    assert (because // 200 == rows // 200).all() and set(because) == {5, 405}
    assert found.metadata.column("taste").to_pylist() == (rows // 200).tolist()
    assert np.bincount(rows // 200).tolist() == [150, 0, 150]
    assert all((np.diff(found.scores[because == one]) <= 0).all() for one in (5, 405))
    assert set(because[:2]) == {5, 405} and found.scores[0] >= found.scores[1]


def test_recommendations_keep_away_from_what_is_disliked(tastes: str) -> None:
    plain = numbers(recommend(tastes, ["row-850"], k=150).ids)
    assert (plain >= 900).any()
    away = numbers(recommend(tastes, ["row-850"], ["row-950"], k=90).ids)
    assert ((away >= 800) & (away < 900)).all() and len(away) == 90
    some = numbers(recommend(tastes, ["row-5", "row-405"], k=20, filter="taste == 2").ids)
    assert set(some // 200) == {2} and len(some) == 20
    assert len(recommend(tastes, ["row-5"], k=10_000).ids) == 999
    assert recommend(tastes, ["row-5"], filter="taste > 9").ids == ()


def test_recommendations_refuse(tastes: str) -> None:
    for like, unlike, says in (
        ([], [], "0 liked"), (["row-1"], ["row-1"], "liked and disliked"), (["nobody"], [], "no row has the id"),
    ):  # fmt: skip
        with pytest.raises(HilbertflowError, match=says):
            recommend(tastes, like, unlike)
    with pytest.raises(HilbertflowError, match="not a list of ids"):
        recommend(tastes, "row-5")
    for k in (0, -3, 10**9, 1.5):
        with pytest.raises(HilbertflowError, match=f"k is {k}"):
            recommend(tastes, ["row-5"], k=k)  # type: ignore[arg-type]


def test_commands(tastes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*arguments: str) -> str:
        assert call(list(arguments)) == 0
        return capsys.readouterr().out

    told = json.loads(asked("duplicates", tastes, "--threshold", "0.999", "--json"))
    assert told["rows"] == 1000 and told["threshold"] == 0.999
    text = asked("duplicates", tastes, "--threshold", "0.9", "--show", "1")
    assert "group" in text and "taste 0" in text and "rows are spare" in text
    told = json.loads(asked("clusters", tastes, "-k", "5", "--json"))
    assert sorted(c["rows"] for c in told["clusters"]) == [200] * 5
    assert all(len(c["representatives"]["ids"]) == 3 for c in told["clusters"])
    assert "share" in asked("clusters", tastes, "-k", "2", "--out", str(tmp_path / "c.parquet"))
    told = json.loads(asked("outliers", tastes, "-n", "3", "--json"))
    assert len(told["ids"]) == len(told["nearest"]) == 3 and told["exact"]
    assert "nearest" in asked("outliers", tastes, "-n", "3")
    told = json.loads(asked("recommend", tastes, "--like", "row-5", "--unlike", "row-205", "-k", "4", "--json"))
    assert len(told["ids"]) == 4 and set(told["because"]) == {"row-5"}
    assert "because" in asked("recommend", tastes, "--like", "row-5")
    for wrong in (["outliers", tastes, "-n", "0"], ["recommend", tastes], ["clusters", tastes, "-k", "0"]):
        assert call(wrong) == 2
    capsys.readouterr()
    assert call(["recommend", tastes, "--like", "nobody"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_rows_that_changed_since_are_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(600, DIM)).astype(np.float32)
    rows[100] = rows[7] + 0.01
    url = archive_vectors(tmp_path, rows, "cosine")
    assert {group.ids for group in find_duplicates(url).groups} == {("row-7", "row-100")}
    engine = SearchEngine.open(url)
    engine.upsert(["row-100", "new", "far"], [rows[20], rows[7], -rows[:50].mean(axis=0) + 3 * rng.normal(size=DIM)])
    engine.delete(["row-30"])
    found = find_duplicates(url)
    assert {group.ids for group in found.groups} == {("row-20", "row-100"), ("row-7", "new")} and found.rows == 601
    out = tmp_path / "clusters.parquet"
    assert sum(c.size for c in find_clusters(url, 3, out=str(out))) == 601
    ids = pq.read_table(out).column("id").to_pylist()
    assert len(set(ids)) == 601 and {"new", "far"} <= set(ids) and "row-30" not in ids
    assert len(find_outliers(url, 600, neighbours=3).ids) == 600
    assert recommend(url, ["new"], k=1).ids == ("row-7",) and recommend(url, ["row-100"], k=1).ids == ("row-20",)
    with pytest.raises(HilbertflowError, match="no row has the id 'row-30'"):
        recommend(url, ["row-30"])
