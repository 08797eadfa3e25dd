"""Which tier answers: the one that is asked for, or the best one that is built and fresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.index_store import Build
from cluster.query import TIERS, Query
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

PREFERRED = ("hnsw", "ivfpq")  # in memory, most exact first; without them every row is compared
COLD_TODAY = "the cold tier is not part of this version"


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


def available(builds: Mapping[str, Build]) -> tuple[str, ...]:
    """Tiers that can answer, given fresh builds."""
    return ("exact", *(tier for tier in TIERS if tier in builds))


def choose(query: Query, builds: Mapping[str, Build], where: str) -> Choice:
    """The tier for a query over fresh builds; raises when the tier asked for cannot answer."""
    tiers = available(builds)
    if query.tier is not None:
        if query.tier == "cold":
            raise HilbertflowError(COLD_TODAY, where=where, remedy=f"there is {', '.join(tiers)}")
        if query.tier not in tiers:
            raise HilbertflowError(
                f"tier {query.tier!r} is not built, or not over the rows as they are now", where=where,
                remedy=f"there is {', '.join(tiers)}; `hilbertflow run` with index.kind={query.tier} builds it",
            )  # fmt: skip
        takes = builds[query.tier].kind.settings if query.tier != "exact" else ()
        for name in query.overrides.given():
            if name not in takes:
                remedy = f"it has {', '.join(takes)}" if takes else "leave it out"
                raise HilbertflowError(f"{name} does not apply to tier {query.tier!r}", where="search", remedy=remedy)
        return Choice(query.tier, "asked for")
    wanted = set(query.overrides.given())
    for tier in PREFERRED:
        if tier in builds and wanted <= set(builds[tier].kind.settings):
            return Choice(tier, _praise(builds[tier]))
    if wanted:
        raise HilbertflowError(
            f"no tier that is built takes {' and '.join(sorted(wanted))}",
            where=where,
            remedy=f"there is {', '.join(tiers)}",
        )
    return Choice("exact", "no index is built over the rows as they are now")


def _praise(build: Build) -> str:
    measured = [trial["recall"] for trial in build.trials if trial.get("chosen")]
    return f"the best that is built (recall@10 {measured[0]:.3f} when tuned)" if measured else "the best that is built"
