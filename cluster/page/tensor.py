"""A tensor: its planes as pictures at every level, its way through a chain of checkpoints, and its files."""

from __future__ import annotations

import asyncio
from math import prod

from fastapi import Request
from fastapi.responses import Response

from cluster.page.render import show
from cluster.problems import Refused
from cluster.services import Services


async def view(services: Services, request: Request) -> Response:
    """The tensor `t` of the model `m`, at `level`, the finest unless given."""
    m, t = request.path_params["m"], request.path_params["t"]
    chosen = services.model(request, m)
    await asyncio.to_thread(lambda: chosen.archive.layout)
    if t not in chosen.archive.layout.by_name:
        raise Refused(404, f"model {m!r} has no tensor {t[:200]!r}", remedy="the model's page lists them")
    place = chosen.archive.layout.by_name[t]
    names = list(chosen.archive.names)
    at = names.index(t)
    levels = [str(level) for level in chosen.archive.levels]
    wanted = request.query_params.get("level") or levels[-1]
    level = str(chosen.level(wanted))
    return show(
        "tensor.html",
        model=m, tensor=place, levels=levels, level=level, values=prod(place.shape),
        side=chosen.archive.layout.side, planes=-(-prod(place.shape) // chosen.archive.layout.area),
        depth=chosen.archive.link.depth if chosen.archive.link else 0,
        before=names[at - 1] if at else "", behind=names[at + 1] if at + 1 < len(names) else "",
    )  # fmt: skip
