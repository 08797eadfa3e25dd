"""The first view: what is served, how large it is, and whether it is ready."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from cluster.page.render import show
from cluster.service import CollectionService
from cluster.services import Services


async def view(services: Services, request: Request) -> Response:
    """Collections and models that the caller may read, with their sizes."""
    collections = services.readable(request)
    models = services.readable_models(request)
    missing = await asyncio.gather(*(item.missing() for item in collections))
    told = await asyncio.to_thread(lambda: [item.about for item in models])
    return show(
        "home.html",
        collections=[collection_card(item, groups) for item, groups in zip(collections, missing, strict=True)],
        models=told,
    )


def collection_card(item: CollectionService, missing: list[int]) -> dict[str, Any]:
    """What is told of a collection: `about`, and the bytes of its archive and of its indexes."""
    about = item.about()
    return about | {
        "archive_bytes": sum(item.collection.manifest.levels.values()),
        "index_bytes": sum(index["bytes"] for index in about["indexes"].values()),
        "missing": missing,
    }
