"""HTTP routes over collections: what is served, and the newest version of it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from cluster import thumbnails
from cluster.problems import RESPONSES, Refused, missing
from cluster.search_route import Collection
from cluster.services import Services
from storage.id_index import NO_ROW


class IndexAbout(BaseModel):
    """An index over a collection."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"build": "hnsw-3f9c01d2", "shards": 2, "bytes": 6_291_456, "settings": {"ef": 48},
                        "recall_at_10": 0.966}
        }
    )  # fmt: skip

    build: str = Field(description="Name of the build.")
    shards: int = Field(description="Files that it is made of; each can be searched in a process of its own.")
    bytes: int = Field(description="Bytes of its files.")
    settings: dict[str, int] = Field(description="Search settings that tuning found; empty for the kind's defaults.")
    recall_at_10: float | None = Field(description="Set recall against the exact scan when it was tuned; null if not.")


class CollectionAbout(BaseModel):
    """A served collection."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "docs", "count": 4000, "dim": 384, "metric": "cosine", "tiers": ["exact", "hnsw"],
                "tier": "auto", "groups": 1, "fingerprint": "5a1e0c3b9d", "version": "5a1e0c3b9d+hnsw-3f9c01d2",
                "rows_version": 0, "indexes": {}, "columns": {"package": "string", "lines": "int64"},
            }
        }
    )  # fmt: skip

    name: str = Field(description="Its name here.", examples=["docs"])
    count: int = Field(description="Rows.")
    dim: int = Field(description="Values of a vector.")
    metric: str = Field(description="ip, cosine (higher scores are better) or l2 (squared distance, lower is better).")
    tiers: list[str] = Field(description="Tiers that can answer now.")
    tier: str = Field(description="The tier of queries that name none; auto takes the best that is built.")
    groups: int = Field(description="Shard groups that a query is sent to.")
    fingerprint: str = Field(description="Hash of what the archived rows derive from.")
    version: str = Field(description="The archive and the indexes that answer now.")
    rows_version: int = Field(description="Version of the rows: 0 as archived, one more with each change.")
    indexes: dict[str, IndexAbout] = Field(description="Built indexes, by tier.")
    columns: dict[str, str] = Field(description="Metadata columns and their Arrow types, for filters.")


class CollectionList(BaseModel):
    """All collections that the caller may read."""

    collections: list[CollectionAbout] = Field(description="In the order of the configuration.")


class Reloaded(BaseModel):
    """What a reload did."""

    swapped: bool = Field(description="True when another version answers now than before.")
    version: str = Field(description="The version that answers now.", examples=["5a1e0c3b9d+hnsw-3f9c01d2"])


RowId = Annotated[str, Path(max_length=10_000, description="Id of a row.", examples=["cats/001.jpg#0"])]


def collection_routes(app: FastAPI, services: Services) -> None:
    """Add `/v1/collections…`."""
    few: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (401, 403, 404)}

    @app.get("/v1/collections", summary="List the collections", tags=["collections"], responses={401: RESPONSES[401]})
    async def collections(request: Request) -> CollectionList:
        """Those that the caller may read."""
        return CollectionList(collections=[CollectionAbout(**item.about()) for item in services.readable(request)])

    @app.get("/v1/collections/{c}", summary="Describe a collection", tags=["collections"], responses=few)
    async def collection(c: Collection, request: Request) -> CollectionAbout:
        """Rows, dimension, metric, metadata columns, tiers and indexes."""
        return CollectionAbout(**services.collection(request, c).about())

    @app.post(
        "/v1/collections/{c}/reload", summary="Take up the newest version", tags=["collections"],
        responses={**few, 503: RESPONSES[503]},
    )  # fmt: skip
    async def reload(c: Collection, request: Request) -> Reloaded:
        """Look at storage now instead of at the next `refresh_seconds`; needs the scope admin.

        Queries in flight end on the version they began with. With several ingress replicas the others follow by
        themselves.
        """
        services.collection(request, c, "admin")
        swapped = await services.refresh(c)
        return Reloaded(swapped=swapped, version=services.collections[c].version)

    @app.get(
        "/v1/collections/{c}/pictures/{row:path}", summary="See a row", tags=["collections"], response_class=Response,
        responses={**missing("No such collection or row, or it was not made from pictures.", 401, 403, 422),
                   200: {"description": "At most 192 pixels wide and high.", "content": {thumbnails.MEDIA: {}}}},
    )  # fmt: skip
    async def picture(c: Collection, row: RowId, request: Request) -> Response:
        """The picture that a row was made from, scaled down; of collections made from a folder of pictures."""
        chosen = services.collection(request, c)
        small = chosen.thumbnails
        number = (await asyncio.to_thread(chosen.log.rows, [row]))[0]
        if small is None or number == NO_ROW:
            why = f"has no row {row[:200]!r}" if small else "was not made from pictures"
            remedy = "take an id of a search's answer" if small else "only collections made from pictures have some"
            raise Refused(404, f"collection {c!r} {why}", remedy=remedy)
        (told,) = (await asyncio.to_thread(chosen.view.table, number[None])).to_pylist()
        async with services.pictures:
            data = await asyncio.to_thread(small.read, told.get("path"), told.get("sha256"))
        return Response(data, media_type=thumbnails.MEDIA, headers={"Cache-Control": "private, max-age=3600"})
