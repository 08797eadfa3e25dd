"""The models most like one, by their signatures."""

from __future__ import annotations

import asyncio

from fastapi import Request
from fastapi.responses import Response

from cluster.nearest_models import neighbours
from cluster.page.render import show
from cluster.services import Services

MOST = 20


async def view(services: Services, request: Request) -> Response:
    """Of the model `m`, among those that the caller may read."""
    chosen = services.model(request, request.path_params["m"])
    with services.admitted():
        found = await asyncio.to_thread(neighbours, chosen, services.readable_models(request), MOST)
    return show(
        "near.html", model=chosen.name, found=found, kinds=sorted({kind for one in found for kind in one.by_kind})
    )
