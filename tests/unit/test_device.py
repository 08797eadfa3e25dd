"""`device`: what it means here, what an index for a GPU looks like, and which searches a GPU would take."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from cluster.artefact import train
from cluster.autotune import CANDIDATES, candidates, choose_index
from cluster.build import are_current, build_indexes, forms, laid_out, open_collection
from cluster.config import CollectionConfig, parse_config
from cluster.device import CODES, MOST, assigning, copied, missing, runs_on_gpu, say_once, takes
from cluster.engine import SearchEngine
from cluster.exact import ExactScan
from cluster.gpu_share import Gpus, share
from cluster.hnsw import Hnsw
from cluster.index_store import Build, StoredFile, current_builds, current_names, indexes_of
from cluster.inverted import Inverted
from cluster.ivfpq import IvfPq
from cluster.results import NO_ROW, recall
from cluster.serve_app import _shard_groups, build_application
from cluster.shard import Shard
from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError
from pipelines.recipe import Recipe
from pipelines.run import run
from storage.collection import CollectionArchive
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 3000, 24
QUERIES = clustered(50, DIM, seed=9)
GPU_FORM = replace(IvfPq(lists=20, nprobe=8), bits=8, residual=True)

without_gpu = pytest.mark.skipif(not missing(), reason="there is a GPU")


@pytest.fixture(scope="module")
def by_metric(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CollectionArchive]:
    """3,000 rows for each metric."""
    root, vectors = tmp_path_factory.mktemp("device"), clustered(ROWS, DIM)
    return {
        metric: open_collection(archive_vectors(root / metric, vectors, metric)) for metric in ("l2", "ip", "cosine")
    }


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, as by a process that has said nothing yet."""
    say_once.cache_clear()
    caplog.set_level(logging.WARNING, "hilbertflow.device")
    return caplog


def nearest(collection: CollectionArchive, queries: F32 = QUERIES) -> I64:
    """Exact, (q, 10)."""
    scan = ExactScan(prepared(queries, collection.metric), 10, collection.metric)
    scan.feed(prepared(collection.read(0, collection.count), collection.metric), np.arange(collection.count))
    return scan.best()[1]


def filled(collection: CollectionArchive, kind: IvfPq) -> tuple[IvfPq, Any]:
    """The resolved kind, and a FAISS index of all rows."""
    artefact = train(collection, kind)
    index = artefact.empty()
    index.add(prepared(collection.read(0, collection.count), collection.metric))
    assert isinstance(artefact.kind, IvfPq)
    return artefact.kind, index


def vectors_recipe(path: Path, **index: Any) -> Recipe:
    """Of a few rows on disk."""
    np.save(path / "v.npy", clustered(300, 8))
    body = {
        "name": "v", "source": {"kind": "vectors", "path": str(path / "v.npy")},
        "operators": [{"kind": "row_blocks"}, {"kind": "row_code"}, {"kind": "frame_encode"}],
        "sink": {"path": str(path / "root")}, "index": index,
    }  # fmt: skip
    return Recipe.model_validate_json(json.dumps(body), strict=True)


@without_gpu
def test_auto_says_once_that_it_runs_on_the_cpu(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    assert not runs_on_gpu("cpu", "x") and not said.messages
    url = archive_vectors(tmp_path, clustered(400, 8))
    build_indexes(url, ["hnsw"], actors=0)
    assert not said.messages  # it is the CPU's in any case
    build_indexes(url, ["ivfpq"], shards=2, actors=0)
    build_indexes(url, ["ivfpq"], shards=3, actors=0)
    (line,) = said.messages
    assert line == f"device: auto trains and searches ivfpq on the CPU: {missing()}"


@without_gpu
def test_cuda_fails_before_anything_is_written(tmp_path: Path) -> None:
    line = r"index\.device: is cuda, but .*(without GPUs|no GPU).*; install FAISS's GPU build and a driver, or use auto"
    for kind in ("auto", "ivfpq"):
        with pytest.raises(HilbertflowError, match=line):
            run(vectors_recipe(tmp_path, kind=kind, device="cuda"))
    assert not (tmp_path / "root").exists()
    url = archive_vectors(tmp_path, clustered(400, 8))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HilbertflowError, match=line):
        build_indexes(url, ["ivfpq"], device="cuda", actors=0)
    with pytest.raises(HilbertflowError, match=line):
        choose_index(url, device="cuda", actors=0)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(HilbertflowError, match="device: is cuda, but"):
        SearchEngine.open(url, device="cuda")


def test_hnsw_has_no_form_for_a_gpu(tmp_path: Path) -> None:
    for kind in ("hnsw", ["ivfpq", "hnsw"]):
        with pytest.raises((HilbertflowError, ValueError), match="hnsw has no form for a GPU"):
            vectors_recipe(tmp_path, kind=kind, device="cuda")
    for asked in (Hnsw(), IvfPq(bits=4), IvfPq(residual=False)):
        with pytest.raises(
            HilbertflowError, match=r"index\.device: is cuda, but (hnsw|ivfpq) as it is asked for has no"
        ):
            forms(asked, "cuda")


def test_a_recipe_says_the_device(tmp_path: Path) -> None:
    assert {d: vectors_recipe(tmp_path, device=d).index.device for d in ("auto", "cpu", "cuda")} == {  # type: ignore[union-attr]
        "auto": "auto", "cpu": "cpu", "cuda": "cuda",
    }  # fmt: skip
    assert vectors_recipe(tmp_path).index.device == "auto"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="device"):
        vectors_recipe(tmp_path, device="gpu")


def test_the_layouts_of_each_device() -> None:
    kind, few = IvfPq(), Hnsw()
    gpu = replace(kind, bits=8, residual=True)
    assert forms(kind, "cpu") == (kind,) and forms(kind, "cuda") == (gpu,) and forms(kind, "auto") == (kind, gpu)
    assert forms(few, "cpu") == forms(few, "auto") == (few,)
    assert gpu.for_gpu() == gpu
    for dim in (1, 2, 3, 8, 10, 14, 16, 17, 96, 100, 128, 200, 384, 768, 784, 1000, 1024, 1536, 4096):
        for metric in ("l2", "ip"):
            held = gpu.resolved(10_000, dim, metric)
            codes, width = held.codes(dim), held.width(dim)
            assert codes in CODES and width >= dim and width % codes == 0 and width - dim < max(codes, 4)
            assert held.rotation == (width != dim) and held.for_gpu() == held
    assert IvfPq().resolved(10_000, 384, "ip").for_gpu() is None


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_an_index_for_a_gpu_is_searched_on_a_cpu(by_metric: dict[str, CollectionArchive], metric: str) -> None:
    """It is FAISS's plain `IndexIVFPQ` with what `GpuIndexIVFPQ` takes, and finds as much as the other layout."""
    collection, found = by_metric[metric], {}
    for kind in (IvfPq(lists=20, nprobe=8), GPU_FORM):
        laid, index = filled(collection, kind)
        _, rows, _ = laid.search(laid.opened(index), prepared(QUERIES, metric), 10, laid.defaults(index), None)
        found[laid.bits] = recall(rows, nearest(collection))
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    assert type(ivf) is faiss.IndexIVFPQ and ivf.pq.nbits == 8 and ivf.by_residual and ivf.polysemous_ht == 0
    assert ivf.pq.M in CODES and found[8] >= found[4] - 0.02 and found[8] >= 0.95


@pytest.mark.parametrize("kind", [IvfPq(lists=20), GPU_FORM, replace(GPU_FORM, rotation=True)])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_k_means_assign_where_they_are_told_to(
    by_metric: dict[str, CollectionArchive], kind: IvfPq, metric: str
) -> None:
    """Through flat indexes elsewhere, here clones on the CPU, the same centroids and codebooks are learned."""
    collection = by_metric[metric]
    sample = prepared(collection.read(0, ROWS), metric)
    kind = kind.resolved(ROWS, DIM, metric)
    placed: list[Any] = []

    def elsewhere(index: Any) -> Any:
        placed.append(faiss.clone_index(index))
        return placed[-1]

    usual, other = kind.untrained(DIM, metric), kind.untrained(DIM, metric)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(other))
    usual.train(sample)
    with assigning(ivf, elsewhere):
        other.train(sample)
    assert faiss.serialize_index(other).tobytes() == faiss.serialize_index(usual).tobytes()
    assert [at.ntotal for at in placed] == [20, 1 << (kind.bits or 4)] and [at.d for at in placed] == [DIM, placed[1].d]
    assert ivf.clustering_index is None and ivf.pq.assign_index is None


def test_which_searches_a_gpu_takes() -> None:
    assert takes(80, 16, False) and takes(MOST, MOST, False)
    assert not takes(80, 16, True) and not takes(MOST + 1, 16, False) and not takes(80, MOST + 1, False)


@pytest.mark.parametrize("kind", [GPU_FORM, replace(GPU_FORM, refine="none"), replace(GPU_FORM, rotation=True)])
def test_a_copy_answers_what_it_takes_and_the_original_the_rest(
    by_metric: dict[str, CollectionArchive], kind: IvfPq
) -> None:
    """The copy lies on the CPU here. Emptied, it shows which searches went to it."""
    collection = by_metric["ip"]
    kind, index = filled(collection, kind)
    queries, asked = prepared(QUERIES, "ip"), kind.defaults(index)
    alone, copy = kind.opened(index), copied(index, faiss.clone_index)
    both = Inverted(index, copy)
    mine, theirs = (kind.search(one, queries, 10, asked, None) for one in (alone, both))
    np.testing.assert_array_equal(mine[1], theirs[1])
    np.testing.assert_allclose(mine[0], theirs[0])
    assert theirs[2].lists_probed == mine[2].lists_probed
    assert 0.3 < theirs[2].rows_scanned / mine[2].rows_scanned < 3

    few = np.ones(ROWS, np.bool_)
    few[np.unique(mine[1][:3, :5])[:10]] = False  # rows were deleted where the first queries look
    once = np.packbits(few, bitorder="little")
    found, expected = (kind.search(one, queries, 10, asked, once)[1] for one in (both, alone))
    assert few[found].all() and recall(found, expected) >= 0.99

    faiss.downcast_index(getattr(copy, "base_index", copy)).reset()
    np.testing.assert_array_equal(kind.search(both, queries, 10, asked, once)[1], expected)  # nothing is left to sift
    allowed = np.packbits(np.arange(ROWS) % 3 == 0, bitorder="little")
    assert (kind.search(both, queries, 10, asked, None)[1] == NO_ROW).all()
    for k, some in ((10, allowed), (MOST + 1, None)):
        found, expected = (kind.search(one, queries, k, asked, some)[1] for one in (both, alone))
        np.testing.assert_array_equal(found, expected)


def test_auto_keeps_an_index_made_for_either(tmp_path: Path) -> None:
    url = archive_vectors(tmp_path, clustered(600, 20))
    collection = open_collection(url)
    build_indexes(url, [replace(IvfPq(), bits=8, residual=True)], actors=0, device="cpu")
    assert are_current(url, ["ivfpq"]) and are_current(url, ["ivfpq"], device="cuda")
    assert not are_current(url, ["ivfpq"], device="cpu")
    assert build_indexes(url, ["ivfpq"], actors=0) == {}
    published = current_names(indexes_of(collection))
    assert laid_out(collection, IvfPq(), "auto", published).for_gpu() is not None
    assert list(build_indexes(url, ["ivfpq"], actors=0, device="cpu")) == ["ivfpq"]
    assert are_current(url, ["ivfpq"]) and not are_current(url, ["ivfpq"], device="cuda")


@without_gpu
def test_a_shard_here_is_searched_on_the_cpu(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    url = archive_vectors(tmp_path, clustered(600, 20))
    build_indexes(url, ["ivfpq", "hnsw"], actors=0, device="cpu")
    collection = open_collection(url)
    builds = current_builds(indexes_of(collection))
    for kind, build in builds.items():
        shards = [Shard.load(collection, build, 0, device) for device in ("cpu", "auto", "auto")]
        assert all(getattr(shard.index, "on_gpu", None) is None for shard in shards), kind
    assert len(said.messages) == 1
    with pytest.raises(HilbertflowError, match="device: is cuda, but"):
        Shard.load(collection, builds["ivfpq"], 0, "cuda")


@without_gpu
def test_autotune_tries_what_the_device_holds() -> None:
    assert candidates("auto") == candidates("cpu") == CANDIDATES
    with pytest.raises(HilbertflowError, match=r"index\.device: is cuda"):
        candidates("cuda")


def served(**options: Any) -> CollectionConfig:
    """The configuration of one collection."""
    return parse_config({"collections": [{"name": "a", "url": "b"} | options]}).collections[0]


def built(kind: IvfPq) -> dict[str, Build]:
    """Manifest of a build that nothing is read of."""
    return {"ivfpq": Build("b", kind.resolved(5000, 64, "ip"), "f", 5000, 64, "ip", "a", StoredFile("x", 1, "s"), ())}


def test_a_collection_is_served_on_gpus_that_are_there() -> None:
    assert served().device == "auto" and served(device="cuda").usual_tier == "ivfpq" and served().usual_tier is None
    fits, cpu, four, none = built(GPU_FORM), built(IvfPq()), Gpus(4), Gpus(0, "the cluster has no GPU")
    assert share(served(device="cpu"), "ivfpq", fits, 1, four) == 0
    assert share(served(), "hnsw", fits, 1, four) == 0
    assert share(served(), "ivfpq", fits, 2, four) == 1 and share(served(replicas=2), "ivfpq", fits, 2, four) == 1
    assert share(served(replicas=2), "ivfpq", fits, 3, four) == 0
    assert share(served(replicas=2, gpus=0.5), "ivfpq", fits, 3, four) == 0.5
    assert share(served(placement="ingress"), "ivfpq", fits, 1, four) == 0
    assert share(served(), "ivfpq", cpu, 1, four) == 0 and share(served(), "ivfpq", fits, 1, none) == 0
    assert share(served(device="cuda"), "ivfpq", fits, 9, four) == 1  # Serve starts the rest when there are more
    for builds, there, line in ((cpu, four, "codes for the CPU"), (fits, none, "the cluster has no GPU")):
        with pytest.raises(HilbertflowError, match=f"collections a: device: is cuda, but .*{line}.*device auto or cpu"):
            share(served(device="cuda"), "ivfpq", builds, 1, there)
    assert four.less(1.5).count == 2.5 and four.less(9).count == 0


def test_a_configuration_for_a_gpu_is_checked() -> None:
    for options, line in (
        ({"device": "cuda", "tier": "hnsw"}, "tier hnsw has no form for a GPU"),
        ({"device": "cuda", "placement": "ingress"}, "the ingress has no GPU"),
        ({"device": "gpu"}, "collections.0.device"),
        ({"gpus": 0}, "collections.0.gpus"),
    ):
        with pytest.raises(HilbertflowError, match=line):
            served(**options)


@without_gpu
def test_a_service_for_a_gpu_does_not_start_without_one(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    url = archive_vectors(tmp_path, clustered(600, 20))
    build_indexes(url, [replace(IvfPq(), bits=8, residual=True)], actors=0, device="cpu")
    with pytest.raises(HilbertflowError, match="collections a: device: is cuda, but"):
        build_application(parse_config({"collections": [{"name": "a", "url": url, "device": "cuda"}]}))
    build_application(parse_config({"collections": [{"name": "a", "url": url}]}))
    assert [line.split(": ")[0] for line in said.messages] == ["collections a"]


def test_a_replica_on_a_gpu_asks_ray_for_it(tmp_path: Path) -> None:
    """Whole collections, cuda first: what is left goes to `auto`, which else stays in the ingress."""
    url = archive_vectors(tmp_path, clustered(600, 20))
    build_indexes(url, [replace(IvfPq(shards=2), bits=8, residual=True)], actors=0, device="cpu")
    names = {"must": "cuda", "may": "auto", "not": "cpu"}
    config = parse_config({"collections": [{"name": n, "url": url, "device": d} for n, d in names.items()]})
    left = Gpus(3)
    found = {}
    for item in config.collections:
        found[item.name], left = _shard_groups(item, config, left)
    assert {name: len(groups) for name, groups in found.items()} == {"must": 2, "may": 0, "not": 0}
    assert left.count == 1
    for group in found["must"]:
        assert group._bound_deployment.ray_actor_options["num_gpus"] == 1
    may = config.collections[1]
    assert [len(_shard_groups(may, config, Gpus(count))[0]) for count in (1, 2)] == [0, 2]
