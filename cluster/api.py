"""The HTTP interface over what is served. It knows no Ray: `cluster.serve_app` puts it on Serve."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from cluster.collection_routes import collection_routes
from cluster.model_routes import model_routes
from cluster.openapi import describe
from cluster.page.routes import page_routes
from cluster.problems import RESPONSES, Refused, install
from cluster.readiness import Ready
from cluster.registry_routes import registry_routes
from cluster.row_routes import row_routes
from cluster.search_route import search_route
from cluster.services import Services
from cluster.similar_routes import similar_routes
from cluster.straight import Straight
from cluster.verify_route import verify_route

_ABOUT = """Search over archived collections of embeddings, and archived models at any fidelity.

Every error is a problem document (RFC 9457) that says what is wrong and what to do. Where the service has keys, send
`Authorization: Bearer KEY`."""


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(description="Always `ok`.", examples=["ok"])


class Whether(BaseModel):
    """Whether everything is loaded, for a caller without a key."""

    ready: bool = Field(description="True when nothing is missing.")


def build_api(services: Services) -> FastAPI:
    """The application; every error it gives is a problem document."""

    @contextlib.asynccontextmanager
    async def watching(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (services.watch(), services.watch_recall())]
        yield
        for task in tasks:
            task.cancel()

    app = Straight(
        services.metrics, title="hilbertflow", version="1", description=_ABOUT, lifespan=watching, docs_url=None,
        redoc_url=None, openapi_url=None,
    )  # fmt: skip
    install(app)
    search_route(app, services)
    collection_routes(app, services)
    row_routes(app, services)
    similar_routes(app, services)
    registry_routes(app, services)
    verify_route(app, services)
    model_routes(app, services)
    _state_routes(app, services)
    page_routes(app, services)
    describe(app, services)
    return app


def _state_routes(app: FastAPI, services: Services) -> None:
    @app.get("/healthz", summary="The process lives", tags=["state"])
    async def healthz() -> Alive:
        """Always 200 while the process answers."""
        return Alive(status="ok")

    @app.get(
        "/readyz", summary="Everything is loaded", tags=["state"], response_model=Ready | Whether,
        responses={503: {"model": Ready | Whether, "description": "Some is not; the answer says what, and why."}},
    )  # fmt: skip
    async def readyz(request: Request) -> Response:
        """200 when every shard group answers and every encoder has loaded, else 503 and which do not; told anew once a
        second.

        Where there are keys, the answer names only collections that the caller's key may read, and without a key none:
        it holds `ready` alone.
        """
        ready = await services.readiness.now()
        return JSONResponse(_shown(ready, services, request), 200 if ready.ready else 503)

    few: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (401, 403)}

    @app.get(
        "/metrics", summary="Prometheus metrics", tags=["state"], response_class=Response,
        responses={**few, 200: {"description": "Text format.", "content": {"text/plain": {}}}},
    )  # fmt: skip
    async def metrics(request: Request) -> Response:
        """Requests, latency, batch sizes, rows scanned, bytes read, cache hits, recall; where there are keys, needs one
        for `metrics:*` or `read:*`.
        """
        services.measurable(request)
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _shown(ready: Ready, services: Services, request: Request) -> dict[str, Any]:
    """What this caller may know of it: `ready` to anybody, names as its key allows."""
    try:
        key = services.key(request)
    except Refused:
        return Whether(ready=ready.ready).model_dump()
    if key is None:
        return ready.model_dump()
    seen = {name for name in services.collections if key.allows("read", name) or key.allows("metrics", "*")}
    missing = {name: groups for name, groups in ready.missing_groups.items() if name in seen}
    encoders = [
        item.model_copy(update={"collections": [name for name in item.collections if name in seen]})
        for item in ready.encoders
        if seen.intersection(item.collections)
    ]
    return Ready(ready=ready.ready, missing_groups=missing, encoders=encoders).model_dump()
