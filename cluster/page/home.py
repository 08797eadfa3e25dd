"""The first view: what is served, how large it is, and whether it is ready."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from cluster.model_routes import described
from cluster.page.render import show
from cluster.service import CollectionService
from cluster.services import Services
from operators.errors import HilbertflowError


async def view(services: Services, request: Request) -> Response:
    """Collections and models that the caller may read, with their sizes; `filter` chooses models."""
    collections = services.readable(request)
    models = services.readable_models(request)
    missing = await asyncio.gather(*(services.readiness.missing(item.name) for item in collections))
    names = {item.name for item in collections}
    unloaded = [
        item for item in await services.readiness.encoders()
        if item.state != "loaded" and names.intersection(item.collections)
    ]  # fmt: skip
    asked, trouble = request.query_params.get("filter", "").strip(), None
    told: list[dict[str, Any]] = []
    try:
        told = await asyncio.to_thread(described, models, asked)
    except HilbertflowError as error:
        if not asked:
            raise
        trouble = error
    return show(
        "home.html", 200 if trouble is None else 422,
        collections=[collection_card(item, groups) for item, groups in zip(collections, missing, strict=True)],
        unloaded=unloaded, models=told, every=[item.about for item in models], filter=asked, trouble=trouble,
    )  # fmt: skip


def collection_card(item: CollectionService, missing: list[int]) -> dict[str, Any]:
    """What is told of a collection: `about`, and the bytes of its archive and of its indexes."""
    about = item.about()
    return about | {
        "archive_bytes": sum(item.collection.manifest.levels.values()),
        "index_bytes": sum(index["bytes"] for index in about["indexes"].values()),
        "missing": missing,
    }
