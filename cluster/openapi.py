"""The description of the interface as this service is: its limits, its own names in the examples, and no error that it
does not give.

Where there are keys, the examples are those of the models and collections that the caller's key may read: whoever
has no key may not learn what is here, and is shown what is made up.
"""

from __future__ import annotations

import base64
import copy
from math import prod
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response

from cluster.config import Limits
from cluster.media import ARROW, FLOATS, FORM, JPEG, PNG
from cluster.models import ModelService
from cluster.problems import MEDIA, Refused
from cluster.service import CollectionService
from cluster.services import Services
from storage.batches import MAX_ID

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
_FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")


SEARCH, ROWS = "/v1/collections/{c}/search", "/v1/collections/{c}/rows"
_MADE = {
    ARROW: "An Arrow IPC stream. In Python: `table = pa.table({'vector': pa.FixedSizeListArray.from_arrays("
    "values.ravel(), dim)})` or `pa.table({'text': texts})`, then "
    "`with pa.ipc.new_stream(sink, table.schema) as writer: writer.write_table(table)`.",
    FLOATS: "In Python: `numpy.asarray(vectors, '<f4').tobytes()`, sent with `?k=5`.",
    FORM: "With curl: `-F image=@first.jpg -F image=@second.png -F k=5`.",
    JPEG: "With curl: `-H 'Content-Type: image/jpeg' --data-binary @shoe.jpg`.",
    PNG: "With curl: `-H 'Content-Type: image/png' --data-binary @shoe.png`.",
}
"""How bodies of a search are made that are not JSON."""


def describe(app: FastAPI, services: Services) -> None:
    """Let `app`, which must not do so by itself, describe itself at `/openapi.json`; made when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )  # fmt: skip
            _problems(document)
            _bodies(document)
            _limits(document, services.limits)
            if services.keys is None:
                _examples(document, services, list(services.collections.values()), list(services.models.values()))
            else:
                _keys(document)
            app.openapi_schema = document
        return app.openapi_schema

    async def told(request: Request) -> Response:
        return JSONResponse(described(services, request))

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_route("/openapi.json", told, include_in_schema=False)


def described(services: Services, request: Request) -> dict[str, Any]:
    """The description for this caller."""
    document: dict[str, Any] = request.app.openapi()
    if services.keys is not None:
        try:
            seen, models = services.readable(request), services.readable_models(request)
        except Refused:
            return document
        document = copy.deepcopy(document)
        _examples(document, services, seen, models)
    return document


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


def _bodies(document: dict[str, Any]) -> None:
    """Say how bodies that are not JSON are made."""
    content = document["paths"][SEARCH]["post"]["requestBody"]["content"]
    for kind, how in _MADE.items():
        schema = content[kind]["schema"]
        schema["description"] = f"{schema.get('description', '')} {how}".lstrip()


def _limits(document: dict[str, Any], limits: Limits) -> None:
    """Say what one request may ask for, in words and where a client's own checks look for it."""
    told = {
        SEARCH: f"At most {limits.body_bytes:,} bytes, {limits.queries:,} queries, "
        f"k = {limits.k:,}, {limits.answers:,} rows in all, texts of {limits.text_chars:,} characters; "
        f"{limits.images} pictures of {limits.image_bytes:,} bytes and {limits.image_pixels:,} pixels each.",
        ROWS: f"At most {limits.body_bytes:,} bytes and {limits.rows:,} rows.",
    }  # fmt: skip
    for path, operation in _operations(document):
        if path in told:
            operation["description"] = f"{operation['description']}\n\n{told[path]}"
    search = _json_body(document, SEARCH, "post")["schema"]["properties"]
    _bound(search["vectors"], limits.queries)
    _bound(search["texts"], limits.queries, limits.text_chars)
    _bound(search["images"], limits.images, (limits.image_bytes + 2) // 3 * 4 + len("data:image/jpeg;base64,"))
    search["k"]["maximum"] = limits.k
    put = _json_body(document, ROWS, "post")["schema"]["properties"]
    _bound(put["vectors"], limits.rows)
    _bound(put["texts"], limits.rows, limits.text_chars)
    _bound(put["ids"], limits.rows, MAX_ID)
    _bound(_json_body(document, ROWS, "delete")["schema"]["properties"]["ids"], limits.rows, MAX_ID)
    for parameter in document["paths"][ROWS]["delete"]["parameters"]:
        if parameter["name"] == "id":
            _bound(parameter["schema"], limits.rows, MAX_ID)


def _bound(schema: dict[str, Any], items: int, chars: int | None = None) -> None:
    """Let a list, or the list among several choices, hold so many items, each of so many characters."""
    for choice in schema.get("anyOf", [schema]):
        if choice.get("type") == "array":
            choice["maxItems"] = items
            if chars is not None:
                choice["items"] = choice["items"] | {"maxLength": chars}


def _json_body(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    content: dict[str, Any] = document["paths"][path][method]["requestBody"]["content"]["application/json"]
    return content


def _keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]


def _examples(
    document: dict[str, Any], services: Services, collections: list[CollectionService], models: list[ModelService]
) -> None:
    """Names and vectors of these, so that an example can be sent as it stands."""
    names: dict[str, Any] = {}
    apart: dict[str, dict[str, Any]] = {}  # paths that not every collection or model has an answer for
    if collections:
        names["c"] = collections[0].name
        _vectors(document, collections[0], services.by_text(collections[0].name))
    if models:
        names |= _tensor(models[0]) | {"n": models[-1].name}
    for model in models:
        if model.archive.link is not None:
            apart["/v1/models/{m}/tensors/{t}/chain.mp4"] = _tensor(model)
    for item in collections:
        if item.thumbnails is not None:
            apart["/v1/collections/{c}/pictures/{row}"] = _row(item)
    for path, operation in _operations(document):
        known = names | apart.get(path, {})
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and parameter["name"] in known:
                parameter["schema"].pop("examples", None)
                parameter["example"] = known[parameter["name"]]


def _vectors(document: dict[str, Any], chosen: CollectionService, by_text: bool) -> None:
    """Vectors as long as this collection's, in bodies and in their fields."""
    vector = [round(1 / (1 + number), 3) for number in range(chosen.collection.dim)]
    search, put = _json_body(document, SEARCH, "post"), _json_body(document, ROWS, "post")
    text = {"summary": "by text", "value": {"texts": ["singular value decomposition"], "k": 5}}
    search["examples"] = ({"text": text} if by_text else {}) | {
        "vector": {"summary": "by vector", "value": {"vectors": [vector], "k": 5}}
    }
    put["example"] = {"ids": ["a"], "vectors": [vector]}
    in_address = (part for part in document["paths"][SEARCH]["post"]["parameters"] if part["name"] == "dim")
    for schema in (search["schema"]["properties"]["dim"], *(part["schema"] for part in in_address)):
        schema["examples"] = [chosen.collection.dim]
    coded = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    search["schema"]["properties"]["vectors"]["examples"] = [[vector], coded]
    put["schema"]["properties"]["vectors"]["examples"] = [[vector, vector]]


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
