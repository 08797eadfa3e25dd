"""A model: its layers by bytes, its levels by size and quality, its tensors, whom it descends from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response

from cluster.model_routes import described
from cluster.models import ModelService
from cluster.page.near import CHOICES
from cluster.page.plot import levels_plot, rungs
from cluster.page.render import show
from cluster.page.treemap import Layer, layers
from cluster.services import Services

KINDS = ("embedding", "attention", "mlp", "norm", "head", "other")
SORTS = {"place": "position", "bytes": "size", "name": "name"}
EACH = 50
"""Tensors on a page of the table."""
FAMILY = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Map:
    """A treemap drawn for pages of some width: `wide` for screens, `narrow` for phones. height: pixels."""

    name: str
    height: int
    layers: list[Layer]


@dataclass(frozen=True)
class Listing:
    """Some rows of the table of tensors, how many match, and the query strings of the rows before and behind."""

    rows: list[dict[str, Any]]
    first: int
    matching: int
    before: str
    behind: str


async def view(services: Services, request: Request) -> Response:
    """The model `m`; `find`, `kind`, `sort` and `from` choose rows of the table."""
    chosen = services.model(request, request.path_params["m"])
    (about,), tensors = await asyncio.to_thread(lambda: (described([chosen]), chosen.tensors))
    given = {name: request.query_params.get(name, "").strip() for name in ("find", "kind", "sort", "from")}
    steps = rungs(about)
    link = chosen.archive.link
    return show(
        "model.html",
        model=about, steps=steps, plot=levels_plot(steps, about["source_bytes"]), maps=await _maps(tensors),
        kinds=[kind for kind in KINDS if any(tensor["kind"] == kind for tensor in tensors)],
        listing=listing(tensors, given), given=given, sorts=SORTS,
        family={key: value for key, value in chosen.archive.attributes.get("config", {}).items() if key in FAMILY},
        depth=link.depth if link else 0,
        near=near if (near := request.query_params.get("near", "")) in CHOICES else "signature", choices=CHOICES,
        others=len(services.readable_models(request)) - 1,
        parent=_parent(services, request, chosen), root=_root(services, request, chosen),
        to_parent=about["quality"].get("sqnr_db_parent"),
        children=[
            item.name for item in services.readable_models(request)
            if item.archive.link is not None and item.archive.link.identity == chosen.archive.fingerprint
        ],
    )  # fmt: skip


async def _maps(tensors: Sequence[dict[str, Any]]) -> list[Map]:
    sizes = (("wide", 1120, 480, 700), ("narrow", 400, 640, 320))
    return await asyncio.to_thread(
        lambda: [Map(name, height, layers(tensors, width, height, least)) for name, width, height, least in sizes]
    )


def listing(tensors: Sequence[dict[str, Any]], given: Mapping[str, str]) -> Listing:
    """The rows of the table that the form asks for; what it cannot ask for is as if it were left out."""
    found = [
        tensor for tensor in tensors
        if given["find"].lower() in tensor["name"].lower() and given["kind"] in ("", tensor["kind"])
    ]  # fmt: skip
    if given["sort"] == "bytes":
        found.sort(key=lambda tensor: (-tensor["bytes"], tensor["name"]))
    elif given["sort"] == "name":
        found.sort(key=lambda tensor: str(tensor["name"]))
    text = given["from"]
    first = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    first = min(first, max(0, len(found) - 1)) // EACH * EACH

    def at(row: int) -> str:
        kept = {name: given[name] for name in ("find", "kind", "sort") if given[name]}
        return urlencode(kept | {"from": row}) if 0 <= row < len(found) else ""

    return Listing(found[first : first + EACH], first, len(found), at(first - EACH), at(first + EACH))


def _parent(services: Services, request: Request, chosen: ModelService) -> str:
    """Name of the parent where it is served too and may be read; empty where not."""
    found = _coded_by(services, request, chosen)
    return found.name if found else ""


def _root(services: Services, request: Request, chosen: ModelService) -> str:
    """Name of the checkpoint that its chain begins with, which has the lossy levels; empty where it is not served."""
    found: ModelService | None = chosen
    while found is not None and found.archive.link is not None:
        found = _coded_by(services, request, found)
    return found.name if found else ""


def _coded_by(services: Services, request: Request, chosen: ModelService) -> ModelService | None:
    link = chosen.archive.link
    if link is None:
        return None
    served = services.readable_models(request)
    return next((item for item in served if item.archive.fingerprint == link.identity), None)
