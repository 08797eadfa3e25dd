"""The page at `/`: collections and a search form, rendered on the server, without scripts or other hosts."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template

from cluster.problems import Refused
from cluster.results import Results
from cluster.service import CollectionService, Unavailable
from cluster.services import Services
from cluster.wire import SearchOptions
from operators.errors import HilbertflowError

LINES = ("first_line", "text", "title", "name", "caption")  # metadata that says in words what a row is
SHOWN = 20


async def page_answer(
    services: Services, readable: list[CollectionService], chosen: CollectionService, given: dict[str, str]
) -> str:
    """HTML of the page for the form's fields `c`, `q` (a text), `row` (an id), `tier`, `filter`.

    Everything that comes from rows or from the address is escaped; what cannot be asked is said on the page.
    """
    text, row = given.get("q", "").strip(), given.get("row", "").strip()
    results: Results | None = None
    hits: list[dict[str, Any]] = []
    error, began = "", time.perf_counter()
    try:
        if text or row:
            query = SearchOptions.model_construct(
                k=SHOWN, tier=given.get("tier") or None, filter=given.get("filter") or None
            ).query()
            results = await chosen.search(await _vectors(services, chosen, text, row), query)
            services.metrics.answered(chosen.name, results)
            hits = _hits(results, (await chosen.metadata(results.rows))[0])
    except (HilbertflowError, Refused, Unavailable) as problem:
        error = str(problem)
    return _template().render(
        collections=[item.about() for item in readable],
        chosen=chosen.about(),
        texts=services.by_text(chosen.name),
        given=given,
        hits=hits,
        results=results,
        milliseconds=f"{1000 * (time.perf_counter() - began):.1f}",
        error=error,
    )


async def _vectors(services: Services, chosen: CollectionService, text: str, row: str) -> Any:
    if not row:
        return await services.vectors(chosen.name, [text])
    number = await asyncio.to_thread(chosen.collection.row_of, row)
    return await asyncio.to_thread(chosen.collection.read, number, number + 1)


def _hits(results: Results, metadata: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    hits = []
    for score, name, about in zip(results.scores[0], results.ids[0], metadata, strict=True):
        about = about or {}
        line = next((str(about[key]) for key in LINES if about.get(key)), "")
        rest = {key: value for key, value in about.items() if key not in LINES and value is not None}
        hits.append({"score": f"{score:.4f}", "id": name, "line": line, "rest": rest})
    return hits


@lru_cache(maxsize=1)
def _template() -> Template:
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
