"""The state of the system: what answers, in which version, how much is asked, what pipelines are at work."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from cluster.page.home import collection_card
from cluster.page.render import show
from cluster.recent import SECONDS, Recent
from cluster.service import CollectionService
from cluster.services import Services
from operators.errors import HilbertflowError
from storage.archive import FOLDERS
from storage.fs import Location
from storage.rowlog import home_of
from storage.under_way import UnderWay, under_way

STALE_S = 120.0
"""A run that has written neither a unit nor its lease for longer may have been stopped."""


@dataclass(frozen=True)
class Bar:
    """A bar of the throughput's picture: place, height and width, each in percent."""

    x: float
    height: float
    width: float


async def view(services: Services, request: Request) -> Response:
    """Of this ingress process: with several of them, each counts what it answered itself."""
    key = services.key(request)
    collections, models = services.readable(request), services.readable_models(request)
    missing = await asyncio.gather(*(services.readiness.missing(item.name) for item in collections))
    names = {item.name for item in collections}
    encoders = [item for item in await services.readiness.encoders() if names.intersection(item.collections)]
    roots = {_root(home_of(item.collection).url) for item in collections} | {_root(m.archive.url) for m in models}
    runs, silent = await asyncio.to_thread(_runs, sorted(roots - {""}))
    return show(
        "state.html",
        collections=[
            collection_card(item, groups)
            | {"asked": _asked(services, item), "recalls": services.metrics.recalls.get(item.name, {})}
            for item, groups in zip(collections, missing, strict=True)
        ],
        models=models, encoders=encoders, active=services.active, waiting=services.limits.waiting,
        memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        runs=[_told(run) for run in runs if key is None or key.allows("read", run.name)], silent=silent,
    )  # fmt: skip


def _asked(services: Services, item: CollectionService) -> dict[str, Any]:
    recent = services.metrics.recent.get(item.name, Recent())
    seconds, (mean, longest) = recent.by_second(), recent.latency()
    most = max(seconds)
    bars = [
        Bar(100 * at / len(seconds), 100 * count / most, 100 / len(seconds))
        for at, count in enumerate(seconds) if count
    ]  # fmt: skip
    return {
        "queries": recent.queries, "partial": recent.partial, "rate": sum(seconds) / len(seconds), "most": most,
        "mean": mean, "longest": longest, "bars": bars, "span": SECONDS,
    }  # fmt: skip


def _runs(roots: list[str]) -> tuple[list[UnderWay], list[str]]:
    """Runs below all roots, and the roots that could not be read."""
    runs: list[UnderWay] = []
    silent = []
    for root in roots:
        try:
            runs += under_way(Location(root))
        except HilbertflowError:
            silent.append(root)
    return runs, silent


def _told(run: UnderWay) -> dict[str, Any]:
    now = time.time()
    since = run.last or run.began
    quiet = now - max(since, run.heard or 0.0)
    left = None
    if run.last is not None and 0 < run.done < run.units:
        # The unit at work may already have taken longer than those before it did.
        pace = max(0.0, (run.last - run.began) / run.done, (now - run.began) / (run.done + 1))
        left = (run.units - run.done) * pace
    return {"run": run, "since": now - since, "quiet": quiet, "stale": quiet > STALE_S, "left": left}


def _root(url: str) -> str:
    """The root of an archive's address, ROOT/models/NAME; empty when it lies elsewhere."""
    folder, _, name = url.rpartition("/")
    root, _, kind = folder.rpartition("/")
    return root if kind in FOLDERS and name else ""
