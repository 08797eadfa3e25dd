"""Addresses of the page: what a person sees of the service in a browser, each view a URL, rendered on the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from cluster.page import home, key, model, near, reference, registry, search, state, tensor, verify
from cluster.page.render import VISITOR, asset, show
from cluster.problems import Refused
from cluster.service import Unavailable
from cluster.services import Services
from operators.errors import HilbertflowError

View = Callable[[Services, Request], Awaitable[Response]]
VIEWS: dict[str, View] = {
    "/": home.view,
    "/collections/{c}": search.view,
    "/models/{m}": model.view,
    "/models/{m}/similar": near.view,
    "/models/{m}/verify": verify.view,
    "/models/{m}/differences/{n}": registry.different,
    "/models/{m}/tensors/{t:path}": tensor.view,
    "/registry": registry.view,
    "/registry/shared": registry.shared,
    "/state": state.view,
    "/docs": reference.view,
    "/key": key.view,
}
SENT: dict[str, View] = {
    "/collections/{c}": search.upload,
    "/key": key.enter,
    "/key/forget": key.forget,
}


def page_routes(app: FastAPI, services: Services) -> None:
    """Add the views and what they are drawn with; none of them is part of the interface that OpenAPI describes."""
    for path, view in VIEWS.items():
        app.add_api_route(path, _shown(view, services), methods=["GET"], include_in_schema=False)

    for path, view in SENT.items():
        app.add_api_route(path, _shown(view, services), methods=["POST"], include_in_schema=False)

    async def nowhere(request: Request, error: Exception) -> Response:
        if "text/html" in request.headers.get("Accept", ""):
            VISITOR.set(key.visitor(services, request))
            return problem_page(Refused(404, "No page has this address."))
        reply: Response = await otherwise(request, error)
        return reply

    otherwise: Any = app.exception_handlers[HTTPException]
    app.add_exception_handler(404, nowhere)  # of the router; what is refused otherwise has its own

    @app.get("/assets/{name}", include_in_schema=False)
    async def assets(name: str) -> Response:
        return asset(name) or problem_page(Refused(404, "there is no such file"))


def _shown(view: View, services: Services) -> Callable[[Request], Awaitable[Response]]:
    """The view as a route; what cannot be shown is said on a page too."""

    async def shown(request: Request) -> Response:
        VISITOR.set(key.visitor(services, request))
        try:
            return await view(services, request)
        except Refused as refused:
            return key.form(request, refused) if refused.status == 401 else problem_page(refused)
        except HilbertflowError as error:
            return problem_page(Refused(422, error.what, where=error.where, remedy=error.remedy))
        except Unavailable as error:
            return problem_page(Refused(503, str(error), remedy="load the page again", headers={"Retry-After": "1"}))

    return shown


def problem_page(refused: Refused) -> Response:
    """A refusal in words, with its status."""
    reply = show("problem.html", refused.status, problem=refused)
    reply.headers.update(refused.headers)
    return reply
