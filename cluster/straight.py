"""FastAPI, but the route that is asked most is answered before the framework's own layers.

FastAPI describes that route as any other. What it does before it calls one, a dozen layers that each wrap the next,
costs more than all else that a small search does outside its index.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from cluster.http_edge import Counted, Message, Receive, Send
from cluster.metrics import Metrics
from cluster.problems import as_problem


class Straight(FastAPI):
    """An application whose every request is counted, and some of whose routes are answered straight."""

    def __init__(self, metrics: Metrics, **about: Any) -> None:
        super().__init__(**about)
        self._straight: list[APIRoute] = []
        self._counted = Counted(self._called, metrics)

    def answer_straight(self, route: APIRoute) -> None:
        """Call this route's function with what its path names, as text, and the request; it gives a response."""
        self._straight.append(route)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        await self._counted(scope, receive, send)

    async def _called(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            for route in self._straight:
                if scope["method"] in (route.methods or ()) and (named := route.path_regex.match(scope["path"])):
                    scope["route"] = route
                    await self._answered(route, named.groupdict(), Request(scope, receive), send)
                    return
        await super().__call__(scope, receive, send)

    async def _answered(self, route: APIRoute, named: dict[str, str], request: Request, send: Send) -> None:
        failed: Exception | None = None
        try:
            response: Response = await route.endpoint(**named, request=request)
        except Exception as error:
            response = as_problem(request, error)
            failed = error if response.status_code == 500 else None
        await response(request.scope, request.receive, send)
        if failed is not None:  # for the server's log
            raise failed
