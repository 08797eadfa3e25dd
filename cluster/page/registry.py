"""The models taken together: counts, who descends from whom, what they share, and where two of them differ."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from cluster.model_differences import by_layer
from cluster.model_routes import described
from cluster.page.render import show
from cluster.registry_routes import common, compared, counted, descended
from cluster.services import Services
from operators.descent import Edge

MOST = 40
"""Rows of a table at most."""


@dataclass(frozen=True)
class Branch:
    """A model in the tree: how deep it hangs, and the edge that it hangs on; None for a root."""

    name: str
    depth: int
    edge: Edge | None


async def view(services: Services, request: Request) -> Response:
    """All models that the caller may read."""
    models = services.readable_models(request)
    with services.admitted():
        told, counts, edges = await asyncio.to_thread(lambda: (described(models), counted(models), descended(models)))
    return show("registry.html", models=told, counts=counts, branches=branches([m.name for m in models], edges))


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


def branches(names: Sequence[str], edges: Sequence[Edge]) -> list[Branch]:
    """The tree line by line: each model below its parent, models without relatives last."""
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in edges:
        below[edge.parent].append(edge)
    children = {edge.child for edge in edges}
    out: list[Branch] = []

    def walk(name: str, depth: int, edge: Edge | None) -> None:
        out.append(Branch(name, depth, edge))
        for following in sorted(below[name], key=lambda one: one.child):
            walk(following.child, depth + 1, following)

    roots = [name for name in names if name not in children]
    for name in sorted(roots, key=lambda name: (not below[name], name)):
        walk(name, 0, None)
    return out
