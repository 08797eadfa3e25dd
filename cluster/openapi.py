"""The description of the interface as this service is: its limits, its own names in the examples, and no error that it
does not give.
"""

from __future__ import annotations

from math import prod
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cluster.problems import MEDIA
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
    if services.collections:
        chosen = next(iter(services.collections.values()))
        names["c"] = chosen.name
        vector = [round(1 / (1 + number), 3) for number in range(chosen.collection.dim)]
        search = document["paths"]["/v1/collections/{c}/search"]["post"]["requestBody"]["content"]["application/json"]
        by_vector = {"summary": "by vector", "value": {"vectors": [vector], "k": 5}}
        by_text = {"summary": "by text", "value": {"texts": ["singular value decomposition"], "k": 5}}
        search["examples"] = {"vector": by_vector} | ({"text": by_text} if services.by_text(chosen.name) else {})
        rows = document["paths"]["/v1/collections/{c}/rows"]
        rows["post"]["requestBody"]["content"]["application/json"]["example"] = {"ids": ["a"], "vectors": [vector]}
    if services.models:
        model = next(iter(services.models.values()))
        smallest = min(model.archive.layout.placements, key=lambda place: prod(place.shape) or 1 << 62)
        names |= {"m": model.name, "t": smallest.name, "n": list(services.models)[-1]}
    for _, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and parameter["name"] in names:
                parameter["schema"].pop("examples", None)
                parameter["example"] = names[parameter["name"]]
