"""How a person uses the page of a service with keys: the key is given once, and kept by the browser in a cookie.

The cookie holds the key itself: for this service only (no domain), out of reach of scripts (HttpOnly), never sent from
another site (SameSite=Strict), gone when the browser is closed, and good for reading alone. It is checked anew with
every request, so a key that is taken out of the file is out at once.
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from cluster.auth import COOKIE
from cluster.http_edge import whole_body
from cluster.page.render import HEADERS, show
from cluster.problems import Refused
from cluster.services import Services

FORM_BYTES = 16_384


def visitor(services: Services, request: Request) -> str | None:
    """Name of the caller's key, empty without a valid one, None where there are no keys."""
    try:
        key = services.key(request)
    except Refused:
        return ""
    return None if key is None else key.name


def form(request: Request, refused: Refused | None = None) -> Response:
    """The form that asks for a key; it leads back to where the caller was going."""
    tried = bool(request.headers.get("Authorization") or request.cookies.get(COOKIE))
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    behind = _local(request.query_params.get("next", "") if request.url.path.startswith("/key") else path)
    reply = show("key.html", 401 if refused else 200, behind=behind, wrong=refused is not None and tried)
    reply.headers.update(refused.headers if refused else {})
    return reply


async def view(services: Services, request: Request) -> Response:
    """The form, or whose key is in use and how to forget it."""
    return form(request)


async def enter(services: Services, request: Request) -> Response:
    """Keep the key that was typed, if it is one; 401 with the form again if not."""
    _from_here(request)
    body = await whole_body(request, services.limits.model_copy(update={"body_bytes": FORM_BYTES}))
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    token, behind = fields.get("key", [""])[0].strip(), _local(fields.get("next", [""])[0])
    if services.keys is None:
        return RedirectResponse(behind, 303, HEADERS)
    if services.keys.find(token) is None:
        return show("key.html", 401, behind=behind, wrong=True)
    reply = RedirectResponse(behind, 303, HEADERS)
    secure = request.url.scheme == "https"
    reply.set_cookie(COOKIE, quote(token, safe=""), httponly=True, samesite="strict", secure=secure)
    return reply


async def forget(services: Services, request: Request) -> Response:
    """Let the browser forget the key."""
    _from_here(request)
    reply = RedirectResponse("/key", 303, HEADERS)
    reply.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return reply


def _from_here(request: Request) -> None:
    """Refuse a form that another site made the browser send."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise Refused(403, "this form was sent from another site", remedy="open the page here and send it again")


def _local(path: str) -> str:
    """The path if it stays on this service, else the first view."""
    good = path.startswith("/") and not path.startswith(("//", "/key")) and "\\" not in path and path.isprintable()
    return path if good else "/"
