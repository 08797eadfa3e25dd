"""The interface described on one page, made from its own OpenAPI document: no script, nothing from other hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from cluster.openapi import described
from cluster.page.render import show
from cluster.services import Services

Schema = dict[str, Any]
METHODS = ("get", "post", "put", "delete")


@dataclass(frozen=True)
class Field:
    """A field or parameter: where it stands (path, query, body), what it takes, its default in JSON or empty."""

    name: str
    place: str
    kind: str
    required: bool
    default: str
    description: str


@dataclass(frozen=True)
class Operation:
    """One method of one path. body, answers: content types; answer: fields of the JSON answer."""

    method: str
    path: str
    summary: str
    description: str
    fields: list[Field]
    body: list[str]
    answers: list[str]
    answer: list[Field]
    statuses: list[tuple[str, str]]
    example: str

    @property
    def anchor(self) -> str:
        """For links within the page."""
        words = "".join(c if c.isalnum() else "-" for c in self.path).strip("-")
        return f"{self.method}-{words}"


async def view(services: Services, request: Request) -> Response:
    """Every operation, by its tag."""
    document = described(services, request)
    base = str(request.base_url).rstrip("/")
    tags: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                told = methods[method]
                tag = (told.get("tags") or ["other"])[0]
                tags.setdefault(tag, []).append(
                    operation(document, method, path, told, base, services.keys is not None)
                )
    return show("reference.html", tags=tags, about=document["info"]["description"].split("\n\n"))


def operation(document: Schema, method: str, path: str, told: Schema, base: str, keys: bool) -> Operation:
    """One operation, references resolved."""
    fields = [
        Field(item["name"], item["in"], kind_of(document, item.get("schema", {})), bool(item.get("required")),
              _default(item.get("schema", {})), item.get("description", ""))
        for item in told.get("parameters", [])
    ]  # fmt: skip
    content = told.get("requestBody", {}).get("content", {})
    replies = told["responses"]
    good: Schema = next((replies[status] for status in ("200", "201", "202") if status in replies), {})
    media = good.get("content", {})
    body = list(_fields(document, content.get("application/json", {}).get("schema", {}), "body"))
    answer = list(_fields(document, media.get("application/json", {}).get("schema", {}), "answer"))
    named = {field.name for field in body}
    return Operation(
        method, path, told.get("summary", ""), told.get("description", ""),
        # Options that a JSON body holds stand in the URL for bodies of other types: said once.
        [field for field in fields if field.place == "path" or field.name not in named] + body,
        list(content), list(media), answer,
        [(status, reply.get("description", "")) for status, reply in replies.items()],
        _curl(method, path, told, content, base, keys),
    )  # fmt: skip


def kind_of(document: Schema, schema: Schema) -> str:
    """A schema in a few words: `whole number ≥ 1`, `list of text`, `text or null`."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(document, part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {kind_of(document, schema.get('items', {}))}"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "object"}.get(
        kind, kind
    )
    if schema.get("format") == "binary":
        words = "bytes"
    bounds = [f"{sign} {schema[key]:,}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    bounds += [f"> {schema['exclusiveMinimum']:,}"] if "exclusiveMinimum" in schema else []
    bounds += [f"at most {schema['maxLength']:,} characters"] if "maxLength" in schema else []
    return f"{words} {', '.join(bounds)}".strip()


def _fields(document: Schema, schema: Schema, place: str) -> Iterator[Field]:
    schema = _resolved(document, schema)
    for name, part in schema.get("properties", {}).items():
        own = part.get("description") or _resolved(document, part).get("description", "")
        required = name in schema.get("required", [])
        yield Field(name, place, kind_of(document, part), required, _default(part), own)
        inner = part.get("items", part)
        if place == "answer" and "$ref" in inner:
            for field in _fields(document, inner, place):
                yield Field(f"{name}.{field.name}", place, field.kind, field.required, "", field.description)


def _resolved(document: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _default(schema: Schema) -> str:
    return "" if schema.get("default") is None else json.dumps(schema["default"])


def _curl(method: str, path: str, told: Schema, content: Schema, base: str, keys: bool) -> str:
    """A call that can be pasted, with the document's own examples."""
    for item in told.get("parameters", []):
        examples = [item["example"]] if "example" in item else item.get("schema", {}).get("examples", [])
        if item["in"] == "path" and examples:
            path = path.replace(f"{{{item['name']}}}", quote(str(examples[0])))
    told_by_body = method == "post" and content
    parts = ["curl -s" + (f" -X {method.upper()}" if method != "get" and not told_by_body else "")]
    parts += ["-H 'Authorization: Bearer KEY'"] if keys else []
    body = content.get("application/json", {})
    example = next((item["value"] for item in body.get("examples", {}).values()), body.get("example"))
    if example is not None:
        text = json.dumps(example, ensure_ascii=False).replace("'", "'\\''")
        parts += ["-H 'Content-Type: application/json'", f"-d '{text}'"]
    whole = [*parts, f"'{base}{path}'"]
    return (" " if sum(map(len, whole)) < 80 else " \\\n  ").join(whole)
