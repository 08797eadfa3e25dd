"""Templates of the page: everything from outside is escaped, numbers are written in one way, no script is inline."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from operators.amounts import size

HERE = Path(__file__).parent
MEDIA = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without it a form that is sent from here would name no origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_METRICS = {"ip": "inner product", "cosine": "cosine similarity", "l2": "squared distance"}


VISITOR: ContextVar[str | None] = ContextVar("visitor", default=None)
"""Name of the key that a page is shown for; empty without one, None where the service has no keys."""


def show(template: str, status: int = 200, **values: Any) -> Response:
    """A template of `templates/` as an answer."""
    return HTMLResponse(environment().get_template(template).render(**values), status, HEADERS)


def asset(name: str) -> Response | None:
    """A file of `assets/`; its address holds its hash, so that a browser keeps it for ever."""
    if name not in MEDIA:
        return None
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_file(name), media_type=MEDIA[name], headers=headers)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Jinja with autoescape; a name that a template misses is an error, not an empty text."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "size": size,
        "count": lambda number: f"{number:,}",
        "part": lambda text: quote(str(text), safe=""),
        "path": lambda text: quote(str(text), safe="/"),
        "heading": lambda kind: "MLP" if kind == "mlp" else kind.capitalize(),
        "metric": lambda name: _METRICS.get(name, name),
        "plural": lambda number, one, many="": f"{number:,} {one if number == 1 else many or one + 's'}",
        "coded": _coded,
        "duration": _duration,
        "moment": lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC",
        "short": lambda text, most: text if len(text) <= most else text[: most - 1].rstrip() + "…",
    }
    made.globals["visitor"] = VISITOR.get
    made.globals["asset"] = lambda name: f"/assets/{name}?v={_hash(name)}"
    return made


def _duration(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{seconds:.0f} s"


def _coded(text: str) -> Markup:
    """Text whose `words in backticks` are code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(text.split("`"))
    )


@lru_cache
def _file(name: str) -> bytes:
    return (HERE / "assets" / name).read_bytes()


@lru_cache
def _hash(name: str) -> str:
    return hashlib.sha256(_file(name)).hexdigest()[:12]
