"""The HTTP route that searches: vectors or texts in, answers out, in every form of `cluster.wire`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Path, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams

from cluster.http_edge import accepted, whole_body
from cluster.json_vectors import LARGE
from cluster.media import ARROW, FLOATS, FORM, JPEG, JSON, NDJSON, PNG
from cluster.picture_wire import read_form
from cluster.problems import RESPONSES, Refused
from cluster.services import Services
from cluster.straight import Straight
from cluster.vectors import F32
from cluster.wire import (
    TOGETHER,
    Asked,
    SearchOptions,
    SearchRequest,
    SearchResponse,
    parse_request,
    render,
    url_search_options,
)

PATH = "/v1/collections/{c}/search"
AT_ONCE = 256  # queries of a batch whose answers are sent, as lines, before the next ones are searched
Collection = Annotated[
    str, Path(description="Name of the collection, as `GET /v1/collections` lists it.", examples=["docs"])
]

_BINARY = {"type": "string", "format": "binary"}
_EXAMPLES = {
    "text": {"summary": "by text", "value": {"texts": ["singular value decomposition"], "k": 5}},
    "vector": {
        "summary": "by vector (as many values as the collection has dimensions)",
        "value": {"vectors": [[0.1, 0.2, 0.3]], "k": 5, "filter": "lines > 20"},
    },
}
_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {"schema": SearchRequest.model_json_schema(), "examples": _EXAMPLES},
        ARROW: {"schema": _BINARY | {"description": "A column `vector` (lists of float32) or `text`, a row a query."}},
        FLOATS: {"schema": _BINARY | {"description": "float32, little-endian, queries * dim of them."}},
        FORM: {
            "schema": {
                "type": "object",
                "properties": {"image": _BINARY | {"description": "A JPEG or PNG."}},
                "description": "Every file is a query; other fields are options.",
            }
        },
        JPEG: {"schema": _BINARY | {"description": "One picture, as CLIP models take them."}},
        PNG: {"schema": _BINARY | {"description": "One picture, as CLIP models take them."}},
    },
}
_OPTIONS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": schema.get("description", "") + " For bodies that are not JSON.",
    }
    for name, schema in SearchOptions.model_json_schema()["properties"].items()
]
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One answer a query, in the order asked.",
        "content": {
            NDJSON: {"schema": {"type": "string", "description": "One answer a line, streamed."}},
            ARROW: {"schema": _BINARY | {"description": "Lists ids, scores, rows, and partial; a row a query."}},
        },
    }
}


SHORT = 512  # bytes of a URL's parameters that are remembered: long ones would let a stranger fill memory


def _url_of(query: bytes) -> Mapping[str, str]:
    """Parameters of a URL."""
    return _remembered(query) if len(query) <= SHORT else dict(QueryParams(query))


@lru_cache(maxsize=1024)
def _remembered(query: bytes) -> Mapping[str, str]:
    """Clients send the same ones again and again."""
    return MappingProxyType(dict(QueryParams(query)))


def search_route(app: Straight, services: Services) -> None:
    """Add `POST /v1/collections/{c}/search`."""

    @app.post(
        PATH,
        summary="Find the rows nearest to one or many queries",
        tags=["search"],
        response_model=SearchResponse,
        responses=RESPONSES | _ANSWER,
        openapi_extra={"requestBody": _REQUEST, "parameters": _OPTIONS},
    )
    async def search(c: Collection, request: Request) -> Response:
        """Queries are vectors (JSON arrays, base64, raw float32 or Arrow), texts, or pictures; answers JSON, NDJSON or
        Arrow.

        NDJSON of a large batch is sent while the rest is searched, so that later lines may know of newer rows. A result
        is `partial` when a shard did not answer. NaN and infinity, another dimension, more queries or a larger body
        than the service takes are refused.
        """
        services.collection(request, c)
        kind = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        if kind not in _REQUEST["content"]:
            raise Refused(
                415, f"content type {kind[:80]!r} is not known", remedy=f"send {', '.join(_REQUEST['content'])}"
            )
        with services.admitted():
            return await answer(c, kind, accepted(request.headers.get("Accept", "")), request)

    async def parsed(kind: str, body: bytes, request: Request, dim: int) -> Asked:
        url = _url_of(request.scope["query_string"])
        if kind == FORM:
            files, fields = await read_form(request.headers["Content-Type"], body, services.limits)
            return Asked(url_search_options({**fields, **url}), pictures=files)
        if kind in (JPEG, PNG):
            return Asked(url_search_options(url), pictures=[body])
        if len(body) < LARGE:
            return parse_request(kind, body, url, dim)
        return await asyncio.to_thread(parse_request, kind, body, url, dim)

    async def answer(c: str, kind: str, output: str, request: Request) -> Response:
        limits = services.limits
        body = await whole_body(request, limits)
        service = services.collections[c]
        asked = await parsed(kind, body, request, service.collection.dim)
        queries, k = len(asked), asked.options.k
        if queries > limits.queries or k > limits.k or queries * k > limits.answers:
            raise Refused(
                413,
                f"{queries} queries of k = {k} are too many",
                remedy=f"at most {limits.queries} queries, k {limits.k}, {limits.answers} answers in all",
            )
        query = asked.options.query()
        vectors = asked.vectors
        if asked.texts is not None:
            vectors = await services.vectors(c, asked.texts)
        elif asked.pictures is not None:
            vectors = await services.picture_vectors(c, asked.pictures)
        options = asked.options

        async def found(some: Any) -> bytes:
            results = await service.search(some, query, options.version)
            services.metrics.answered(c, results)
            metadata = await service.metadata(results.rows) if options.metadata and output != ARROW else None
            pieces = render(output, results, metadata, options.explain)
            large = results.rows.size > 2 * TOGETHER
            return await asyncio.to_thread(b"".join, pieces) if large else b"".join(pieces)

        if output != NDJSON or queries <= AT_ONCE:
            return Response(await found(vectors), media_type=output)
        every, _, _ = service.checked(vectors, query)
        first = await found(every[:AT_ONCE])  # what is wrong with the request is told by a status
        return StreamingResponse(lines(first, every, found), media_type=output)

    async def lines(first: bytes, vectors: F32, found: Callable[[F32], Awaitable[bytes]]) -> AsyncIterator[bytes]:
        """A batch's answers while those to the rest of it are sought; a fault breaks the connection off."""
        yield first
        with services.admitted(before=True):
            for at in range(AT_ONCE, len(vectors), AT_ONCE):
                yield await found(vectors[at : at + AT_ONCE])

    route = app.routes[-1]
    assert isinstance(route, APIRoute)
    app.answer_straight(route)
