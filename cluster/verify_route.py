"""The HTTP route that recomputes a model's checksums, telling line by line how far it has come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from cluster.http_edge import BODILESS
from cluster.integrity import Check, checks
from cluster.model_routes import Name
from cluster.problems import missing
from cluster.services import Services

MEDIA = "application/x-ndjson"
SLICE = 16 << 20
"""Bytes read between two lines, about."""
_SAID = '{"done": 74400000, "total": 74400000, "objects": 81, "damaged": [], "sound": true}\n'
_LINES = {"schema": {"type": "string"}, "example": _SAID}


def verify_route(app: FastAPI, services: Services) -> None:
    """Add `/v1/models/{m}/verify`."""
    few = missing("No such model.", 401, 403, 422)

    @app.get(
        "/v1/models/{m}/verify", summary="Check a model", tags=["models"], response_class=Response,
        responses={**few, 200: {"description": "A JSON object a line.", "content": {MEDIA: _LINES}}},
    )  # fmt: skip
    async def verify(m: Name, request: Request) -> Response:
        """Every object of the archive is read and compared with its checksum, and the parent of a child looked for.

        Needs no more than `read`: whoever may read a model may read all of it. Each line says how many bytes of how
        many are `done`, how many `objects` that were, and what was found `damaged` since the line before; the last one
        whether all is `sound`, null before. Reading goes on as the lines are taken, and ends with the connection.
        """
        chosen = services.model(request, m)
        if request.scope.get(BODILESS):
            return Response(media_type=MEDIA)
        return StreamingResponse(
            _lines(services, checks(chosen.archive)), media_type=MEDIA, headers={"Cache-Control": "no-store"}
        )


async def _lines(services: Services, steps: Iterator[Check]) -> AsyncIterator[bytes]:
    """A line a slice. Others have their turn between two: a client that takes its time holds nobody up."""

    def some(before: int) -> Check | None:
        last = None
        for last in steps:
            if last.done - before >= SLICE:
                break
        return last

    done, told = 0, 0
    while (now := await services.at_work(lambda before=done: some(before))) is not None:  # type: ignore[misc]
        line = dataclasses.asdict(now) | {"damaged": now.damaged[told:]}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
        done, told = now.done, len(now.damaged)
