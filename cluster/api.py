"""The HTTP interface over served collections. It knows no Ray: `cluster.serve_app` puts it on Serve."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from cluster.http_edge import Counted, accepted, whole_body
from cluster.page import page_answer
from cluster.problems import RESPONSES, Refused, install
from cluster.services import Services
from cluster.wire import (
    ARROW,
    FLOATS,
    INPUTS,
    JSON,
    NDJSON,
    SearchOptions,
    SearchRequest,
    SearchResponse,
    parse_request,
    render,
)

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_BINARY = {"type": "string", "format": "binary"}
_REQUEST = {
    "required": True,
    "content": {
        JSON: {"schema": SearchRequest.model_json_schema()},
        ARROW: {"schema": _BINARY | {"description": "A column `vector` (lists of float32) or `text`, a row a query."}},
        FLOATS: {"schema": _BINARY | {"description": "float32, little-endian, queries * dim of them."}},
    },
}
_OPTIONS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": schema.get("description", "") + " For Arrow and float32 bodies; JSON bodies hold it themselves.",
    }
    for name, schema in SearchOptions.model_json_schema()["properties"].items()
]


def build_api(services: Services) -> FastAPI:
    """The application; every error it gives is a problem document."""
    app = FastAPI(title="hilbertflow", version="1", summary="Search over archived collections of embeddings.")
    install(app)
    app.add_middleware(Counted, metrics=services.metrics)
    _search_routes(app, services)
    _collection_routes(app, services)
    _state_routes(app, services)
    return app


def _search_routes(app: FastAPI, services: Services) -> None:
    @app.post(
        "/v1/collections/{c}/search",
        summary="Find the rows nearest to one or many queries",
        tags=["search"],
        response_model=SearchResponse,
        responses=RESPONSES,
        openapi_extra={"requestBody": _REQUEST, "parameters": _OPTIONS},
    )
    async def search(c: str, request: Request) -> Response:
        """Queries are vectors (JSON arrays, base64, raw float32 or Arrow) or texts; answers JSON, NDJSON or Arrow.

        A result is `partial` when a shard did not answer. NaN and infinity, another dimension, more queries or a larger
        body than the service takes are refused.
        """
        services.collection(request, c)
        kind = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        if kind not in INPUTS:
            raise Refused(415, f"content type {kind[:80]!r} is not known", remedy=f"send {', '.join(INPUTS)}")
        if services.active >= services.limits.waiting:
            raise Refused(503, "too many requests at once", remedy="send it again", headers={"Retry-After": "1"})
        services.active += 1
        try:
            return await answer(c, kind, accepted(request.headers.get("Accept", "")), request)
        finally:
            services.active -= 1

    async def answer(c: str, kind: str, output: str, request: Request) -> Response:
        service, limits = services.collections[c], services.limits
        asked = parse_request(
            kind, await whole_body(request, limits), dict(request.query_params), service.collection.dim
        )
        queries, k = len(asked.vectors if asked.texts is None else asked.texts), asked.options.k
        if queries > limits.queries or k > limits.k or queries * k > limits.answers:
            raise Refused(
                413,
                f"{queries} queries of k = {k} are too many",
                remedy=f"at most {limits.queries} queries, k {limits.k}, {limits.answers} answers in all",
            )
        query = asked.options.query()
        vectors = asked.vectors if asked.texts is None else await services.vectors(c, asked.texts)
        results = await service.search(vectors, query)
        services.metrics.answered(c, results)
        wanted = asked.options.metadata and output != ARROW
        metadata = await service.metadata(results.rows) if wanted else None
        pieces = render(output, results, metadata, asked.options.explain)
        if output == NDJSON:
            return StreamingResponse(pieces, media_type=output)
        return Response(b"".join(pieces), media_type=output)


def _collection_routes(app: FastAPI, services: Services) -> None:
    few: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (401, 403, 404)}

    @app.get("/v1/collections", summary="List the collections", tags=["collections"], responses={401: RESPONSES[401]})
    async def collections(request: Request) -> dict[str, list[dict[str, Any]]]:
        """Those that the caller may read."""
        return {"collections": [service.about() for service in services.readable(request)]}

    @app.get("/v1/collections/{c}", summary="Describe a collection", tags=["collections"], responses=few)
    async def collection(c: str, request: Request) -> dict[str, Any]:
        """Rows, dimension, metric, metadata columns, tiers and indexes."""
        return services.collection(request, c).about()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        readable = services.readable(request)
        name = request.query_params.get("c") or (readable[0].name if readable else "")
        html = await page_answer(services, readable, services.collection(request, name), dict(request.query_params))
        return HTMLResponse(html, headers=_PAGE_HEADERS)


def _state_routes(app: FastAPI, services: Services) -> None:
    @app.get("/healthz", summary="The process lives", tags=["state"])
    async def healthz() -> dict[str, str]:
        """Always 200 while the process answers."""
        return {"status": "ok"}

    @app.get(
        "/readyz", summary="Every shard is loaded", tags=["state"], responses={503: {"description": "Some are not."}}
    )
    async def readyz() -> Response:
        """200 when every shard group answers, else 503 and which do not."""
        states = await asyncio.gather(*(service.missing() for service in services.collections.values()))
        missing = {name: groups for name, groups in zip(services.collections, states, strict=True) if groups}
        return JSONResponse({"ready": not missing, "missing_groups": missing}, 503 if missing else 200)

    @app.get("/metrics", summary="Prometheus metrics", tags=["state"], response_class=Response)
    async def metrics() -> Response:
        """Requests, latency, batch sizes, rows scanned, bytes read."""
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
