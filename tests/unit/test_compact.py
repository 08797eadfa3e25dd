"""Compaction: what stood stands, readers of the old archive read on, a stopped one goes on, two do no harm."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

import cluster.engine
import pipelines.run
from cluster.build import build_indexes
from cluster.engine import SearchEngine
from operators.errors import HilbertflowError
from pipelines import cli
from pipelines.compact import compact_recipe
from pipelines.restore import restore
from pipelines.run import run_here
from storage import archive, catalog
from storage.collection_rows import CollectionRows
from storage.rowlog import RowLog, View
from storage.verify import verify
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 1500, 8
QUERIES = clustered(10, DIM, seed=3)


def standing(view: View) -> dict[str, tuple[list[float], int | None]]:
    """Vector and metadata of every row that stands, by id."""
    rows = np.concatenate([np.setdiff1d(np.arange(view.base.count), view.gone), view.base.count + view.live])
    table = view.table(rows)
    pairs = zip(view.take(rows).tolist(), table.column("lines").to_pylist(), strict=True)
    return dict(zip(table.column("id").to_pylist(), pairs, strict=True))


def changed(folder: Path, metric: str = "l2") -> str:
    """A collection with rows replaced, deleted and new."""
    url = archive_vectors(folder, clustered(ROWS, DIM), metric, {"lines": np.arange(ROWS)}, rows_per_unit=512)
    log = RowLog(archive.open(url))
    log.upsert([f"row-{i}" for i in range(0, 300, 3)], clustered(100, DIM, seed=5), {"lines": np.arange(100)}, key="k")
    log.delete([f"row-{i}" for i in range(1000, 1100)])
    log.append([f"new-{i}" for i in range(70)], clustered(70, DIM, seed=6))
    return url


def compact(url: str) -> Any:
    handle = archive.open(url)
    return run_here(compact_recipe(handle, RowLog(handle).home))


def test_a_log_of_many_batches_is_read_after_compactions(tmp_path: Path) -> None:
    """Ten and more, whose numbers sort otherwise as texts; those that an earlier writer summed by number too."""
    url = archive_vectors(tmp_path, clustered(64, DIM), "l2")
    log = RowLog(archive.open(url))
    for i in range(12):
        log.upsert([f"new-{i}"], clustered(1, DIM, seed=i), key=f"k-{i}")
    compact(url)
    assert RowLog(archive.open(url)).view.count == 76
    (path,) = Path(url).glob("log/base-*.json")
    body = json.loads(path.read_text())["body"]
    by_number = body | {"nonces": {int(version): nonce for version, nonce in body["nonces"].items()}}
    assert len(by_number["nonces"]) == 12
    digest = hashlib.sha256(json.dumps(by_number, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "body": body}))
    assert RowLog(archive.open(url)).view.count == 76
    body["nonces"]["3"] = "0" * 16
    path.write_text(json.dumps({"sha256": digest, "body": body}))
    with pytest.raises(HilbertflowError, match="damaged"):
        RowLog(archive.open(url)).view  # noqa: B018 - read


@pytest.mark.parametrize("order", ["lists", "source"])
def test_what_stands_is_restored(tmp_path: Path, order: str) -> None:
    """With the log and, after a compaction, without: rows that went are not there, rows that came are."""
    rows = 4500 if order == "lists" else ROWS  # lists from 4,096 on
    url = archive_vectors(tmp_path, clustered(rows, DIM), "l2", {"lines": np.arange(rows)}, rows_per_unit=2048)
    assert archive.open(url).sorted == (order == "lists")
    log = RowLog(archive.open(url))
    log.upsert(["row-7", "new"], clustered(2, DIM, seed=5), {"lines": [-1, -2]})
    log.delete(["row-0", *(f"row-{i}" for i in range(100, 900)), "nobody"])
    stood = standing(RowLog(archive.open(url)).view)
    for out in ("before", "after"):
        restore(url, str(tmp_path / f"{out}.parquet"))
        restore(url, str(tmp_path / f"{out}.npy"))
        table = pq.read_table(tmp_path / f"{out}.parquet")
        vectors = np.load(tmp_path / f"{out}.npy")
        assert {
            row["id"]: (vector, row["lines"]) for row, vector in zip(table.to_pylist(), vectors.tolist(), strict=True)
        } == stood
        assert np.array_equal(np.stack(table.column("vector").to_numpy()), vectors)
        assert table.column("id").to_pylist()[-2:] == ["row-7", "new"]
        if out == "before":
            restore(url, str(tmp_path / "level.npy"), level=0)
            compact(url)
    coarse = np.load(tmp_path / "level.npy")
    assert coarse.shape == vectors.shape and np.array_equal(coarse[-2:], vectors[-2:])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_what_stood_stands_bit_for_bit(tmp_path: Path, metric: str) -> None:
    """Also after more changes and a second compaction; versions go on; keys are remembered; nothing is damaged."""
    url = changed(tmp_path, metric)
    engine, stood = SearchEngine.open(url), standing(RowLog(archive.open(url)).view)
    assert engine.version == 3
    held = engine._set.view
    build_indexes(url, ["hnsw"], actors=0)
    report = compact(url)
    assert standing(held) == stood  # the old archive is still read
    now = RowLog(archive.open(url))
    assert now.version == 3 and now.view.base.url == report.url != held.base.url
    assert standing(now.view) == stood and not now.view.changed and len(stood) == ROWS - 100 + 70
    assert now.upsert(["row-0"], np.ones((1, DIM)), key="new").version == 4
    assert now.upsert([f"row-{i}" for i in range(0, 300, 3)], clustered(100, DIM, seed=5),
                      {"lines": np.arange(100)}, key="k").repeated  # fmt: skip
    old = engine.search(QUERIES, 5, "exact")
    assert engine.refresh() and engine.version == 4 and engine.collection.url == report.url
    assert engine.search(QUERIES, 5, "exact").ids.shape == old.ids.shape
    stood = standing(now.view)
    second = compact(url)
    assert second.url != report.url and standing(RowLog(archive.open(url)).view) == stood
    assert verify(archive.open(url).place).sound and verify(archive.open_exactly(url).place).sound
    (row,) = catalog.ls(str(tmp_path / "archives"))
    assert row["name"] == "rows"
    assert sorted(path.name for path in Path(url, "log").glob("*.arrow")) == ["00000004.arrow"]


def test_a_stopped_compaction_goes_on_at_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written meanwhile comes after it; until it is whole the old archive is the collection."""
    url = changed(tmp_path)
    real, left = pipelines.run._carry_out_here, 1

    def stops(step: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(step)

    monkeypatch.setattr(pipelines.run, "_carry_out_here", stops)
    monkeypatch.setattr(pipelines.run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        compact(url)
    monkeypatch.undo()
    log = RowLog(archive.open(url))
    assert log.view.base.url == url
    log.upsert(["row-1"], np.ones((1, DIM)))
    stood = standing(log.view)
    compact(url)
    now = RowLog(archive.open(url)).view
    assert "/generations/00000003-" in now.base.url and now.version == 4 and len(now.live) == 1
    assert standing(now) == stood
    assert len(list(Path(url, "generations").iterdir())) == 1


def test_an_engine_that_looks_after_a_compaction_sees_the_rows_as_they_are(tmp_path: Path) -> None:
    """Opened before it, first asked after it: no row that was deleted, each that was put in."""
    url = changed(tmp_path)
    engine, numbered = SearchEngine.open(url), SearchEngine.open(url)
    compact(url)
    gone, new = clustered(ROWS, DIM)[1000], clustered(70, DIM, seed=6)[:1]
    assert engine.search(gone, 1, "exact").ids[0, 0] != "row-1000"
    assert engine.search(new, 1, "exact").ids[0, 0] == "new-0"
    rows = numbered.rows(["row-1000", "new-0"])
    assert rows[0] == -1 and np.array_equal(numbered.take(rows[1:]), new)
    assert not engine.refresh() and not numbered.refresh()


def test_a_first_look_that_fails_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not answered from the archive as it was before all changes."""
    url = changed(tmp_path)
    engine, gone = SearchEngine.open(url), clustered(ROWS, DIM)[1000]
    compact(url)
    with monkeypatch.context() as patched:
        patched.setattr(cluster.engine, "current_builds", Mock(side_effect=HilbertflowError("no answer")))
        with pytest.raises(HilbertflowError, match="no answer"):
            engine.search(gone, 1, "exact")
    assert engine.search(gone, 1, "exact").ids[0, 0] != "row-1000"


def test_looking_tells_whether_there_was_something(tmp_path: Path) -> None:
    url = changed(tmp_path)
    engine = SearchEngine.open(url)
    assert not engine.refresh() and not engine.refresh()
    SearchEngine.open(url).delete(["row-5"])
    assert engine.refresh() and not engine.refresh()
    compact(url)
    assert engine.refresh() and not engine.refresh()


def test_of_two_compactions_one_counts(tmp_path: Path) -> None:
    """The same rows give the same archive; an older one that ends later is told so."""
    url = changed(tmp_path)
    handle = archive.open(url)
    early = compact_recipe(handle, RowLog(handle).home)
    early = early.model_copy(update={"source": early.source.model_copy(update={"version": 2})})
    compact(url)
    with pytest.raises(HilbertflowError, match=r"took its place|faster"):
        run_here(early)
    assert RowLog(archive.open(url)).version == 3


def test_the_rows_of_a_collection_are_a_source(tmp_path: Path) -> None:
    """Any range gives the rows of those places; a copy under another name has the same rows."""
    url = changed(tmp_path)
    source = CollectionRows.of(archive.open(url))
    whole = source.read(0, source.count)
    assert len(set(whole.column("id").to_pylist())) == source.count == ROWS - 30
    for start, stop in ((0, 1), (5, 1000), (880, 1120), (1390, 1470), (1460, 1470), (7, 7)):
        assert source.read(start, stop).equals(whole.slice(start, stop - start).combine_chunks()) or (
            source.read(start, stop).to_pylist() == whole.slice(start, stop - start).to_pylist()
        )
    handle = archive.open(url)
    recipe = compact_recipe(handle, RowLog(handle).home)
    copy = run_here(recipe.model_copy(update={"sink": recipe.sink.model_copy(update={"name": "copy"})}))
    assert standing(RowLog(archive.open(copy.url)).view) == standing(RowLog(handle).view)
    RowLog(handle).delete(whole.column("id"))
    with pytest.raises(HilbertflowError, match="every row"):
        compact(url)


def test_compact_says_when_the_old_archive_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not at once: it may still be read."""
    assert cli.call(["compact", changed(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "removes it once 1 h have passed, with `--grace HOURS` sooner" in said


def test_compact_and_gc_by_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Indexes are built again before the swap; gc takes the old archive away and leaves the new one whole."""
    url = changed(tmp_path)
    build_indexes(url, ["hnsw"], actors=0)
    stood = standing(RowLog(archive.open(url)).view)
    assert cli.call(["compact", url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["compacted"], told["version"], told["count"], told["indexes"]) == (True, 3, ROWS - 30, ["hnsw"])
    engine = SearchEngine.open(url)
    assert engine.tiers[-1] == "hnsw" and engine.search(QUERIES, 5).explain["tier"] == "hnsw"
    assert cli.call(["compact", url]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.call(["gc", url, "--json"]) == 0  # within the grace nothing goes
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert Path(url, "level0").exists()
    assert cli.call(["gc", url, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "compacted less than 1 h ago" in said and "nothing to remove" in said
    assert cli.call(["gc", url, "--grace", "0"]) == 0
    assert not any(path.is_file() for path in Path(url, "level0").rglob("*"))
    assert standing(RowLog(archive.open(url)).view) == stood and verify(archive.open(url).place).sound
    assert SearchEngine.open(url).search(QUERIES, 5, "hnsw").ids.shape == (len(QUERIES), 5)
    assert cli.call(["cp", url, str(tmp_path / "copied")]) == 0
    there = str(tmp_path / "copied" / "collections" / "rows")
    assert standing(RowLog(archive.open(there)).view) == stood
