"""The models taken together: counts, who descends from whom, what they share, and where two of them differ."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from cluster.model_differences import by_layer
from cluster.model_routes import described
from cluster.page.render import show
from cluster.recorded_parents import Descent, beside, recorded_parents, verdict
from cluster.registry_routes import common, compared, counted, descended
from cluster.services import Services
from operators.descent import Edge
from operators.errors import HilbertflowError

MOST = 40
"""Rows of a table at most."""


@dataclass(frozen=True)
class Branch:
    """A model in the tree: how deep it hangs, the edge that it hangs on (None for a root), its recorded parent."""

    name: str
    depth: int
    edge: Edge | None
    told: Descent


async def view(services: Services, request: Request) -> Response:
    """All models that the caller may read; `filter` chooses those that the table has and that are counted."""
    models = services.readable_models(request)
    asked, trouble = request.query_params.get("filter", "").strip(), None
    told, counts = list[dict[str, Any]](), dict[str, Any]()
    with services.admitted():
        edges = await services.at_work(lambda: descended(models))
        try:
            told, counts = await asyncio.to_thread(lambda: (described(models, asked), counted(models, asked)))
        except HilbertflowError as error:
            if not asked:
                raise
            trouble = error
    held = beside(edges, recorded_parents(models))
    return show(
        "registry.html", 200 if trouble is None else 422, models=told, counts=counts, filter=asked, trouble=trouble,
        every=len(models), branches=branches(held), verdict=verdict(held.values()),
    )  # fmt: skip


async def shared(services: Services, request: Request) -> Response:
    """What they have in common bit for bit."""
    models = services.readable_models(request)
    with services.admitted():
        found = await asyncio.to_thread(common, models)
    source = sum(model.about["source_bytes"] for model in models)
    return show(
        "shared.html", found=found[:MOST], count=len(found), spare=sum(item.spare for item in found), source=source
    )


async def different(services: Services, request: Request) -> Response:
    """Where the models `m` and `n` differ."""
    first = services.model(request, request.path_params["m"])
    second = services.model(request, request.path_params["n"])
    with services.admitted():
        rows = await asyncio.to_thread(compared, first, second)
    return show(
        "differences.html", first=first.name, second=second.name, layers=by_layer(rows), rows=rows[:MOST],
        count=len(rows),
    )  # fmt: skip


def branches(held: Mapping[str, Descent]) -> list[Branch]:
    """The tree line by line: each model below its parent, models without relatives last."""
    below: dict[str, list[str]] = defaultdict(list)
    for one in held.values():
        if one.edge is not None:
            below[one.edge.parent].append(one.name)
    out: list[Branch] = []

    def walk(name: str, depth: int) -> None:
        out.append(Branch(name, depth, held[name].edge, held[name]))
        for child in sorted(below[name]):
            walk(child, depth + 1)

    roots = [name for name, one in held.items() if one.edge is None]
    for name in sorted(roots, key=lambda name: (not below[name], name)):
        walk(name, 0)
    return out
