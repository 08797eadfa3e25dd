"""The search engine over an archived collection: tiers, planner, filters, and everything that cannot be asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.build import build_indexes, build_name, open_collection
from cluster.engine import SearchEngine
from cluster.hnsw import Hnsw
from cluster.index_store import current_builds, current_names, indexes_of
from cluster.ivfpq import IvfPq
from cluster.results import recall
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 4000, 16
QUERIES = clustered(40, DIM, seed=9)
COLUMNS = {"lines": np.arange(ROWS) % 100, "package": [f"p{i % 7}" for i in range(ROWS)]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """4,000 rows with metadata, both indexes in two shards, tuned."""
    url = archive_vectors(tmp_path_factory.mktemp("engine"), clustered(ROWS, DIM), "cosine", COLUMNS)
    build_indexes(url, ["ivfpq", "hnsw"], shards=2, target_recall=0.95, actors=0)
    return url


@pytest.fixture(scope="module")
def engine(url: str) -> SearchEngine:
    """Opened once."""
    return SearchEngine.open(url)


def test_every_tier_answers_like_the_oracle(engine: SearchEngine) -> None:
    """Ids, rows and scores of one shape; tuned tiers reach their target on fresh queries; the planner says why."""
    oracle = engine.search(QUERIES, 10, "exact")
    assert oracle.ids[0].tolist() == [f"row-{row}" for row in oracle.rows[0]]
    assert engine.tiers == ("exact", "ivfpq", "hnsw")
    for tier in ("ivfpq", "hnsw", None, "auto"):
        found = engine.search(QUERIES, 10, tier)
        assert found.ids.shape == found.rows.shape == found.scores.shape == (len(QUERIES), 10)
        assert not found.partial
        assert recall(found, oracle) >= 0.94
        assert found.explain["tier"] in ("ivfpq", "hnsw")
        assert 0 < found.explain["rows_scanned"] < oracle.explain["rows_scanned"] == len(QUERIES) * ROWS
        assert set(found.explain["seconds"]) == {"load", "filter", "search", "ids"}
    assert oracle.explain["bytes_read"] > ROWS
    assert engine.search(QUERIES, 10, "ivfpq").explain["lists_probed"] > 0
    assert "recall@10" in engine.search(QUERIES, 10).explain["reason"]


def test_the_exact_level_has_its_name_in_python_too(engine: SearchEngine) -> None:
    """`level="exact"` is the number behind the last lossy level."""
    number = len(engine.collection.levels) - 1
    named, numbered = (engine.search(QUERIES, 5, "exact", level=level) for level in ("exact", number))
    assert (named.rows == numbered.rows).all() and named.explain["level"] == "exact"
    assert engine.estimate_recall("exact", QUERIES, level="exact").recall == 1.0
    with pytest.raises(HilbertflowError, match="level is 'exakt'"):
        engine.search(QUERIES, 5, "exact", level="exakt")


@pytest.mark.parametrize(("metric", "length"), [("l2", 1e19), ("l2", 3e38), ("ip", 3e38)])
def test_a_query_whose_scores_would_be_infinite_is_refused(tmp_path: Path, metric: str, length: float) -> None:
    """Told before any row is compared, with the query's number; lengths below give finite scores."""
    engine = SearchEngine.open(archive_vectors(tmp_path, clustered(300, DIM), metric))
    one = np.full((1, DIM), DIM**-0.5, np.float32)
    with pytest.raises(HilbertflowError, match=r"search, query 1: the query has length .* scale it to"):
        engine.search(np.concatenate([one, one * np.float32(length)]), 3, "exact")
    assert np.isfinite(engine.search(one * np.float32(1e17 if metric == "l2" else 1e29), 3, "exact").scores).all()


def test_overrides_choose_the_tier_that_takes_them(engine: SearchEngine) -> None:
    """Without a tier, `ef` means the graph and `nprobe` the lists."""
    assert engine.search(QUERIES, 10, ef=99).explain["tier"] == "hnsw"
    assert engine.search(QUERIES, 10, nprobe=3).explain["tier"] == "ivfpq"


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("lines < 50", 2000),
        ('lines == 7 and package == "p0"', 6),
        ("lines > 1000", 0),
        ('id in ["row-5", "row-17"]', 2),
        ("package != 'p1'", 3428),
        ("lines == 50", 40),
    ],
)
def test_filters_are_pushed_down(engine: SearchEngine, tier: str, text: str, matching: int) -> None:
    """k rows whenever k match, fewer only when fewer match; recall against the filtered oracle."""
    oracle, found = engine.search(QUERIES, 10, "exact", text), engine.search(QUERIES, 10, tier, text)
    assert found.rows.shape == (len(QUERIES), min(10, matching))
    assert recall(found, oracle) >= 0.95
    everything = engine.search(QUERIES[:1], 10_000, "exact", text).rows[0]
    assert len(everything) == matching
    assert np.isin(found.rows, everything).all()


@pytest.mark.parametrize("tier", ["exact", "ivfpq", "hnsw"])
def test_k_beyond_the_rows_gives_all_of_them(engine: SearchEngine, tier: str) -> None:
    """k = 10,000 of 4,000 rows: every row once, best first."""
    found = engine.search(QUERIES[:2], 10_000, tier)
    assert (np.sort(found.rows, axis=1) == np.arange(ROWS)).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_one_vector_is_one_query(engine: SearchEngine) -> None:
    """(dim,), other number types and non-contiguous arrays are taken as they are."""
    expected = engine.search(QUERIES[:1], 5).rows
    for form in (QUERIES[0], QUERIES[0].tolist(), QUERIES[:1].astype(np.float64), np.asfortranarray(QUERIES)[:1]):
        assert np.array_equal(engine.search(form, 5).rows, expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "k is 0"), ({"k": 10_001}, "k is 10001"), ({"k": -3}, "k is -3"), ({"k": 2.5}, "k is 2.5"),
        ({"k": True}, "k is True"), ({"tier": "warp"}, "unknown tier 'warp'"), ({"tier": "hnws"}, "choose hnsw"),
        ({"tier": "cold"}, "tier 'cold' needs.*there is exact, ivfpq, hnsw"),
        ({"tier": "exact", "ef": 3}, "ef does not apply"),
        ({"tier": "hnsw", "nprobe": 3}, "nprobe does not apply.*it has ef"), ({"ef": 0}, "ef is 0"),
        ({"ef": 3, "nprobe": 3}, "no tier that is built takes ef and nprobe"), ({"probe": 3}, "there is nprobe"),
        ({"filter": "pakage == 3"}, "did you mean 'package'"), ({"filter": "open('x')"}, "is not a comparison"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(engine: SearchEngine, asked: dict[str, Any], message: str) -> None:
    """One clear line each; nothing is searched."""
    with pytest.raises(HilbertflowError, match=message) as caught:
        engine.search(QUERIES, **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "queries",
    [
        np.zeros((2, DIM + 1)), np.zeros(DIM - 1), np.zeros((1, 2, DIM)), np.full((1, DIM), np.nan),
        np.full((1, DIM), np.inf), np.full((1, DIM), 1e300), [["a"] * DIM], [[1.0] * DIM, [1.0]], None, "text",
        np.zeros((1, DIM), complex), np.zeros((0,)),
    ],
    ids=lambda q: str(getattr(q, "shape", type(q).__name__)),
)  # fmt: skip
def test_bad_vectors(engine: SearchEngine, queries: Any) -> None:
    """Other dimensions, NaN, infinities (also those that appear in float32 only), no numbers."""
    with pytest.raises(HilbertflowError):
        engine.search(queries)


def test_rows_that_are_not_there_and_caches_that_cannot_be(engine: SearchEngine) -> None:
    count = engine.collection.count
    for ask in (engine.take, engine.metadata):
        for rows in ([count], [-1], [10**12], [0, 10**9]):
            with pytest.raises(HilbertflowError, match=rf"there is no row .*there are {count}"):
                ask(np.array(rows))
        for odd in ([0.5], [True, False], 3, [[1, 2]]):
            with pytest.raises(HilbertflowError, match="whole numbers in one dimension"):
                ask(np.array(odd))
        assert len(ask(np.array([]))) == 0  # type: ignore[arg-type]
    for cache in (-1, 1.5, None, "1MB", True):
        with pytest.raises(HilbertflowError, match="cache is"):
            SearchEngine.open(engine.collection.url, cache=cache)  # type: ignore[arg-type]


def test_no_queries_give_no_answers(engine: SearchEngine) -> None:
    """An empty batch is answered by an empty result in every tier."""
    for tier in engine.tiers:
        assert engine.search(np.zeros((0, DIM), np.float32), 5, tier).rows.shape == (0, 5)


def test_without_an_index_every_row_is_compared(tmp_path: Path) -> None:
    """A bare archive answers; tiers that are not built are refused with what there is."""
    vectors = clustered(50, 4)
    engine = SearchEngine.open(archive_vectors(tmp_path, vectors))
    found = engine.search(vectors[7], 3)
    assert found.ids[0, 0] == "row-7"
    assert found.scores[0, 0] == 0.0
    assert found.explain["tier"] == "exact"
    with pytest.raises(HilbertflowError, match=r"'hnsw' is not built.*there is exact"):
        engine.search(vectors[7], 3, "hnsw")


def test_equal_rows_rank_by_row_number(tmp_path: Path) -> None:
    """Copies of one vector score alike, in every tier, and come in order of row."""
    vectors = np.repeat(clustered(10, 8), 30, axis=0)
    url = archive_vectors(tmp_path, vectors)
    build_indexes(url, ["ivfpq", "hnsw"], shards=3, actors=0)
    engine = SearchEngine.open(url)
    for tier in engine.tiers:
        rows = engine.search(vectors[65], 30, tier).rows[0]
        assert rows.tolist() == list(range(60, 90))


def test_ids_of_any_text(tmp_path: Path) -> None:
    """Long, empty-looking, right-to-left and composed ids come back as they went in."""
    ids = ["x" * 10_000, "  ", "עברית", "e\u0301", "é", "a\nb", "😀", "'; DROP TABLE rows", "<script>", "0"]
    vectors = clustered(len(ids), 4)
    engine = SearchEngine.open(archive_vectors(tmp_path, vectors, ids=ids))
    assert [engine.search(vector, 1).ids[0, 0] for vector in vectors] == ids


@pytest.mark.parametrize("warm", [False, True])
def test_a_collection_that_is_deleted_while_it_is_read(tmp_path: Path, warm: bool) -> None:
    """Every tier answers from what it holds or says in one line what is missing; so do changes and a new reader."""
    vectors = clustered(4200, 12)
    url = archive_vectors(tmp_path, vectors, "l2", {"lines": np.arange(4200)})
    build_indexes(url, ["ivfpq", "hnsw"], shards=2, actors=0)
    engine = SearchEngine.open(url)
    if warm:
        for tier in engine.tiers:
            engine.search(vectors[:2], 3, tier)
    shutil.rmtree(url)
    answered = []
    for tier in ("exact", "cold", "ivfpq", "hnsw"):
        for rule in (None, "lines > 7"):
            try:
                found = engine.search(vectors[:2], 3, tier, rule)
            except HilbertflowError as error:
                assert "\n" not in str(error) and "rows" in str(error)
            else:
                numbers = [int(name[4:]) for name in found.ids.reshape(-1)]
                assert warm and (min(numbers) > 7 if rule else numbers[::3] == [0, 1])
                answered.append(tier)
    assert "exact" not in answered and (warm or "cold" not in answered)  # it may hold the chunks that it read
    with pytest.raises(HilbertflowError, match=r"was removed.*archive it again|does not exist"):
        engine.delete(["row-1"])
    with pytest.raises(HilbertflowError) as caught:
        SearchEngine.open(url)
    assert "\n" not in str(caught.value) and not Path(url).exists()


def test_an_index_of_other_rows_is_not_used(url: str, tmp_path: Path) -> None:
    """Index files of another collection are stale: the planner passes over them, a query that insists is refused."""
    other = archive_vectors(tmp_path, clustered(ROWS, DIM, seed=77), "cosine")
    shutil.copytree(Path(url) / "indexes", Path(other) / "indexes")
    engine = SearchEngine.open(other)
    assert engine.tiers == ("exact",)
    assert engine.search(QUERIES, 3).explain["tier"] == "exact"
    with pytest.raises(HilbertflowError, match="not over the rows as they are now"):
        engine.search(QUERIES, 3, "hnsw")


def test_building_again_does_nothing(url: str) -> None:
    """The second call finds the build and returns no new one; other options make another build beside it."""
    assert build_indexes(url, ["ivfpq", "hnsw"], shards=2, target_recall=0.95, actors=0) == {}
    before = current_names(indexes_of(open_collection(url)))
    made = build_indexes(url, [Hnsw(shards=1, links=8)], actors=0)
    after = current_names(indexes_of(open_collection(url)))
    assert list(made) == ["hnsw"]
    assert after["ivfpq"] == before["ivfpq"]
    assert after["hnsw"] != before["hnsw"]
    back = build_indexes(url, ["hnsw"], shards=2, target_recall=0.95, actors=0)
    assert back["hnsw"].build == before["hnsw"]


def test_tuning_takes_the_cheapest_that_reaches_the_target(url: str) -> None:
    """The trials are recorded; the chosen one reaches the target with its margin and nothing cheaper does."""
    for build in current_builds(indexes_of(open_collection(url))).values():
        if build.kind.target_recall is None:
            continue
        (chosen,) = [trial for trial in build.trials if trial.get("chosen")]
        assert chosen["recall"] >= 0.96
        assert build.tuned.given().items() <= chosen.items()
        assert not [t for t in build.trials if t["recall"] >= 0.96 and t["kilobytes"] < chosen["kilobytes"]]


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    """Shards that are whole are kept, the rest is made, and the bytes are those of a build in one go."""
    url = archive_vectors(tmp_path, clustered(700, 8))
    kind = IvfPq(shards=3)
    name = build_name(open_collection(url), kind)
    folder = Path(url) / "indexes" / name

    class Stop(RuntimeError):
        pass

    def stop(_: str, done: int, __: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        build_indexes(url, [kind], actors=0, progress=stop)
    kept = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("shard-*.faiss")}
    assert len(kept) == 2
    assert SearchEngine.open(url).tiers == ("exact",)
    build_indexes(url, [kind], actors=0)
    assert {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in kept} == kept
    whole = {path.name: path.read_bytes() for path in folder.glob("*.faiss")}
    shutil.rmtree(Path(url) / "indexes")
    build_indexes(url, [kind], actors=0)
    assert {path.name: path.read_bytes() for path in folder.glob("*.faiss")} == whole
    assert len(whole) == 4
    assert SearchEngine.open(url).tiers == ("exact", "ivfpq")


def test_only_collections_are_indexed(tmp_path: Path) -> None:
    """A missing archive is named."""
    with pytest.raises(HilbertflowError, match="no archive here"):
        build_indexes(str(tmp_path), ["hnsw"])
    with pytest.raises(HilbertflowError, match="no archive here"):
        SearchEngine.open(str(tmp_path / "nothing"))
