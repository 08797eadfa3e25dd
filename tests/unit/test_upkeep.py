"""cp brings every byte and nothing half; gc takes what no archive owns and nothing else."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cluster.build import build_indexes, open_collection
from cluster.engine import SearchEngine
from cluster.index_store import files_in_use, indexes_of
from operators.errors import HilbertflowError
from pipelines.cli import call
from storage import archive, catalog
from storage.fs import Location
from storage.upkeep import copy, orphans
from storage.verify import verify
from tests.collection_fixtures import archive_vectors, clustered


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = archive_vectors(tmp_path_factory.mktemp("upkeep"), clustered(700, 12))
    build_indexes(made, ["hnsw"], actors=0)
    return made


def test_a_copy_holds_the_same_bytes_and_answers_alike(url: str) -> None:
    root = Location(f"memory://{uuid.uuid4().hex}")
    made = copy(Location(url), root)
    source = Location(url)
    assert {key: source.read(key) for key in source.list()} == {key: made.read(key) for key in made.list()}
    assert verify(made).sound
    assert [row["path"] for row in catalog.ls(root.url)] == ["collections/rows"]
    query = archive.open(url).read(3, 5)
    there, here = SearchEngine.open(made.url).search(query, 5), SearchEngine.open(url).search(query, 5)
    assert there.explain["tier"] == "hnsw"
    assert there.rows.tolist() == here.rows.tolist()


def test_an_interrupted_copy_goes_on_and_is_no_archive_before_its_end(url: str) -> None:
    root = Location(f"memory://{uuid.uuid4().hex}")

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(Location(url), root, stop)
    with pytest.raises(HilbertflowError, match="no archive here"):
        archive.open(root.join("collections/rows").url)
    source = Location(url)
    copy(source, root)
    whole = source.traffic.bytes_read
    again = Location(url)
    copy(again, root)  # nothing but what tells that everything is there
    assert again.traffic.bytes_read < whole / 2
    assert verify(root.join("collections/rows")).sound


def test_a_damaged_object_is_not_copied(url: str, tmp_path: Path) -> None:
    mine = copy(Location(url), Location(str(tmp_path / "mine")))
    key = next(key for key in mine.list() if key.startswith("level0/c/"))
    data = bytearray(mine.read(key))
    data[len(data) // 2] ^= 1
    mine.write_atomic(key, bytes(data))
    with pytest.raises(HilbertflowError, match="checksum"):
        copy(mine, Location(str(tmp_path / "other")))
    assert not (tmp_path / "other/collections/rows" / key).exists()
    with pytest.raises(HilbertflowError, match="its own copy"):
        copy(mine, Location(str(tmp_path / "mine")))


def test_gc_takes_what_nothing_names(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = copy(Location(url), Location(str(tmp_path)))
    before = set(mine.list())
    left = ("journal/00000000-feed.json", "level0/c/99/0", "indexes/hnsw-old/shard-0.hnsw.faiss", "level0/.x.hfpart")
    for key in left:
        (path := Path(mine.url, key)).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left behind")
    used = {f"indexes/{path}" for path in files_in_use(indexes_of(open_collection(mine.url)))}
    assert orphans(mine, used) == []  # they are young
    assert {item.key for item in orphans(mine, used, 0)} == set(left)
    assert call(["gc", str(tmp_path), "--grace", "0", "--dry-run"]) == 0
    assert "4 objects would be removed" in capsys.readouterr().out
    assert call(["gc", str(tmp_path), "--grace", "0"]) == 0
    assert set(mine.entries()) == before
    assert call(["gc", str(tmp_path), "--grace", "0"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert SearchEngine.open(mine.url).tiers == ("exact", "hnsw")


def test_gc_leaves_a_half_written_archive_to_its_next_run(url: str, tmp_path: Path) -> None:
    mine = copy(Location(url), Location(str(tmp_path)))
    mine.delete("manifest.json")
    Path(mine.url, "level0", ".y.hfpart").write_bytes(b"cut off")
    assert [item.key for item in orphans(mine, (), 0)] == ["level0/.y.hfpart"]
    assert call(["cp", mine.url, str(tmp_path / "other")]) == 1


def test_cp_of_a_root_takes_all(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(Path(url).parents[1])
    assert call(["cp", root, str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out.count('"to"') == 1
    assert verify(Location(str(tmp_path / "collections/rows"))).sound
    assert call(["cp", str(tmp_path / "nothing"), str(tmp_path)]) == 1
