"""The edge of the HTTP interface: bodies read within limits, content types chosen, every request counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from cluster.config import Limits
from cluster.media import JSON
from cluster.metrics import Metrics
from cluster.problems import Refused
from cluster.wire import OUTPUTS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


BODILESS = "hilbertflow.bodiless"
"""In the scope of a request whose answer's body nobody will read."""


class Counted:
    """ASGI middleware: status and latency of each route, HEAD as GET, and no guessing of content types by browsers."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass through, watching the response start."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        if head := scope["method"] == "HEAD":  # the headers of a GET; routes that can tell them alone look at BODILESS
            scope = {**scope, "method": "GET", BODILESS: True}

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.replied(route, status, time.perf_counter() - began)


@lru_cache(maxsize=64)
def accepted(header: str) -> str:
    """The first of our content types that the client takes; JSON unless it names another."""
    wanted = [part.partition(";")[0].strip().lower() for part in header.split(",")]
    return next((kind for kind in wanted if kind in OUTPUTS), JSON)


async def whole_body(request: Request, limits: Limits) -> bytes:
    """The body, refused (413, 408) as soon as it is too long or too slow."""
    coded = request.headers.get("Content-Encoding", "identity").lower()
    if coded != "identity":
        raise Refused(415, f"content encoding {coded[:80]!r} is not taken", remedy="send the body as it is")
    declared = request.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared[:20]) > limits.body_bytes:
        raise _too_long(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.body_bytes:
                    raise _too_long(limits)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(
            408, f"the body did not arrive within {limits.body_seconds} s",
            remedy="send less at once, or have `limits: {body_seconds: …}` of the service raised",
        ) from None  # fmt: skip
    return b"".join(parts)


def _too_long(limits: Limits) -> Refused:
    return Refused(413, f"the body is larger than {limits.body_bytes} bytes", remedy="send fewer queries at once")
