"""The description of the interface: every field told, and every example sent as it stands."""

from __future__ import annotations

import hashlib
import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster import (
    api,
    collection_routes,
    model_routes,
    problems,
    registry_routes,
    row_wire,
    similar_routes,
    wire,
)
from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.config import Limits
from cluster.encoding import Encoding
from cluster.local_backend import LocalBackend
from cluster.models import ModelService
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import ShardSet
from cluster.thumbnails import Thumbnails
from cluster.vectors import F32
from cluster.versions import open_version
from storage.fs import Location
from tests.archived_model import archived_child, archived_model
from tests.collection_fixtures import archive_vectors, clustered
from tests.page_fixtures import collection_service
from tests.pictures import png

DIM = 12


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A collection that takes texts, one of pictures whose first row is gone, a model and its child.

    None under the names that the code's own examples use.
    """
    root = tmp_path_factory.mktemp("openapi")
    now = open_version(archive_vectors(root, clustered(200, DIM), "ip", {"lines": np.arange(200)}))
    backend = LocalBackend(ShardSet(now.collection, now.builds), None)

    async def encode(texts: list[str]) -> F32:
        return np.ones((len(texts), DIM), np.float32)

    service = CollectionService("rows", now.collection, now.builds, [backend], version=now.name)
    model = ModelService.open("small", archived_model(root))
    child = ModelService.open("after", archived_child(root, "after", model.archive.url, 1))
    limits = Limits(queries=77, rows=55)
    seen = {"rows": service, "seen": pictures(root)}
    return Services(seen, {"small": model, "after": child}, limits, encoders={"rows": Encoding(encode)})


def pictures(root: Path) -> CollectionService:
    """Rows of one picture, with ids that an address cannot hold as they are."""
    data = png(1)
    (root / "a b.png").write_bytes(data)
    columns = {"path": ["a b.png"] * 3, "sha256": [hashlib.sha256(data).hexdigest()] * 3}
    ids = [f"a b.png#{i}" for i in range(3)]
    service = collection_service("seen", archive_vectors(root, clustered(3, DIM), "ip", columns, ids, "seen"))
    service.thumbnails = Thumbnails(Location(str(root)))
    service.log.delete([str(service.collection.table(0, 1).column("id")[0])], None)
    return service


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        yield client


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def illustrated(field: dict[str, Any]) -> bool:
    """Whether one sees what a field holds: an example, a default, or a type that says it all."""
    choices = field.get("anyOf", [field])
    plain = any(part.get("type") == "boolean" or "enum" in part or "$ref" in part for part in choices)
    return plain or bool(field.get("examples")) or field.get("default") not in (None, {})


def test_every_field_is_described(client: TestClient) -> None:
    """Parameters, bodies and answers: in words and by example, with the limits of this service."""
    document = client.get("/openapi.json").json()
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"] and operation["description"] and operation["tags"], where
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (where, parameter["name"])
            assert "example" in parameter or illustrated(parameter["schema"]), (where, parameter["name"])
        for answer in operation["responses"].values():
            assert answer["description"], where
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            for name, field in content["schema"].get("properties", {}).items():
                assert field["description"], (where, kind, name)
                assert illustrated(field) or field.get("format") == "binary", (where, kind, name)
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for key, field in schema.get("properties", {}).items():
            assert field.get("description"), (name, key)
            assert "example" in schema or illustrated(field) or "$ref" in field.get("items", {}), (name, key)
    search = document["paths"]["/v1/collections/{c}/search"]["post"]["description"]
    assert "77 queries" in search
    assert "55 rows" in document["paths"]["/v1/collections/{c}/rows"]["post"]["description"]


def test_errors_are_problem_documents_and_nothing_else(client: TestClient) -> None:
    """As described, and as given."""
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path != "/readyz":
                assert set(answer["content"]) == {"application/problem+json"}, (method, path, status)
    reply = client.get("/v1/models/small/tensors/scale?format=zip")
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    assert reply.json()["where"] == "query.format"
    assert reply.json()["detail"] == "format is not 'safetensors' or 'npy'"
    assert reply.json()["remedy"] == "GET /openapi.json describes every parameter"


def test_every_example_works(client: TestClient) -> None:
    """Each operation with the examples of its parameters and of its body: an answer, not a complaint."""
    document = client.get("/openapi.json").json()
    sent = 0
    for method, path, operation in operations(document):
        address = path
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                address = address.replace(f"{{{parameter['name']}}}", quote(str(parameter["example"])))
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        bodies = [item["value"] for item in content.get("examples", {}).values()]
        bodies += [content["example"]] if "example" in content else []
        for body in bodies or [None]:
            reply = client.request(method, address, **({} if body is None else {"json": body}))
            assert reply.is_success, (method, address, reply.text)
            sent += 1
    assert sent >= 17


def test_every_call_of_the_page_works(client: TestClient) -> None:
    """What `/docs` shows to be pasted, as a shell would read it: method, headers, body, address."""
    calls = re.findall(r'<pre tabindex="0"><code>(.*?)</code></pre>', client.get("/docs").text, re.DOTALL)
    for call in calls:
        words = shlex.split(html.unescape(call).replace("\\\n", ""))
        given = {name: words[at + 1] for at, name in enumerate(words) if name in ("-X", "-H", "-d")}
        method = given.get("-X", "POST" if "-d" in given else "GET")
        headers = dict([given["-H"].split(": ")]) if "-H" in given else {}
        reply = client.request(method, words[-1].partition("testserver")[2], headers=headers, content=given.get("-d"))
        assert reply.is_success, (call, reply.text)
    assert len(calls) == len(list(operations(client.get("/openapi.json").json())))


def test_every_option_of_a_search_works_as_its_example_says(client: TestClient) -> None:
    """One at a time, in the URL; those that no tier here takes say so."""
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/collections/{c}/search"]["post"]
    query = np.ones(DIM, "<f4").tobytes()
    for parameter in operation["parameters"]:
        if parameter["in"] != "query":
            continue
        for value in parameter["schema"].get("examples", [parameter["schema"].get("default")]):
            if parameter["name"] == "filter":
                value = "lines > 20"  # columns are the collection's own
            reply = client.post("/v1/collections/rows/search", params={parameter["name"]: value}, content=query,
                                headers={"Content-Type": "application/octet-stream"})  # fmt: skip
            if parameter["name"] in ("nprobe", "ef", "refine"):
                assert reply.status_code == 422 and "no tier that is built takes" in reply.text
            else:
                assert reply.status_code == 200, (parameter["name"], reply.text)


def test_examples_of_answers_are_answers() -> None:
    """Each is what its model takes."""
    for module in (api, collection_routes, model_routes, problems, registry_routes, row_wire, similar_routes, wire):
        for model in vars(module).values():
            extra = getattr(model, "model_config", {}).get("json_schema_extra") if isinstance(model, type) else None
            if extra:
                model.model_validate(extra["example"], strict=True)  # type: ignore[attr-defined]


def test_names_are_told_to_nobody_without_a_key(services: Services, tmp_path: Path) -> None:
    """The description is open; what it shows then is made up."""
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: a, sha256: {new_key()[1]}, scopes: ['read:*']}}]")
    guarded = Services(services.collections, services.models, keys=Keys(str(path)))
    document = TestClient(build_api(guarded)).get("/openapi.json").json()
    parameter = document["paths"]["/v1/collections/{c}"]["get"]["parameters"][0]
    assert "example" not in parameter
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "small" not in str(document["paths"]["/v1/models/{m}"])


def test_a_key_sees_examples_of_what_it_may_read(services: Services, tmp_path: Path) -> None:
    """Vectors of its collection's dimension, in the bodies and in the fields; sent as they stand they are answered."""
    (reader, reader_hash), (other, other_hash) = new_key(), new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys: [{{name: a, sha256: {reader_hash}, scopes: ['read:rows']}}, "
        f"{{name: b, sha256: {other_hash}, scopes: ['admin:none']}}]"
    )
    guarded = Services(services.collections, services.models, keys=Keys(str(path)))
    client = TestClient(build_api(guarded))
    bearer = {"Authorization": f"Bearer {reader}"}
    document = client.get("/openapi.json", headers=bearer).json()
    for where, method in (("search", "post"), ("rows", "post")):
        body = document["paths"][f"/v1/collections/{{c}}/{where}"][method]["requestBody"]["content"]["application/json"]
        shown = [item["value"] for item in body.get("examples", {}).values()] + [body.get("example", {})]
        vectors = [vector for example in shown for vector in example.get("vectors", [])]
        vectors += [vector for part in body["schema"]["properties"]["vectors"]["examples"] if isinstance(part, list)
                    for vector in part]  # fmt: skip
        assert vectors and {len(vector) for vector in vectors} == {DIM}
    search = document["paths"]["/v1/collections/{c}/search"]["post"]
    (example,) = search["requestBody"]["content"]["application/json"]["examples"].values()
    assert client.post("/v1/collections/rows/search", json=example["value"], headers=bearer).is_success
    assert "small" not in str(document["paths"]["/v1/models/{m}"])
    assert "/v1/collections/rows/search" in client.get("/docs", headers=bearer).text
    assert "/v1/collections/rows/search" not in client.get("/docs").text
    nobody = client.get("/openapi.json").json()
    assert "'rows'" not in str(nobody["paths"]["/v1/collections/{c}"])
    assert client.get("/openapi.json", headers={"Authorization": f"Bearer {other}"}).json() == nobody


def test_missing_things_are_called_what_they_are(client: TestClient) -> None:
    """A model that is not there is no collection."""
    for method, path, operation in operations(client.get("/openapi.json").json()):
        if path.startswith("/v1/models/{m}"):
            assert operation["responses"]["404"]["description"].startswith("No such model"), (method, path)


def test_limits_are_told_to_programs(client: TestClient) -> None:
    """As bounds of the schema; and how bodies that are not JSON are made."""
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/v1/collections/{c}/search"]["post"]["requestBody"]["content"]
    fields = content["application/json"]["schema"]["properties"]
    limits = Limits(queries=77, rows=55)
    texts = {"type": "array", "items": {"type": "string", "maxLength": limits.text_chars}, "maxItems": 77}
    assert fields["texts"]["anyOf"][0] == texts
    (pictures,) = (choice for choice in fields["images"]["anyOf"] if choice["type"] == "array")
    assert pictures["maxItems"] == limits.images and pictures["items"]["maxLength"] > limits.image_bytes
    rows = paths["/v1/collections/{c}/rows"]
    put = rows["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert (put["ids"]["maxItems"], put["ids"]["items"]["maxLength"]) == (55, 10_000)
    assert "(tiers cold and exact)" in fields["level"]["description"]
    for kind, content_of in content.items():
        assert kind == "application/json" or re.search("In Python: `|With curl: `", content_of["schema"]["description"])
