"""The description of the interface as this service is: its limits, its own names in the examples, and no error that it
does not give.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cluster.models import ModelService
from cluster.problems import MEDIA
from cluster.service import CollectionService
from cluster.services import Services

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
_FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI, services: Services) -> None:
    """Let `app` describe itself so; made when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )  # fmt: skip
            _problems(document)
            _limits(document, services)
            if services.keys is None:  # whoever has no key may not learn what is here
                _examples(document, services)
            else:
                _keys(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, operation) for path, item in document["paths"].items() for operation in item.values()]


def _problems(document: dict[str, Any]) -> None:
    """Every error is a problem document, and only that."""
    for _, operation in _operations(document):
        for answer in operation["responses"].values():
            content = answer.get("content", {})
            schema = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            if schema.rpartition("/")[2] in ("Problem", _FASTAPI_ONLY[0]):
                answer["content"] = {MEDIA: PROBLEM}
    for name in _FASTAPI_ONLY:
        document["components"]["schemas"].pop(name, None)


def _limits(document: dict[str, Any], services: Services) -> None:
    """Say what one request may ask for."""
    limits = services.limits
    told = {
        "/v1/collections/{c}/search": f"At most {limits.body_bytes:,} bytes, {limits.queries:,} queries, "
        f"k = {limits.k:,}, {limits.answers:,} rows in all, texts of {limits.text_chars:,} characters; "
        f"{limits.images} pictures of {limits.image_bytes:,} bytes and {limits.image_pixels:,} pixels each.",
        "/v1/collections/{c}/rows": f"At most {limits.body_bytes:,} bytes and {limits.rows:,} rows.",
    }  # fmt: skip
    for path, operation in _operations(document):
        if path in told:
            operation["description"] = f"{operation['description']}\n\n{told[path]}"


def _keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]


def _examples(document: dict[str, Any], services: Services) -> None:
    """Names and vectors of this very service, so that an example can be sent as it stands."""
    names: dict[str, Any] = {}
    apart: dict[str, dict[str, Any]] = {}  # paths that not every collection or model has an answer for
    if services.collections:
        chosen = next(iter(services.collections.values()))
        names["c"] = chosen.name
        vector = [round(1 / (1 + number), 3) for number in range(chosen.collection.dim)]
        search = document["paths"]["/v1/collections/{c}/search"]["post"]["requestBody"]["content"]["application/json"]
        by_vector = {"summary": "by vector", "value": {"vectors": [vector], "k": 5}}
        by_text = {"summary": "by text", "value": {"texts": ["singular value decomposition"], "k": 5}}
        search["examples"] = ({"text": by_text} if services.by_text(chosen.name) else {}) | {"vector": by_vector}
        rows = document["paths"]["/v1/collections/{c}/rows"]
        rows["post"]["requestBody"]["content"]["application/json"]["example"] = {"ids": ["a"], "vectors": [vector]}
    if services.models:
        names |= _tensor(next(iter(services.models.values()))) | {"n": list(services.models)[-1]}
    for model in services.models.values():
        if model.archive.link is not None:
            apart["/v1/models/{m}/tensors/{t}/chain.mp4"] = _tensor(model)
    for item in services.collections.values():
        if item.thumbnails is not None:
            apart["/v1/collections/{c}/pictures/{row}"] = _row(item)
    for path, operation in _operations(document):
        known = names | apart.get(path, {})
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and parameter["name"] in known:
                parameter["schema"].pop("examples", None)
                parameter["example"] = known[parameter["name"]]


def _tensor(model: ModelService) -> dict[str, Any]:
    """A model and its smallest tensor that is not empty."""
    smallest = min(model.archive.layout.placements, key=lambda place: prod(place.shape) or 1 << 62)
    return {"m": model.name, "t": smallest.name}


def _row(collection: CollectionService) -> dict[str, Any]:
    """A collection and its first row."""
    view = collection.view
    rows = np.setdiff1d(np.arange(min(len(view.gone) + 1, collection.collection.count)), view.gone)[:1]
    names = view.table(rows).column("id").to_pylist()
    return {"c": collection.name} | ({"row": names[0]} if names else {})
