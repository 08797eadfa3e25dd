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
    said: list[tuple[int, int]] = []
    copied = copy(Location(url), root, lambda done, total: said.append((done, total)))
    made, source = copied.place, Location(url)
    sizes = source.sizes()
    assert (copied.objects, copied.bytes, copied.found) == (len(sizes), sum(sizes.values()), 0)
    assert said == sorted(said) and said[-1] == (copied.bytes, copied.bytes)
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
        if done > total / 3:
            raise KeyboardInterrupt

    place, source = root.join("collections/rows"), Location(url)
    with pytest.raises(KeyboardInterrupt):
        copy(source, root, stop)
    with pytest.raises(HilbertflowError, match="half-written archive; run its recipe, or its copy, again"):
        archive.open(place.url)
    assert catalog.ls(root.url) == [] and archive.half_written(root) == ["collections/rows"]
    brought = set(place.list())
    copied = copy(source, root)
    assert copied.found == len(brought) > 1
    whole = source.traffic.bytes_read
    again = Location(url)
    copied = copy(again, root)  # nothing but what tells that everything is there
    assert again.traffic.bytes_read < whole / 2
    assert copied.found > 0.7 * copied.objects and archive.half_written(root) == []
    assert verify(place).sound


def test_nothing_is_copied_into_what_another_copy_began(url: str, tmp_path: Path) -> None:
    """Objects of the two may be of equal size, and what is there of the right size is not read again."""
    other = Location(archive_vectors(tmp_path / "other", clustered(700, 12, seed=9)))
    root = Location(str(tmp_path / "root"))

    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(other, root, stop)
    before = root.sizes()
    with pytest.raises(HilbertflowError, match="another archive has this name; remove it with `hilbertflow rm"):
        copy(Location(url), root)
    assert root.sizes() == before
    assert call(["rm", root.join("collections/rows").url, "--yes"]) == 0
    assert verify(copy(Location(url), root).place).sound


def test_a_damaged_object_is_not_copied(url: str, tmp_path: Path) -> None:
    mine = copy(Location(url), Location(str(tmp_path / "mine"))).place
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
    mine = copy(Location(url), Location(str(tmp_path))).place
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
    mine = copy(Location(url), Location(str(tmp_path))).place
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
