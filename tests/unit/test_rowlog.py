"""The log of changes: nothing lost, nothing doubled, one order for all, damage told."""

from __future__ import annotations

import multiprocessing
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from operators.errors import HilbertflowError
from storage import archive
from storage.batches import MAX_ID, checked, read_batch
from storage.fs import Location
from storage.rowlog import RowLog, View
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 600, 8
LINES = pa.schema([("id", pa.string()), ("lines", pa.int64())])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("made")
    return archive_vectors(folder, clustered(ROWS, DIM), columns={"lines": np.arange(ROWS)}, rows_per_unit=256)


@pytest.fixture
def url(made: str, tmp_path: Path) -> str:
    """A copy to write to."""
    import shutil

    shutil.copytree(Path(made), tmp_path / "collections" / "rows", ignore=shutil.ignore_patterns("log"))
    return str(tmp_path / "collections" / "rows")


def standing(view: View) -> dict[str, list[float]]:
    """Every row that stands, by id."""
    base = np.setdiff1d(np.arange(view.base.count), view.gone)
    rows = np.concatenate([base, view.base.count + view.live])
    names = view.table(rows).column("id").to_pylist()
    assert len(set(names)) == len(names) == view.count
    return dict(zip(names, view.take(rows).tolist(), strict=True))


def test_random_changes_are_what_a_dict_would_hold(url: str) -> None:
    """Upserts, appends and deletes in any order; a second reader, a third that follows and the writer agree."""
    writer, follower = RowLog(archive.open(url)), RowLog(archive.open(url))
    model, rng = standing(writer.view), random.Random(5)
    for step in range(40):
        names = rng.sample([f"row-{i}" for i in range(0, ROWS, 20)] + [f"new-{i}" for i in range(20)], 4)
        vectors = np.random.default_rng(step).normal(size=(4, DIM)).astype(np.float32)
        match rng.choice(["upsert", "append", "delete"]):
            case "upsert":
                writer.upsert(names, vectors)
                model |= dict(zip(names, vectors.tolist(), strict=True))
            case "append":
                if any(name in model for name in names):
                    with pytest.raises(HilbertflowError, match="exists"):
                        writer.append(names, vectors)
                else:
                    writer.append(names, vectors)
                    model |= dict(zip(names, vectors.tolist(), strict=True))
            case "delete":
                writer.delete(names)
                for name in names:
                    model.pop(name, None)
        if step % 7 == 0:
            follower.refresh()
    follower.refresh()
    assert standing(writer.view) == standing(follower.view) == standing(RowLog(archive.open(url)).view) == model
    rows = writer.rows(["row-1", "never", *model])
    assert rows[0] == 1 and rows[1] == -1 and (rows[2:] >= 0).all()


def test_a_view_never_changes_and_a_refresh_reads_new_batches_only(url: str) -> None:
    """Rows of an old view are as they were; following costs the new batch's bytes, and one listing when none is new."""
    writer, reader = RowLog(archive.open(url)), RowLog(archive.open(url))
    writer.upsert([f"x-{i}" for i in range(500)], clustered(500, DIM), {"lines": np.arange(500)})
    reader.refresh()
    old = reader.view
    before = standing(old)
    writer.upsert(["x-3", "row-3"], np.ones((2, DIM)))
    writer.delete(["x-4"])
    traffic = reader.home.traffic
    read, asked = traffic.bytes_read, traffic.requests
    assert reader.refresh() and reader.version == 3
    assert traffic.bytes_read - read < 6000
    read, asked = traffic.bytes_read, traffic.requests
    assert not reader.refresh()
    assert (traffic.bytes_read - read, traffic.requests - asked) == (0, 1)
    assert standing(old) == before and old.version == 1
    assert standing(reader.view)["x-3"] == [1.0] * DIM and "x-4" not in standing(reader.view)


def test_a_key_makes_a_batch_count_once(url: str) -> None:
    """Also from another process's view of the log; the key with other rows is refused."""
    first = RowLog(archive.open(url)).upsert(["a"], np.ones((1, DIM)), key="k")
    again = RowLog(archive.open(url)).upsert(["a"], np.ones((1, DIM)), key="k")
    assert (first.version, first.repeated, again.version, again.repeated) == (1, False, 1, True)
    with pytest.raises(HilbertflowError, match="other rows"):
        RowLog(archive.open(url)).upsert(["a"], np.zeros((1, DIM)), key="k")
    assert RowLog(archive.open(url)).version == 1


def _write(url: str, who: int, count: int) -> None:
    log = RowLog(archive.open(url))
    for i in range(count):
        log.upsert([f"{who}-{i}", "shared"], np.full((2, DIM), who * 100 + i))


def test_writers_in_threads_and_processes_lose_nothing(url: str) -> None:
    """Every batch of every writer is there once, in one order."""
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_write, args=(url, 9, 6))
    other.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda who: _write(url, who, 6), range(4)))
    other.join(120)
    assert other.exitcode == 0
    view = RowLog(archive.open(url)).view
    assert view.version == 30
    assert {f"{who}-{i}" for who in (0, 1, 2, 3, 9) for i in range(6)} <= set(standing(view))
    assert not list(Path(url).rglob("*.hfpart"))


def test_damage_is_told(url: str) -> None:
    """A flipped byte anywhere, a missing batch, a batch of another history: never rows, always the object's name."""
    log = RowLog(archive.open(url))
    for i in range(3):
        log.upsert([f"n{i}"], np.ones((1, DIM)))
    path = Path(url) / "log" / "00000002.arrow"
    whole = path.read_bytes()
    for at in random.Random(1).sample(range(len(whole)), 24):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(HilbertflowError, match=r"00000002\.arrow"):
            RowLog(archive.open(url)).refresh()
    for cut in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(HilbertflowError, match=r"00000002\.arrow"):
            RowLog(archive.open(url)).refresh()
    path.unlink()
    with pytest.raises(HilbertflowError, match="missing"):
        RowLog(archive.open(url)).refresh()
    path.write_bytes((Path(url) / "log" / "00000001.arrow").read_bytes())
    with pytest.raises(HilbertflowError, match="not the batch"):
        RowLog(archive.open(url)).refresh()
    path.write_bytes(whole)
    assert RowLog(archive.open(url)).version == 3


def test_a_damaged_index_of_ids_is_made_again(url: str) -> None:
    RowLog(archive.open(url)).delete(["row-7"])
    (path,) = Path(url).glob("log/ids-*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert RowLog(archive.open(url)).view.gone.tolist() == [7]


@pytest.mark.parametrize("name", ["x" * MAX_ID, "\U0001f40d ␀\0\n\"'", "../../etc", "ÅÅ", "\u202eright"])
def test_ids_of_any_text(url: str, name: str) -> None:
    """10,000 characters, any Unicode: written, found, deleted."""
    log = RowLog(archive.open(url))
    log.upsert([name], np.ones((1, DIM)))
    assert RowLog(archive.open(url)).rows([name]).tolist() == [ROWS]
    log.delete([name])
    assert RowLog(archive.open(url)).rows([name]).tolist() == [-1]


BAD: list[tuple[str, Any, Any, Any]] = [
    ("longer than", ["x" * (MAX_ID + 1)], np.ones((1, DIM)), None),
    ("empty", [""], np.ones((1, DIM)), None),
    ("valid Unicode", ["\ud800"], np.ones((1, DIM)), None),
    ("valid Unicode", [3], np.ones((1, DIM)), None),
    ("missing", [None], np.ones((1, DIM)), None),
    ("twice", ["a", "a"], np.ones((2, DIM)), None),
    ("no rows", [], np.ones((0, DIM)), None),
    ("shape", ["a"], np.ones((1, DIM + 1)), None),
    ("shape", ["a", "b"], np.ones((1, DIM)), None),
    ("holds nan", ["a"], np.full((1, DIM), np.nan), None),
    ("holds inf", ["a"], np.full((1, DIM), 1e300), None),
    ("numbers", ["a"], [["x"] * DIM], None),
    ("did|has lines", ["a"], np.ones((1, DIM)), {"linez": [1]}),
    ("does not fit", ["a"], np.ones((1, DIM)), {"lines": ["many"]}),
    ("rows of metadata", ["a"], np.ones((1, DIM)), {"lines": [1, 2]}),
]


@pytest.mark.parametrize(("said", "ids", "vectors", "metadata"), BAD)
def test_what_cannot_be_kept_is_refused_whole(url: str, said: str, ids: Any, vectors: Any, metadata: Any) -> None:
    log = RowLog(archive.open(url))
    with pytest.raises(HilbertflowError, match=said):
        log.upsert(ids, vectors, metadata)
    assert log.version == 0 and not (Path(url) / "log").exists()
    with pytest.raises(HilbertflowError, match="key"):
        log.upsert(["a"], np.ones((1, DIM)), key="x" * 999)


def test_the_file_of_a_batch_is_an_arrow_stream() -> None:
    """Stock Arrow reads the rows; so do we, with every type of column as the collection has it."""
    from storage.batches import Head

    batch = checked("upsert", ["a", "b"], np.arange(2 * DIM).reshape(2, DIM), {"lines": [1, None]}, DIM, LINES)
    stream = batch.stream()
    import hashlib

    head = Head(1, "upsert", 2, "", hashlib.sha256(stream).hexdigest(), len(stream), "", "n")
    data = stream + head.dump()
    table = pa.ipc.open_stream(data).read_all()
    assert table.column_names == ["id", "vector", "lines"] and table.column("lines").to_pylist() == [1, None]
    told, back = read_batch(data, DIM, LINES, "here")
    assert told == head and back.ids.equals(batch.ids) and back.metadata.equals(batch.metadata)
    np.testing.assert_array_equal(back.vectors, batch.vectors)


def test_a_store_that_replaces_objects_is_refused(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without conditional puts two writers would lose batches: said before anything is lost."""
    place = Location(f"memory://{uuid.uuid4().hex}/collections/rows")
    for path in Location(made).list():
        place.write_atomic(path, Location(made).read(path))
    honest = MemoryFileSystem.pipe_file
    log = RowLog(archive.open(place.url))
    log.upsert(["a"], np.ones((1, DIM)))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value, mode="": honest(self, path, value))
    with pytest.raises(HilbertflowError, match="conditional puts"):
        RowLog(archive.open(place.url)).upsert(["b"], np.ones((1, DIM)))
    assert RowLog(archive.open(place.url)).version == 1


def test_a_lost_answer_is_no_lost_batch(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store did it and its answer was lost: the writer finds its own batch and does not write it twice."""
    real = Location.create_new

    def forgetful(self: Location, path: str, data: bytes) -> bool:
        made = real(self, path, data)
        return made and not path.endswith(".arrow")

    monkeypatch.setattr(Location, "create_new", forgetful)
    log = RowLog(archive.open(url))
    assert log.upsert(["a"], np.ones((1, DIM))).version == 1
    assert log.upsert(["b"], np.ones((1, DIM))).version == 2
    assert RowLog(archive.open(url)).version == 2
