"""What a process does before it answers: indexes loaded, and every kernel that a request could meet compiled.

Numba compiles a kernel at its first call, for seconds, and keeps it on disk; without this the first queries of a fresh
installation would wait for it. Each kernel is met by the real call, over as few rows as there can be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cluster.index_store import Build
from cluster.models import ModelService
from cluster.planner import available, choose
from cluster.query import Query
from cluster.shard_set import ShardSet
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from storage.layout import Placement

ROWS = 64  # of a collection's share that is searched to meet its kernels
PLANES = 16  # of a tensor

_log = logging.getLogger("hilbertflow.serve")
_met: set[tuple[Any, ...]] = set()
"""What this process has called already: a swap to a newer version meets only what is new in it."""


def warm(shards: ShardSet, tier: str | None) -> None:
    """Load what queries that name no tier will need, and search once, so that the first of them waits for nothing."""
    tier = choose(Query(tier=tier), shards.builds, shards.collection).tier
    shards.load(tier)
    if tier != "exact":
        shards.search(np.zeros((1, shards.collection.dim), np.float32), Query(k=1, tier=tier))


def meet_rows(collection: CollectionArchive, builds: Mapping[str, Build]) -> None:
    """Search every tier that a query may name, each over a small share of the rows and one shard that is let go again.

    A tier that cannot be searched is logged: whoever asks for it is told why.
    """
    groups = max(1, collection.count // ROWS, *(len(build.shards) for build in builds.values()))
    for tier in available(builds, collection):
        made = repr(builds[tier].kind) if tier in builds else collection.manifest.recipe_hash
        if (tier, made) in _met:
            continue
        try:
            few = ShardSet(collection, builds, 0, groups)
            for _ in range(2):  # the second time out of what the first one kept
                few.search(np.zeros((1, collection.dim), np.float32), Query(k=1, tier=tier))
        except HilbertflowError as error:
            _log.warning("%s of %s was not tried: %s", tier, collection.url, error)
        _met.add((tier, made))


def meet_tensors(models: Iterable[ModelService]) -> None:
    """Read one plane and some of the smallest and the largest tensor of every dtype, at every level, of each way in
    which models were made: which kernels are met depends on both.

    A model that cannot be read is logged: whoever asks for it is told why.
    """
    for model in models:
        handle = model.archive
        sizes: dict[tuple[str, bool], list[Placement]] = {}
        for place in sorted(handle.layout.placements, key=lambda place: place.words):
            if place.words:
                sizes.setdefault((place.dtype, place.opaque), []).append(place)
        for (dtype, opaque), places in sizes.items():
            made = ("tensor", handle.manifest.recipe_hash, handle.link is None, dtype, opaque)
            if made in _met:
                continue
            for place in {places[0].name: places[0], places[-1].name: places[-1]}.values():
                _meet_tensor(model, place)
            _met.add(made)


def _meet_tensor(model: ModelService, place: Placement) -> None:
    handle, spans = model.archive, [""]
    if place.shape and not place.opaque:
        rows = -(-PLANES * handle.layout.area * place.shape[0] // place.words)
        spans = [":1", f":{min(rows, place.shape[0])}"]
    try:
        for level in map(str, handle.levels):
            for span in spans:
                for _ in model.file(place.name, level, span, "safetensors").read():
                    pass
        model.picture(place.name, "", 1)
    except HilbertflowError as error:
        _log.warning("%s of %s was not tried: %s", place.name, handle.url, error)
