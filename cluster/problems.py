"""Errors over HTTP: RFC 9457 problem documents that say what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from cluster.field_faults import place_of, what
from cluster.service import Unavailable
from operators.errors import HilbertflowError

MEDIA = "application/problem+json"


class Problem(BaseModel):
    """What an error answer holds (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank", "title": "Unprocessable Entity", "status": 422,
                "detail": "unknown tier 'warm'", "where": "search", "remedy": "choose exact or cold or ivfpq or hnsw",
            }
        }
    )  # fmt: skip

    type: str = Field(default="about:blank", description="Always about:blank: the status says it all.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request.")
    where: str | None = Field(default=None, description="The field or object at fault.")
    remedy: str | None = Field(default=None, description="What to do about it.")


class Refused(Exception):
    """A request that is refused with a status; raised by the routes."""

    def __init__(
        self, status: int, detail: str, *, where: str = "", remedy: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.where, self.remedy = status, detail, where, remedy
        self.headers = dict(headers or {})
        super().__init__(detail)


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text, "content": {MEDIA: {}}}
    for status, text in {
        401: "No key, or an unknown one.", 403: "The key does not allow this.", 404: "No such collection.",
        408: "The body did not arrive in time.", 413: "The body is larger than this service takes.",
        415: "The content type is not known.", 422: "The request cannot be answered as it stands.",
        503: "Busy, or no shard answered: send it again after Retry-After seconds.",
    }.items()
}  # fmt: skip


def missing(what: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Some of `RESPONSES`, with what is not there where it is no collection."""
    some: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in statuses}
    return some | {404: RESPONSES[404] | {"description": what}}


def problem(refused: Refused) -> Response:
    """The document as a response."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(refused.status).phrase,
        "status": refused.status,
        "detail": refused.detail,
    }
    body |= {name: text for name, text in (("where", refused.where), ("remedy", refused.remedy)) if text}
    return JSONResponse(body, refused.status, refused.headers, media_type=MEDIA)


def _of_the_router(request: Request, error: HTTPException) -> tuple[str, str]:
    """What is wrong and what to do where no route takes a request."""
    if error.status_code == 404:
        return f"nothing lies at {request.url.path[:80]!r}", "GET /docs lists every path"
    if error.status_code == 405:
        return f"{request.method[:16]} is not for this path", f"send {(error.headers or {}).get('Allow', 'another')}"
    return str(error.detail), ""


def as_problem(request: Request, error: Exception) -> Response:
    """The document for any error; it tells no more of the server than the error's kind."""
    if isinstance(error, Refused):
        return problem(error)
    if isinstance(error, HilbertflowError):
        return problem(Refused(422, error.what, where=error.where, remedy=error.remedy))
    if isinstance(error, Unavailable):
        return problem(Refused(503, str(error), remedy="send it again", headers={"Retry-After": "1"}))
    if isinstance(error, HTTPException):
        detail, remedy = _of_the_router(request, error)
        return problem(Refused(error.status_code, detail, remedy=remedy, headers=error.headers))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        remedy = "GET /openapi.json describes every parameter"
        return problem(Refused(422, f"{place_of(first['loc'][1:])} {what(first)}".lstrip(), where=where, remedy=remedy))
    return problem(Refused(500, f"the service failed ({type(error).__name__})", remedy="its log says more"))


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    async def answered(request: Request, error: Exception) -> Response:
        return as_problem(request, error)

    for kind in (Refused, HilbertflowError, Unavailable, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answered)
