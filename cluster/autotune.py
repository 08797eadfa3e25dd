"""Which tier, and how hard it looks: chosen for a recall and a budget of memory, measured on the collection itself.

Candidates stand in the order of their speed (`hilbertflow bench search`). The first that fits the budget and reaches
the recall on held-out rows is taken; where none does, the collection is searched where it lies. What was tried is kept
beside the builds and shown by `hilbertflow info`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cluster.artefact import train
from cluster.build import Progress, build_name, make_builds, open_collection
from cluster.device import Device, runs_on_gpu
from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind
from cluster.index_store import (
    Build,
    current_choice,
    current_names,
    has_build,
    indexes_of,
    load_build,
    publish,
)
from cluster.ivfpq import IvfPq
from cluster.planner import has_lists
from cluster.tune import Questions, reaches, tune_cold
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

CANDIDATES: tuple[IndexKind, ...] = (
    Hnsw(), Hnsw(store="sq8"), IvfPq(), IvfPq(refine="sq8"), IvfPq(refine="archive"),
)  # fmt: skip
TARGET = 0.95


def choose_index(
    url: str,
    *,
    target_recall: float | None = None,
    memory: int | None = None,
    shards: int = 1,
    actors: int | None = None,
    threads: int = 1,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Build]:
    """Build, tune and make current the tier that suits; nothing when that was done for these rows before.

    target_recall: of recall@10, 0.95 if not given. memory: bytes that the index may hold resident, all shards together;
    None for as many as it takes. device: as of `build_indexes`; `cuda` tries only what a GPU holds. Returns the builds
    made by this call, by kind.
    """
    collection = open_collection(url)
    if collection.count == 0:
        raise HilbertflowError("the collection is empty", where=collection.url, remedy="add rows first")
    place, target = indexes_of(collection), target_recall or TARGET
    wanted = _wanted(collection, target, memory, shards, device)
    if is_chosen(collection, target_recall, memory, shards, device):
        return {}
    questions, tried, made = Questions.of(collection), list[dict[str, Any]](), dict[str, Build]()
    best: Build | None = None
    for candidate in candidates(device):
        kind = dataclasses.replace(candidate, shards=shards, target_recall=target)
        trained = train(collection, kind, threads, device)
        resident = trained.kind.resident(trained.empty(), collection.count, collection.dim)
        said = {"tier": kind.kind, "kept": _kept(kind), "bytes": resident}
        if memory is not None and resident > memory:
            tried.append(said | {"fits": False})
            continue
        made |= make_builds(
            collection, [kind], actors=actors, threads=threads, device=device, progress=progress, asked=questions
        )
        build = load_build(place, build_name(collection, kind))
        trial = next((trial for trial in build.trials if trial.get("chosen")), {"recall": 1.0})
        tried.append(said | {"fits": True} | {key: value for key, value in trial.items() if key != "chosen"})
        best = max((b for b in (best, build) if b is not None), key=_recall)
        if reaches(trial, target):
            break
    chosen: dict[str, Any] = {
        "tier": best.kind.kind if best else "exact",
        "settings": best.tuned.given() if best else {},
    }
    if (best is None or _recall(best) < target) and has_lists(collection):
        setting, trials = tune_cold(collection, target, questions)
        (trial,) = [trial for trial in trials if trial.pop("chosen", False)]
        tried.append({"tier": "cold", "kept": "the archive", "bytes": 0, "fits": True} | trial)
        if best is None or trial["recall"] > _recall(best):
            best, chosen = None, {"tier": "cold", "settings": setting.given()}
    tried[_place(tried, chosen, best)]["chosen"] = True
    names = {best.kind.kind: best.build} if best else {}
    publish(place, names, wanted | chosen | {"trials": tried})
    return {kind: build for kind, build in made.items() if best and build.build == best.build}


def candidates(device: Device) -> tuple[IndexKind, ...]:
    """The kinds that are tried, in the layouts for a device."""
    if not runs_on_gpu(device, "index.device"):
        return CANDIDATES
    held = ((kind, kind.for_gpu()) for kind in CANDIDATES)
    return tuple(gpu or kind for kind, gpu in held if gpu is not None or device != "cuda")


def is_chosen(
    collection: CollectionArchive, target: float | None, memory: int | None, shards: int, device: Device = "auto"
) -> bool:
    """Whether `choose_index` was asked the same of the same rows, and what it chose is there and current."""
    place = indexes_of(collection)
    found = current_choice(place)
    if found is None or not _wanted(collection, target or TARGET, memory, shards, device).items() <= found.items():
        return False
    names = current_names(place)
    return set(names) <= {found["tier"]} and all(has_build(place, name) for name in names.values())


def _wanted(
    collection: CollectionArchive, target: float, memory: int | None, shards: int, device: Device
) -> dict[str, Any]:
    asked = {
        "fingerprint": collection.fingerprint, "rows": collection.count, "target_recall": target, "memory": memory,
        "shards": shards,
    }  # fmt: skip
    return asked if device == "auto" else asked | {"device": device}


def _kept(kind: IndexKind) -> str:
    """What vectors are re-ranked by."""
    return str(kind.store if isinstance(kind, Hnsw) else kind.refine if isinstance(kind, IvfPq) else "")


def _recall(build: Build) -> float:
    return max((float(trial["recall"]) for trial in build.trials if trial.get("chosen")), default=1.0)


def _place(tried: list[dict[str, Any]], chosen: dict[str, Any], best: Build | None) -> int:
    """Which of those tried it is."""
    if best is not None:
        return next(i for i, t in enumerate(tried) if (t["tier"], t["kept"]) == (best.kind.kind, _kept(best.kind)))
    if chosen["tier"] == "exact":
        tried.append({"tier": "exact", "kept": "the archive", "bytes": 0, "fits": True, "recall": 1.0})
    return len(tried) - 1
