"""HTTP routes that change rows: put in, replace, delete; durable before they answer, seen by the next search."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pyarrow as pa
from fastapi import FastAPI, Header, Query, Request

from cluster.http_edge import whole_body
from cluster.media import ARROW, JSON
from cluster.problems import RESPONSES, Refused
from cluster.row_wire import DeleteRequest, RowsRequest, Written, parse_rows
from cluster.search_route import Collection
from cluster.services import Services
from cluster.wire import json_model

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        examples=["import-2026-01-31/17"],
        description="Any text of your own: the same key and content sent again change nothing.",
    ),
]
_STREAM = {
    "type": "string",
    "format": "binary",
    "description": "An Arrow IPC stream. Columns `id`, `vector` or `text`, and metadata columns. In Python: `table = "
    "pa.table({'id': ids, 'vector': pa.FixedSizeListArray.from_arrays(values.ravel(), dim)})`, then "
    "`with pa.ipc.new_stream(sink, table.schema) as writer: writer.write_table(table)`.",
}
_EXAMPLE = {"ids": ["a"], "vectors": [[0.1, 0.2, 0.3]], "metadata": {}}
_PUT = {
    "required": True,
    "content": {
        JSON: {"schema": RowsRequest.model_json_schema(), "example": _EXAMPLE},
        ARROW: {"schema": _STREAM},
    },
}
_DELETE = {
    "required": False,
    "content": {JSON: {"schema": DeleteRequest.model_json_schema(), "example": {"ids": ["a"]}}},
}


def row_routes(app: FastAPI, services: Services) -> None:
    """Add `/v1/collections/{c}/rows`."""
    path = "/v1/collections/{c}/rows"

    @app.post(
        path, summary="Put rows in", tags=["rows"], responses=RESPONSES, openapi_extra={"requestBody": _PUT}
    )  # fmt: skip
    async def put(
        c: Collection, request: Request, key: Key = None,
        op: Annotated[str, Query(description="`upsert` or `append`; for Arrow bodies.", max_length=16)] = "upsert",
    ) -> Written:  # fmt: skip
        """One batch, whole or not at all: on durable storage before the answer, and seen by the next search.

        Needs the scope write. Rows come with vectors, or with texts for the service's encoder.
        """
        kind = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        service = services.changeable(request, c)
        if kind not in (JSON, ARROW):
            raise Refused(415, f"content type {kind[:80]!r} is not known", remedy=f"send {JSON} or {ARROW}")
        with services.admitted():
            body = await whole_body(request, services.limits)
            schema = service.collection.table(0, 0).schema
            change = await asyncio.to_thread(parse_rows, kind, body, op, service.collection.dim, schema)
            vectors, metadata = change.vectors, change.metadata
            check_count(len(change))
            if change.texts is not None:
                vectors = await services.vectors(c, change.texts)
                if "text" in schema.names and "text" not in metadata.column_names and len(change.texts) == len(change):
                    metadata = metadata.append_column("text", pa.array(change.texts, schema.field("text").type))
            return await written(c, change.op, change.ids, vectors, metadata, key)

    @app.delete(
        path, summary="Delete rows", tags=["rows"], responses=RESPONSES, openapi_extra={"requestBody": _DELETE}
    )  # fmt: skip
    async def delete(
        c: Collection, request: Request, key: Key = None,
        id: Annotated[
            list[str] | None, Query(description="Ids to delete; or send them in the body.", examples=[["a", "b"]])
        ] = None,
    ) -> Written:  # fmt: skip
        """By id, in the address or in a JSON body; an id that does not exist is no error. Needs the scope write."""
        services.changeable(request, c)
        with services.admitted():
            body = await whole_body(request, services.limits)
            if bool(id) == bool(body):
                raise Refused(422, "give ids either in the address or in the body", remedy='{"ids": ["…"]}')
            ids = id or json_model(DeleteRequest, body).ids
            check_count(len(ids))
            return await written(c, "delete", ids, None, None, key)

    def check_count(rows: int) -> None:
        if rows > services.limits.rows:
            raise Refused(413, f"{rows} rows are too many at once", remedy=f"at most {services.limits.rows}")

    async def written(c: str, op: Any, ids: Any, vectors: Any, metadata: Any, key: str | None) -> Written:
        service = services.collections[c]
        receipt = await service.change(op, ids, vectors, metadata, key)
        if service.stale:
            await services.refresh(c)
        services.metrics.changed(services.collections[c], op, receipt.rows)
        return Written(version=receipt.version, rows=receipt.rows, repeated=receipt.repeated)
