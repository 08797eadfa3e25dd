"""IVF-PQ trained and searched on a GPU, beside the same on the CPU; skipped where FAISS has no GPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pytest

from cluster.artefact import check_shard, read_index, train
from cluster.build import are_current, build_indexes, open_collection
from cluster.device import Device
from cluster.engine import SearchEngine
from cluster.exact import ExactScan
from cluster.index_kind import Overrides
from cluster.index_store import current_builds, indexes_of
from cluster.ivfpq import IvfPq
from cluster.results import recall
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from storage.collection import CollectionArchive
from tests.collection_fixtures import archive_vectors, clustered

pytestmark = pytest.mark.gpu

ROWS = 6000
DEVICES: tuple[Device, Device] = ("cpu", "cuda")
TOLERANCE = 0.005  # of recall


def collection_of(path: Path, dim: int, metric: str) -> CollectionArchive:
    """Of clustered rows."""
    return open_collection(archive_vectors(path, clustered(ROWS, dim, centres=400), metric, rows_per_unit=8192))


def questions(collection: CollectionArchive) -> tuple[F32, I64]:
    """Prepared queries (200, d), and their ten nearest rows."""
    queries = prepared(clustered(200, collection.dim, seed=9, centres=400), collection.metric)
    scan = ExactScan(queries, 10, collection.metric)
    scan.feed(prepared(collection.read(0, collection.count), collection.metric), np.arange(collection.count))
    return queries, scan.best()[1]


def filled(collection: CollectionArchive, kind: IvfPq, device: Device) -> tuple[IvfPq, Any]:
    """Trained there; the index as a file gives it back."""
    artefact = train(collection, kind, device=device)
    index = artefact.empty()
    index.add(prepared(collection.read(0, collection.count), collection.metric))
    data = bytes(faiss.serialize_index(index))
    index = read_index(io.BytesIO(data), len(data), "index")
    check_shard(index, artefact.hash, collection.count, collection.dim, collection.metric, "index")
    assert isinstance(artefact.kind, IvfPq)
    return artefact.kind, index


@pytest.mark.parametrize(
    ("dim", "metric", "refine"),
    [
        (64, "l2", "fp16"), (64, "ip", "fp16"), (64, "cosine", "sq8"), (64, "l2", "none"), (64, "ip", "none"),
        (100, "ip", "fp16"), (384, "cosine", "fp16"), (400, "l2", "fp16"), (12, "l2", "fp16"),
    ],
)  # fmt: skip
def test_a_gpu_trains_and_finds_as_well_as_a_cpu(
    tmp_path: Path, dim: int, metric: str, refine: Literal["fp16", "sq8", "none"]
) -> None:
    """Whichever trained an index, both search it, and find as much."""
    collection, found = collection_of(tmp_path, dim, metric), {}
    queries, truth = questions(collection)
    for trained_on in DEVICES:
        kind, index = filled(collection, IvfPq(bits=8, residual=True, refine=refine, nprobe=24), trained_on)
        for searched_on in DEVICES:
            opened = kind.opened(index, gpu=searched_on == "cuda")
            rows = kind.search(opened, queries, 10, kind.defaults(index), None)[1]
            found[trained_on, searched_on] = recall(rows, truth)
    for trained_on in DEVICES:
        assert abs(found[trained_on, "cuda"] - found[trained_on, "cpu"]) <= TOLERANCE
    if refine != "none":  # codebooks differ a little; vectors beside the codes make up for it
        assert abs(found["cuda", "cuda"] - found["cpu", "cpu"]) <= TOLERANCE


@pytest.mark.parametrize("kind", [IvfPq(lists=100, bits=4), IvfPq(lists=100, bits=8, residual=True)])
def test_k_means_on_a_gpu_reach_the_same_error(tmp_path: Path, kind: IvfPq) -> None:
    """Centroids learned on either are as near to the rows."""
    collection = collection_of(tmp_path, 32, "l2")
    rows = collection.read(0, ROWS)
    errors = {}
    for device in DEVICES:
        index = train(collection, kind, device=device).empty()
        ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        errors[device] = float(ivf.quantizer.search(rows, 1)[0].mean())
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.02)


def test_what_a_gpu_does_not_take_is_answered_by_the_cpu(tmp_path: Path) -> None:
    """Filters, and more candidates than a GPU sorts: the very answers of a CPU."""
    collection = collection_of(tmp_path, 32, "l2")
    queries, _ = questions(collection)
    assert list(build_indexes(collection.url, ["ivfpq"], device="auto", actors=0)) == ["ivfpq"]
    assert are_current(collection.url, ["ivfpq"], device="cuda")  # there is a GPU, so `auto` made it for one
    build = current_builds(indexes_of(collection))["ivfpq"]
    cpu, gpu = (Shard.load(collection, build, 0, device) for device in DEVICES)
    third = np.arange(0, ROWS, 3)
    for k, matches in ((10, third), (2500, None)):
        mine, theirs = (shard.search(queries, k, Overrides(), matches)[1] for shard in (cpu, gpu))
        np.testing.assert_array_equal(mine, theirs)


def test_an_engine_on_a_gpu_answers_like_one_on_a_cpu(tmp_path: Path) -> None:
    """By shards, and after a row was deleted."""
    collection = collection_of(tmp_path, 32, "cosine")
    build_indexes(collection.url, ["ivfpq"], device="cuda", shards=2, actors=0)
    queries, truth = questions(collection)
    engines = [SearchEngine.open(collection.url, device=device) for device in DEVICES]
    before = [engine.search(queries, 10, tier="ivfpq").rows for engine in engines]
    assert abs(recall(before[0], truth) - recall(before[1], truth)) <= TOLERANCE
    gone = str(engines[0].search(queries[:1], 1, tier="ivfpq").ids[0, 0])
    for engine in engines:
        engine.delete([gone])
        assert gone not in engine.search(queries[:1], 10, tier="ivfpq").ids
