"""Which tier answers: the one that is asked for, or the best one that is built and fresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.index_store import Build
from cluster.query import TIERS, Query
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

PREFERRED = ("hnsw", "ivfpq")  # in memory, most exact first
COLD = ("nprobe", "refine", "level")
IN_PLACE = {"cold": COLD, "exact": ("level",)}
"""Overrides of the tiers that read the archive."""
SCAN_BYTES = 32 << 20
SCAN_REMOTE_BYTES = 4 << 20
"""Vectors, as float32, that `auto` fetches and compares one by one where nothing is built: on disk, over a network."""


@dataclass(frozen=True)
class Choice:
    """A tier and why it was taken, for `explain`."""

    tier: str
    reason: str


def fresh(collection: CollectionArchive, builds: Mapping[str, Build]) -> dict[str, Build]:
    """The builds that index the collection as it is now."""
    now = (collection.fingerprint, collection.count, collection.dim, collection.metric)
    return {
        kind: build
        for kind, build in builds.items()
        if (build.fingerprint, build.count, build.dim, build.metric) == now
    }


def available(builds: Mapping[str, Build], collection: CollectionArchive) -> tuple[str, ...]:
    """Tiers that can answer, given fresh builds; `cold` where rows lie in lists."""
    own = ("exact", "cold") if has_lists(collection) else ("exact",)
    return (*own, *(tier for tier in TIERS if tier in builds))


def has_lists(collection: CollectionArchive) -> bool:
    """Whether rows that are near each other lie together, so that a query can read some of them only."""
    return int(collection.attributes.get("lists", 1)) > 1


def choose(query: Query, builds: Mapping[str, Build], collection: CollectionArchive, where: str = "") -> Choice:
    """The tier for a query over fresh builds; raises when the tier asked for cannot answer.

    In memory first. Without an index, lists are read in place where comparing every row would take long, and every row
    is compared where not.
    """
    tiers, where = available(builds, collection), where or collection.url
    level, finest = query.overrides.level, len(collection.levels) - 1
    if level is not None and level > finest:
        raise HilbertflowError(
            f"there is no level {level}", where=where, remedy=f"levels are 0 to {finest}, the last of them exact"
        )
    if query.tier is not None:
        if query.tier == "cold" and query.tier not in tiers:
            raise HilbertflowError(
                "tier 'cold' needs rows that lie in lists", where=where,
                remedy=f"there is {', '.join(tiers)}; an archive made with row_blocks.order=lists has lists",
            )  # fmt: skip
        if query.tier not in tiers:
            raise HilbertflowError(
                f"tier {query.tier!r} is not built, or not over the rows as they are now", where=where,
                remedy=f"there is {', '.join(tiers)}; `hilbertflow run` with index.kind={query.tier} builds it",
            )  # fmt: skip
        takes = builds[query.tier].kind.settings if query.tier in builds else IN_PLACE[query.tier]
        for name in query.overrides.given():
            if name not in takes:
                remedy = f"it has {', '.join(takes)}" if takes else "leave it out"
                raise HilbertflowError(f"{name} does not apply to tier {query.tier!r}", where="search", remedy=remedy)
        return Choice(query.tier, "asked for")
    wanted = set(query.overrides.given())
    for tier in PREFERRED:
        if tier in builds and wanted <= set(builds[tier].kind.settings):
            return Choice(tier, _praise(builds[tier]))
    size, remote = 4 * collection.count * collection.dim, collection.place.local_path is None
    if "cold" in tiers and wanted <= set(COLD) and (wanted or size > (SCAN_REMOTE_BYTES if remote else SCAN_BYTES)):
        far = " over the network" if remote else ""
        return Choice("cold", f"no index is built, and comparing all {size / 1e6:,.0f} MB of rows{far} takes longer")
    if wanted == {"level"}:
        return Choice("exact", "a level is asked for")
    if wanted:
        raise HilbertflowError(
            f"no tier that is built takes {' and '.join(sorted(wanted))}",
            where=where,
            remedy=f"there is {', '.join(tiers)}",
        )
    return Choice("exact", "no index is built over the rows as they are now, and there are few")


def _praise(build: Build) -> str:
    found = "" if build.reached is None else f" (recall@10 {build.reached:.3f} when tuned)"
    return f"the best that is built{found}"
