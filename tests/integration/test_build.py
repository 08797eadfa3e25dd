"""Indexes built by a pool of Ray actors: the same bytes as without Ray, whoever dies on the way."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.artefact import train
from cluster.build import build_indexes, build_name, open_collection
from cluster.build_pool import build_shards
from cluster.builder import shard_tasks
from cluster.engine import SearchEngine
from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind
from cluster.ivfpq import IvfPq
from cluster.results import recall
from operators.errors import HilbertflowError
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 4000, 32
KINDS: list[IndexKind] = [IvfPq(shards=4), Hnsw(shards=4, ef_construction=80)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """4,000 rows."""
    return archive_vectors(tmp_path_factory.mktemp("build"), clustered(ROWS, DIM), "ip")


def digests(url: str) -> dict[str, str]:
    """SHA-256 of every index file of a collection by name."""
    root = Path(url) / "indexes"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.faiss"))
    }


@pytest.fixture(scope="module")
def reference(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Built in one process, elsewhere."""
    copy = tmp_path_factory.mktemp("reference") / "rows"
    shutil.copytree(url, copy)
    build_indexes(str(copy), KINDS, actors=0)
    return digests(str(copy))


@pytest.fixture
def fresh(url: str, tmp_path: Path) -> str:
    """A copy without indexes."""
    copy = tmp_path / "rows"
    shutil.copytree(url, copy, ignore=shutil.ignore_patterns("indexes"))
    return str(copy)


def test_a_pool_writes_what_one_process_writes(ray_session: None, fresh: str, reference: dict[str, str]) -> None:
    """Eight shards of two kinds by two actors: the same files, byte for byte, and the same answers."""
    seen: list[tuple[str, int, int]] = []
    built = build_indexes(fresh, KINDS, actors=2, progress=lambda *event: seen.append(event))
    assert set(built) == {"ivfpq", "hnsw"}
    assert [event[1:] for event in seen] == [(i, 8) for i in range(1, 9)]
    assert digests(fresh) == reference
    assert len(reference) == 10
    engine, queries = SearchEngine.open(fresh), clustered(50, DIM, seed=5)
    oracle = engine.search(queries, 10, "exact")
    assert recall(engine.search(queries, 10, "hnsw"), oracle) >= 0.95
    assert recall(engine.search(queries, 10, "ivfpq", nprobe=40), oracle) >= 0.95
    assert build_indexes(fresh, KINDS, actors=2) == {}


def test_a_dead_actor_is_replaced(ray_session: None, fresh: str, reference: dict[str, str]) -> None:
    """Builders killed while they work: their shards are built again by others and come out the same."""
    import ray

    collection = open_collection(fresh)
    kind = KINDS[1]
    artefact, name = train(collection, kind), build_name(collection, kind)
    actors: list[Any] = []
    killed = threading.Event()

    def kill(actor: Any) -> None:
        actors.append(actor)
        if len(actors) in (1, 3):  # the first assignment and one in mid-pool
            killed.set()
            ray.kill(actor)

    work = [(artefact, task) for task in shard_tasks(name, ROWS, 4)]
    done = dict(build_shards(fresh, work, 2, started=kill))
    assert killed.is_set()
    assert sorted(task.number for task in done) == [0, 1, 2, 3]
    assert len({actor._actor_id for actor in actors}) >= 3
    expected = {file: digest for file, digest in reference.items() if file.startswith(f"{name}/shard")}
    assert {f"{name}/shard-{t.number}.hnsw.faiss": stored.sha256 for t, stored in done.items()} == expected


def test_a_shard_that_kills_every_actor_is_reported(ray_session: None, fresh: str) -> None:
    """The build does not try for ever."""
    import ray

    collection = open_collection(fresh)
    work = [(train(collection, Hnsw()), task) for task in shard_tasks("hnsw-x", ROWS, 1)]
    began = time.monotonic()
    with pytest.raises(HilbertflowError, match="builders of shard 0 died 4 times"):
        list(build_shards(fresh, work, 1, started=ray.kill))
    assert time.monotonic() - began < 120


def test_a_fault_of_the_input_is_not_retried(ray_session: None, fresh: str) -> None:
    """A damaged archive: the actor's own error comes back, naming the file."""
    unit = next(Path(fresh).glob("exact/c/*/0"))
    data = bytearray(unit.read_bytes())
    data[len(data) // 3] ^= 0x40
    unit.write_bytes(bytes(data))
    with pytest.raises(HilbertflowError) as caught:
        build_indexes(fresh, [Hnsw(shards=2)], actors=2)
    assert "Ray" not in str(caught.value)
    assert not list(Path(fresh).rglob("manifest.json"))[1:]


def test_recall_does_not_depend_on_the_number_of_shards(fresh: str) -> None:
    """1, 2, 4 and 8 shards of one artefact: within .005 of the unsharded index, or better."""
    queries = clustered(200, DIM, seed=6)
    reached: dict[int, float] = {}
    for shards in (1, 2, 4, 8):
        build_indexes(fresh, [IvfPq(shards=shards, lists=60, nprobe=15)], actors=0)
        engine = SearchEngine.open(fresh)
        reached[shards] = recall(engine.search(queries, 10, "ivfpq"), engine.search(queries, 10, "exact"))
    assert min(reached.values()) >= reached[1] - 0.005
    assert reached[1] >= 0.9


def test_rows_stream_through_a_builder(ray_session: None, tmp_path: Path) -> None:
    """A builder of a quarter of 40,000 x 96 rows grows by its own shard and little more."""
    import ray

    from cluster.build_pool import Builder

    url = archive_vectors(tmp_path, clustered(40_000, 96), rows_per_unit=4096)
    collection = open_collection(url)
    artefact = train(collection, IvfPq(lists=64, refine="sq8"))
    remote: Any = ray.remote(num_cpus=1)(Builder)
    actor = remote.remote(url)
    pid = ray.get(actor.process.remote())
    tasks = shard_tasks("ivfpq-x", 40_000, 4)
    ray.get(actor.build.remote(artefact, tasks[0]))
    before, peak = resident(pid), 0
    pending = actor.build.remote(artefact, tasks[1])
    while not ray.wait([pending], timeout=0.01)[0]:
        peak = max(peak, resident(pid))
    ray.kill(actor)
    assert peak - before < 64e6, f"grew by {(peak - before) / 1e6:.0f} MB"


def resident(pid: int) -> int:
    """Resident bytes of a process on this machine."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def test_a_build_needs_no_ray(fresh: str) -> None:
    """`actors=0` never starts a cluster; numbers of rows are those of the archive."""
    build_indexes(fresh, [Hnsw(shards=3)], actors=0)
    engine = SearchEngine.open(fresh)
    vectors = engine.collection.read(0, ROWS)
    found = engine.search(vectors[[0, 1333, 1334, ROWS - 1]], 1, "exact")
    assert np.array_equal(engine.search(vectors[[0, 1333, 1334, ROWS - 1]], 1, "hnsw").rows, found.rows)
