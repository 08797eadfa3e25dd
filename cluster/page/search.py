"""A collection: ask it in words, with a picture or with one of its own rows, and see what is near."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from cluster.http_edge import whole_body
from cluster.page.home import collection_card
from cluster.page.render import show
from cluster.picture_wire import read_form
from cluster.problems import Refused
from cluster.query import Query
from cluster.results import Results
from cluster.service import CollectionService, Unavailable
from cluster.services import Services
from cluster.thumbnails import MEDIA, scaled
from cluster.vectors import I64
from operators.errors import HilbertflowError
from storage.id_index import NO_ROW

LINES = ("first_line", "text", "text_", "title", "name", "caption")
"""Metadata that says in words what a row is; the first one that is there is shown."""
HIDDEN = ("sha256",)
OF_FILES = ("path", "chunk")
"""Of a row that is a picture these two are its id."""
COUNTS = (10, 20, 50, 100)
FIELDS = ("q", "row", "k", "tier", "level", "filter")
FIRST_ROWS = 6


@dataclass(frozen=True)
class Hit:
    """A row as it is shown: score (None of a row that was not compared), id, a line in words, the rest."""

    id: str
    score: float | None
    line: str
    rest: dict[str, Any]
    picture: bool


@dataclass
class Shown:
    """What the view shows of an answer.

    origin: the row that was asked with. picture: the one that was, small, as a data URI. error: why there is no answer.
    """

    hits: list[Hit] = field(default_factory=list)
    origin: Hit | None = None
    picture: str = ""
    explain: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    seconds: float = 0.0
    error: HilbertflowError | Refused | None = None
    status: int = 200


async def view(services: Services, request: Request) -> Response:
    """The form, and the answer to what it holds: `q` (a text) or `row` (an id), `k`, `tier`, `level`, `filter`."""
    chosen = services.collection(request, request.path_params["c"])
    given = _given(request.query_params)
    return await _shown(services, chosen, given, [])


async def upload(services: Services, request: Request) -> Response:
    """The same for a form that was sent with a picture, which no address can hold."""
    chosen = services.collection(request, request.path_params["c"])
    body = await whole_body(request, services.limits)
    files, fields = await read_form(request.headers.get("Content-Type", ""), body, services.limits)
    return await _shown(services, chosen, _given(fields), [data for data in files if data][:1])


def _given(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: fields.get(name, "").strip() for name in FIELDS}


async def _shown(
    services: Services, chosen: CollectionService, given: Mapping[str, str], files: list[bytes]
) -> Response:
    """The page of a collection with what was found."""
    asked = bool(given["q"] or given["row"] or files)
    first = [] if asked else await _first_rows(chosen)
    found = await _answer(services, chosen, given, files) if asked or (given["filter"] and first) else Shown()
    if given["filter"] and not asked:
        first = [replace(hit, score=None) for hit in found.hits[:FIRST_ROWS]]
    return show(
        "search.html", found.status,
        collection=collection_card(chosen, await services.readiness.missing(chosen.name)),
        by_text=services.by_text(chosen.name), by_picture=services.by_picture(chosen.name),
        levels=[str(level) for level in chosen.collection.levels],
        given=given, asked=asked, found=found, first=first, counts=_counts(services),
    )  # fmt: skip


async def _answer(services: Services, chosen: CollectionService, given: Mapping[str, str], files: list[bytes]) -> Shown:
    shown, began = Shown(), time.perf_counter()
    try:
        with services.admitted():
            query = asked_query(given, _counts(services), 1 if given["row"] and not files else 0)
            if files:
                vectors: Any = await services.picture_vectors(chosen.name, files)
                async with services.pictures:
                    small = await asyncio.to_thread(scaled, files[0], "image")
                shown.picture = f"data:{MEDIA};base64,{base64.b64encode(small).decode()}"
            elif given["row"]:
                row = await _row(chosen, given["row"])
                shown.origin = (await _hits(chosen, row[None, :], None))[0]
                vectors = await asyncio.to_thread(chosen.view.take, row)
            elif given["q"]:
                vectors = await services.vectors(chosen.name, [given["q"]])
            else:  # some of those that the filter lets through, near to any
                vectors = await asyncio.to_thread(chosen.view.take, _some_rows(chosen)[:1])
            await _fill(services, chosen, shown, vectors, query)
    except Unavailable as problem:
        shown.error, shown.status = Refused(503, str(problem), remedy="ask again"), 503
    except (HilbertflowError, Refused) as problem:
        shown.error, shown.status = problem, problem.status if isinstance(problem, Refused) else 422
    shown.seconds = time.perf_counter() - began
    return shown


async def _fill(services: Services, chosen: CollectionService, shown: Shown, vectors: Any, query: Query) -> None:
    """Search, and put what was found into `shown`; the row that was asked with is no answer to itself."""
    results: Results = await chosen.search(vectors, query)
    services.metrics.answered(chosen.name, results)
    hits = await _hits(chosen, results.rows, results)
    if shown.origin is not None:
        hits = [hit for hit in hits if hit.id != shown.origin.id][: query.k - 1]
    shown.hits, shown.explain, shown.partial = hits, results.explain, results.partial


def _counts(services: Services) -> tuple[int, ...]:
    """Numbers of rows that the form offers: those that the service gives."""
    return tuple(count for count in COUNTS if count <= services.limits.k) or (services.limits.k,)


def asked_query(given: Mapping[str, str], counts: tuple[int, ...] = COUNTS, more: int = 0) -> Query:
    """The form's fields as a query for `more` rows than are asked for; raises `HilbertflowError`."""
    level = _whole(given, "level")
    k = _whole(given, "k") or counts[min(1, len(counts) - 1)]
    return Query.of(min(k, counts[-1]) + more, given["tier"] or None, given["filter"], {"level": level})


def _whole(given: Mapping[str, str], name: str) -> int | None:
    text = given[name]
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise HilbertflowError(f"{name} is {text[:40]!r}", where="form", remedy="choose one that the form offers")
    return int(text)


async def _row(chosen: CollectionService, name: str) -> I64:
    rows: I64 = await asyncio.to_thread(chosen.log.rows, [name])
    if rows[0] == NO_ROW:
        raise HilbertflowError(f"no row has the id {name[:200]!r}", where=chosen.name)
    return rows


async def _first_rows(chosen: CollectionService) -> list[Hit]:
    """Some rows to begin with."""
    rows = _some_rows(chosen)
    return await _hits(chosen, rows[None, :], None) if len(rows) else []


def _some_rows(chosen: CollectionService) -> I64:
    rows = np.arange(min(FIRST_ROWS, chosen.collection.count))
    return np.setdiff1d(rows, chosen.view.gone)


async def _hits(chosen: CollectionService, rows: I64, results: Results | None) -> list[Hit]:
    """Rows (1, w) as they are shown."""
    metadata = (await chosen.metadata(rows))[0]
    if results is None:
        table = await asyncio.to_thread(chosen.view.table, rows[0])
        names, scores = table.column("id").to_pylist(), [None] * rows.shape[1]
    else:
        names, scores = results.ids[0].tolist(), results.scores[0].tolist()
    pictures = chosen.thumbnails is not None
    return [
        _hit(str(name), score, about or {}, pictures)
        for name, score, about in zip(names, scores, metadata, strict=True)
        if name is not None
    ]


def _hit(name: str, score: float | None, about: dict[str, Any], pictures: bool) -> Hit:
    line = next((str(about[key]) for key in LINES if about.get(key)), "")
    hidden = (*HIDDEN, *(OF_FILES if pictures else ()))
    rest = {
        key: value for key, value in about.items()
        if value is not None and key not in hidden and not (key in LINES and str(value) == line)
    }  # fmt: skip
    return Hit(name, score, line, rest, pictures)
