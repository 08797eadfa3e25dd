"""The trained artefact and the index files: deterministic, named by content, and safe to load whatever they hold."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from cluster import artefact as artefacts
from cluster.artefact import Artefact, check_shard, content_hash, draw, read_index, train
from cluster.build import build_indexes, open_collection
from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind
from cluster.index_store import (
    CURRENT,
    Build,
    current_builds,
    current_names,
    damaged_files,
    indexes_of,
    load_shard,
    publish,
    save_index,
)
from cluster.indexes import INDEXES, index_kind
from cluster.ivfpq import IvfPq
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 900, 16
KINDS = [
    IvfPq(), IvfPq(refine="sq8"), IvfPq(refine="none", bits=8), IvfPq(rotation=True, refine="archive"), Hnsw(),
    Hnsw(store="flat"), Hnsw(store="sq8"),
]  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small collection, compared by L2."""
    return archive_vectors(tmp_path_factory.mktemp("artefact"), clustered(ROWS, DIM))


@pytest.fixture
def collection(url: str) -> CollectionArchive:
    """A handle on it."""
    return open_collection(url)


def filled(artefact: Artefact, collection: CollectionArchive) -> Any:
    """An index of all rows."""
    index = artefact.empty()
    index.add(collection.read(0, collection.count))
    return index


@pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: f"{kind.kind}-{getattr(kind, 'refine', '')}{getattr(kind, 'store', '')}"
)
def test_training_is_deterministic_and_named_by_content(collection: CollectionArchive, kind: IndexKind) -> None:
    """Trained twice, also with another number of threads: the same bytes, the same hash, in files full and empty."""
    first, again = train(collection, kind), train(collection, kind, threads=2)
    assert (first.hash, first.data) == (again.hash, again.data)
    index = filled(first, collection)
    assert content_hash(index) == content_hash(first.empty()) == first.hash
    data = bytes(faiss.serialize_index(index))
    assert data == bytes(faiss.serialize_index(filled(again, collection)))
    check_shard(read_index(io.BytesIO(data), len(data), "x"), first.hash, ROWS, DIM, "l2", "x")


@pytest.mark.parametrize("kind", [IvfPq(), Hnsw()], ids=["ivfpq", "hnsw"])
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (2, 3), (17, 5), (40, 16), (130, 33)])
def test_any_size_is_indexed(kind: IndexKind, rows: int, dim: int) -> None:
    """Collections of one row, of odd dimensions, smaller than a codebook: trained, filled, searched."""
    vectors = clustered(rows, dim)
    chosen = kind.resolved(rows, dim, "l2")
    index = chosen.trained(vectors[: chosen.sample_rows(rows)], dim, "l2")
    index.add(vectors)
    k = min(5, rows)
    _, found, _ = chosen.search(chosen.opened(index), vectors[:3], k, chosen.defaults(index), None)
    assert found.shape == (min(3, rows), k)
    assert found[0, 0] == 0


def test_other_options_are_another_artefact(collection: CollectionArchive) -> None:
    """The hash tells training apart."""
    hashes = {train(collection, kind).hash for kind in [*KINDS, IvfPq(lists=3), Hnsw(links=8)]}
    assert len(hashes) == len(KINDS) + 2


def test_the_sample_is_spread_and_seeded(collection: CollectionArchive) -> None:
    """A sample covers the whole collection, is the same every time, and never more than there is."""
    everything = collection.read(0, ROWS)
    place = {row.tobytes(): number for number, row in enumerate(everything)}
    for rows in (1, 100, 700, ROWS, 10 * ROWS):
        sample = draw(collection, rows)
        assert np.array_equal(sample, draw(collection, rows))
        assert min(rows, ROWS) * 0.8 <= len(sample) <= max(artefacts.SAMPLE_RUN, min(rows, ROWS) + artefacts.SAMPLE_RUN)
        numbers = [place[row.tobytes()] for row in sample]
        assert len(set(numbers)) == len(numbers)
        if rows >= 100:
            assert min(numbers) < ROWS * 0.2
            assert max(numbers) > ROWS * 0.8
    assert draw(collection, 0).shape == (0, DIM)


def test_shards_of_another_artefact_are_refused(collection: CollectionArchive) -> None:
    """Trained apart, never mixed."""
    mine, other = train(collection, IvfPq(lists=4)), train(collection, IvfPq(lists=5))
    with pytest.raises(HilbertflowError, match="trained apart do not mix"):
        check_shard(filled(other, collection), mine.hash, ROWS, DIM, "l2", "shard-0")


def test_shards_of_another_collection_are_refused(collection: CollectionArchive) -> None:
    """Another length, dimension or metric."""
    mine = train(collection, Hnsw())
    index = filled(mine, collection)
    for rows, dim, metric in ((ROWS - 1, DIM, "l2"), (ROWS, DIM + 1, "l2"), (ROWS, DIM, "ip")):
        with pytest.raises(HilbertflowError, match="shard-0"):
            check_shard(index, mine.hash, rows, dim, metric, "shard-0")


def test_row_numbers_and_edges_outside_are_refused(collection: CollectionArchive) -> None:
    """Numbers that a search would follow out of memory."""
    graph = train(collection, Hnsw())
    index = filled(graph, collection)
    walked = faiss.downcast_index(faiss.downcast_index(index.base_index).index)
    edges = faiss.rev_swig_ptr(walked.hnsw.neighbors.data(), walked.hnsw.neighbors.size())
    edges[5] = ROWS + 7
    with pytest.raises(HilbertflowError, match="outside its rows"):
        check_shard(index, graph.hash, ROWS, DIM, "l2", "x")
    lists = train(collection, IvfPq(refine="none"))
    index = filled(lists, collection)
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(0), index.invlists.list_size(0))
    ids[0] = ROWS
    with pytest.raises(HilbertflowError, match="outside its rows"):
        check_shard(index, lists.hash, ROWS, DIM, "l2", "x")


def test_foreign_structures_are_refused() -> None:
    """Valid FAISS files that no kind of ours writes."""
    for foreign in (faiss.IndexLSH(DIM, 16), faiss.IndexFlatL2(DIM), faiss.index_factory(DIM, "IVF2_HNSW4,Flat")):
        if not foreign.is_trained:
            foreign.train(clustered(300, DIM))
        foreign.add(clustered(ROWS, DIM))
        with pytest.raises(HilbertflowError, match=r"no kind of index uses|another artefact"):
            check_shard(foreign, "0" * 64, ROWS, DIM, "l2", "x")


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[5]], ids=["ivfpq", "hnsw"])
def test_damaged_files_never_kill_the_process(collection: CollectionArchive, kind: IndexKind) -> None:
    """200 files with flipped, cut and stretched bytes, given straight to the reader as if their checksum were right."""
    artefact = train(collection, kind)
    good = bytes(faiss.serialize_index(filled(artefact, collection)))
    random, refused = np.random.default_rng(7), 0
    for trial in range(200):
        data = bytearray(good)
        reach = 300 if trial % 2 else len(data)
        for _ in range(1 + trial % 4):
            data[random.integers(0, reach)] = random.integers(0, 256)
        data = data[: random.integers(0, len(data))] if trial % 5 == 0 else data
        try:
            index = read_index(io.BytesIO(bytes(data)), len(data), "x")
            check_shard(index, artefact.hash, ROWS, DIM, "l2", "x")
            artefact.kind.search(
                artefact.kind.opened(index), clustered(4, DIM), 10, artefact.kind.defaults(index), None
            )
        except HilbertflowError:
            refused += 1
    assert refused > 100


def test_a_lying_size_does_not_allocate(collection: CollectionArchive) -> None:
    """A count of 2**60 in the place of any count of rows is refused before memory is asked for."""
    graph = train(collection, Hnsw())
    data, places = bytes(faiss.serialize_index(filled(graph, collection))), 0
    at = data.find(told := ROWS.to_bytes(8, "little"))
    while at >= 0:
        lying = data[:at] + (1 << 60).to_bytes(8, "little") + data[at + 8 :]
        with pytest.raises(HilbertflowError):
            check_shard(read_index(io.BytesIO(lying), len(lying), "x"), graph.hash, ROWS, DIM, "l2", "x")
        at, places = data.find(told, at + 1), places + 1
    assert places >= 4


@pytest.fixture
def built(tmp_path: Path) -> tuple[CollectionArchive, Build]:
    """A collection of its own with an index of two shards."""
    url = archive_vectors(tmp_path, clustered(300, 8))
    build_indexes(url, ["hnsw"], shards=2, actors=0)
    collection = open_collection(url)
    return collection, current_builds(indexes_of(collection))["hnsw"]


def test_every_flipped_bit_on_disk_is_found(built: tuple[CollectionArchive, Build]) -> None:
    """By checksum, before FAISS sees the file; also a cut file, a missing one and one of another shard."""
    collection, build = built
    place = indexes_of(collection)
    stored = build.shards[1]
    path = Path(str(place.join(stored.file).local_path))
    good = path.read_bytes()
    for at in (0, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(HilbertflowError, match=r"shard-1.hnsw.faiss: .*checksum"):
            load_shard(place, build, 1)
        (found,) = damaged_files(place, build)
        assert "shard-1.hnsw.faiss" in str(found)
    path.write_bytes(good[:-1])
    with pytest.raises(HilbertflowError, match=f"has {len(good) - 1} bytes"):
        load_shard(place, build, 1)
    path.unlink()
    with pytest.raises(HilbertflowError, match=r"shard-1.hnsw.faiss"):
        load_shard(place, build, 1)
    path.write_bytes(good)
    swapped = dataclasses.replace(build, artefact="f" * 64)
    with pytest.raises(HilbertflowError, match="another artefact"):
        load_shard(place, swapped, 1)
    load_shard(place, build, 1)
    assert not list(damaged_files(place, build))
    assert not list(Path(str(place.local_path)).rglob("shard-*.json"))


@pytest.mark.parametrize("name", ["manifest", "current"])
def test_damaged_manifests_are_named(built: tuple[CollectionArchive, Build], name: str) -> None:
    """A flipped digit in a manifest, another format, no JSON: one clear line."""
    collection, build = built
    place = indexes_of(collection)
    file = f"{build.build}/manifest.json" if name == "manifest" else CURRENT
    path = Path(str(place.join(file).local_path))
    good = path.read_text()
    body = json.loads(good)
    body["body"]["format"] = 99
    for bad in (
        good.replace("300", "301", 1) if name == "manifest" else good.replace("hnsw-", "hnsv-", 1),
        "{",
        "[]",
        json.dumps(body),
    ):
        path.write_text(bad)
        with pytest.raises(HilbertflowError, match=path.name):
            current_builds(place)
    path.write_text(good)
    assert current_builds(place)["hnsw"] == build


def test_publishing_swaps_one_kind_and_keeps_the_others(built: tuple[CollectionArchive, Build]) -> None:
    """One file names the current builds."""
    place = indexes_of(built[0])
    publish(place, {"ivfpq": "ivfpq-1"})
    publish(place, {"ivfpq": "ivfpq-2"})
    assert current_names(place) == {"hnsw": built[1].build, "ivfpq": "ivfpq-2"}


def test_a_failed_write_says_so_and_leaves_nothing(built: tuple[CollectionArchive, Build]) -> None:
    """An index that cannot be written raises; no file appears under its name."""
    place = indexes_of(built[0])
    Path(str(place.local_path), "taken").write_text("a file where a directory is needed")
    with pytest.raises(HilbertflowError, match="taken"):
        save_index(place, "taken/shard-0.hnsw.faiss", faiss.IndexFlatL2(4))


def test_the_registry_is_closed() -> None:
    """Unknown kinds and options are refused, with the nearest there is."""
    assert set(INDEXES) == {"ivfpq", "hnsw"}
    assert index_kind({"kind": "hnsw", "links": 8}) == Hnsw(links=8)
    for body, message in (
        ({"kind": "hnws"}, "choose hnsw"), ({}, "unknown index kind None"),
        ({"kind": "hnsw", "lnks": 8}, "it has links"),
        ({"kind": "ivfpq", "lists": 0}, "lists is 0"), ({"kind": "hnsw", "shards": 0}, "shards is 0"),
        ({"kind": "hnsw", "target_recall": 2.0}, "target_recall"), ({"kind": "hnsw", "links": 1000}, "links is 1000"),
    ):  # fmt: skip
        with pytest.raises(HilbertflowError, match=message):
            index_kind(body)
