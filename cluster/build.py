"""Build indexes over a collection: train once, add shard by shard, publish by one swap."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import faiss

from cluster.artefact import Artefact, content_hash, train
from cluster.build_pool import build_shards
from cluster.builder import ShardTask, build_shard, shard_tasks
from cluster.device import Device, runs_on_gpu
from cluster.index_kind import IndexKind
from cluster.index_store import (
    FORMAT,
    Build,
    ShardFile,
    StoredFile,
    current_names,
    forget_journal,
    has_build,
    indexes_of,
    load_build,
    load_index,
    publish,
    remember,
    remembered,
    save_build,
    save_index,
)
from cluster.indexes import index_kind
from cluster.tune import Questions, tune
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

Progress = Callable[[str, int, int], None]  # what, done, of


def build_indexes(
    url: str,
    kinds: Sequence[str | IndexKind],
    *,
    shards: int | None = None,
    target_recall: float | None = None,
    actors: int | None = None,
    threads: int = 1,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Build]:
    """Build the indexes of a collection that are missing or stale, and make them current together.

    kinds: names of the registry, or kinds with options; `shards` and `target_recall` apply to those given by name.
    actors: size of the Ray actor pool; 0 builds in this process; None takes one a core of the running Ray, or this
    process when none runs. threads: of training. device: what trains, in this process, and what the index is laid out
    to be searched on; see `laid_out`. Returns the builds made by this call, by kind; none when everything was current.
    A build interrupted anywhere goes on from its finished shards when called again.
    """
    collection = open_collection(url)
    if collection.count == 0:
        raise HilbertflowError("the collection is empty", where=collection.url, remedy="add rows first")
    place, common = indexes_of(collection), {"shards": shards or 1, "target_recall": target_recall}
    published = current_names(place)
    wanted = [index_kind({"kind": kind} | common) if isinstance(kind, str) else kind for kind in kinds]
    wanted = [laid_out(collection, kind, device, published) for kind in wanted]
    names = {kind.kind: build_name(collection, kind) for kind in wanted}
    builds = make_builds(collection, wanted, actors=actors, threads=threads, device=device, progress=progress)
    changed = {kind: name for kind, name in names.items() if published.get(kind) != name}
    if changed:
        publish(place, changed)
    return builds | {kind: load_build(place, name) for kind, name in changed.items() if kind not in builds}


def make_builds(
    collection: CollectionArchive,
    wanted: Sequence[IndexKind],
    *,
    actors: int | None = None,
    threads: int = 1,
    device: Device = "auto",
    progress: Progress | None = None,
    asked: Questions | None = None,
) -> dict[str, Build]:
    """Those builds that are missing, complete and tuned but not yet current; see `build_indexes`."""
    place = indexes_of(collection)
    names = {kind.kind: build_name(collection, kind) for kind in wanted}
    missing = [kind for kind in wanted if not has_build(place, names[kind.kind])]
    trained = {names[kind.kind]: _artefact(collection, kind, names[kind.kind], threads, device) for kind in missing}
    work = [
        (artefact, task)
        for name, (artefact, _) in trained.items()
        for task in shard_tasks(name, collection.count, artefact.kind.shards)
    ]
    done: dict[str, list[ShardFile]] = {name: [] for name in trained}
    for count, (task, stored) in enumerate(_run(collection, work, _pool_size(actors, len(work))), 1):
        done[task.build].append(stored)
        if progress is not None:
            progress(f"{task.build} shard {task.number}", count, len(work))
    builds = {}
    for name, (artefact, file) in trained.items():
        build = _complete(collection, name, artefact, file, done[name])
        tuned = artefact.kind.target_recall is not None
        builds[artefact.kind.kind] = tune(collection, build, asked) if tuned else build
    for build in builds.values():
        save_build(place, build)
        forget_journal(place, build)
    return builds


def are_current(
    url: str,
    kinds: Sequence[str],
    *,
    shards: int | None = None,
    target_recall: float | None = None,
    device: Device = "auto",
) -> bool:
    """Whether these indexes are built and published, so that `build_indexes` would have nothing to do."""
    collection = open_collection(url)
    place, common = indexes_of(collection), {"shards": shards or 1, "target_recall": target_recall}
    published = current_names(place)
    return all(
        _current(collection, forms(index_kind({"kind": kind} | common), device), published) is not None
        and has_build(place, published[kind])
        for kind in kinds
    )


def forms(kind: IndexKind, device: Device) -> tuple[IndexKind, ...]:
    """The layouts of a kind that do for a device; raises where none does."""
    gpu = kind.for_gpu()
    if device == "cuda" and gpu is None:
        raise HilbertflowError(
            f"is cuda, but {kind.kind} as it is asked for has no form for a GPU", where="index.device",
            remedy="use kind ivfpq with codes of 8 bits, or device auto or cpu",
        )  # fmt: skip
    found: dict[Device, tuple[IndexKind | None, ...]] = {"cpu": (kind,), "cuda": (gpu,), "auto": (kind, gpu)}
    return tuple(form for form in found[device] if form is not None)


def laid_out(collection: CollectionArchive, kind: IndexKind, device: Device, published: Mapping[str, str]) -> IndexKind:
    """The kind in the layout for a device.

    A GPU scans other codes than a CPU does fastest. `auto` takes those for what this process has, but keeps an index
    that is current whichever it was made for: both can be searched on a CPU. Raises `HilbertflowError` for `cuda` where
    there is no GPU, or the kind has no form for one.
    """
    possible = forms(kind, device)
    if device == "auto" and (current := _current(collection, possible, published)) is not None:
        return current
    gpu = (device == "cuda" or len(possible) > 1) and runs_on_gpu(device, "index.device")
    return possible[-1 if gpu else 0]


def _current(
    collection: CollectionArchive, possible: Sequence[IndexKind], published: Mapping[str, str]
) -> IndexKind | None:
    """The one of these forms of a kind that is published."""
    found = (form for form in possible if published.get(form.kind) == build_name(collection, form))
    return next(found, None)


def open_collection(url: str) -> CollectionArchive:
    """The collection at `url` (or the only one under a root); raises for a model."""
    from storage import archive

    handle = archive.open(url)
    if not isinstance(handle, CollectionArchive):
        raise HilbertflowError("is a model, not a collection", where=handle.url, remedy="name a collection")
    return handle


def build_name(collection: CollectionArchive, kind: IndexKind) -> str:
    """Name of a build, from what its bytes derive from: rows, options, format."""
    kind = kind.resolved(collection.count, collection.dim, collection.metric)
    origin = [FORMAT, collection.fingerprint, collection.count, collection.metric, dataclasses.asdict(kind)]
    return f"{kind.kind}-{hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]}"


def _artefact(
    collection: CollectionArchive, kind: IndexKind, build: str, threads: int, device: Device
) -> tuple[Artefact, StoredFile]:
    """Trained and written before any shard; a build that goes on takes the one its shards were made with."""
    place = indexes_of(collection)
    done = remembered(place, build, "artefact")
    if done is not None:
        stored = StoredFile(**done[1])
        index = load_index(place, stored)
        if content_hash(index) == done[0]:
            data = bytes(faiss.serialize_index(index))
            resolved = kind.resolved(collection.count, collection.dim, collection.metric)
            return Artefact(resolved, collection.metric, collection.dim, done[0], data), stored
    artefact = train(collection, kind, threads, device)
    stored = save_index(place, f"{build}/artefact.faiss", artefact.empty())
    remember(place, build, "artefact", artefact.hash, stored)
    return artefact, stored


def _run(collection: CollectionArchive, work: Sequence[tuple[Artefact, ShardTask]], actors: int) -> Any:
    if actors:
        return build_shards(collection.url, work, actors)
    return ((task, build_shard(collection, artefact, task)) for artefact, task in work)


def _pool_size(actors: int | None, tasks: int) -> int:
    if actors is None:
        import ray

        if not ray.is_initialized():
            return 0
        actors = int(ray.cluster_resources().get("CPU", 1))
    return min(actors, tasks)


def _complete(
    collection: CollectionArchive, name: str, artefact: Artefact, stored: StoredFile, shards: list[ShardFile]
) -> Build:
    return Build(
        build=name, kind=artefact.kind, fingerprint=collection.fingerprint, count=collection.count, dim=collection.dim,
        metric=collection.metric, artefact=artefact.hash, artefact_file=stored,
        shards=tuple(sorted(shards, key=lambda shard: shard.start)),
    )  # fmt: skip
