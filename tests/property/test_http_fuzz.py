"""Whatever a client can make of our OpenAPI document, and what it cannot: never a 5xx, always a documented answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cluster.api import build_api
from cluster.build import build_indexes
from cluster.encoding import Encoded, Encoding
from cluster.local_backend import LocalBackend
from cluster.models import ModelService
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import ShardSet
from cluster.vectors import F32
from cluster.versions import open_version
from tests.archived_model import archived_model
from tests.collection_fixtures import archive_vectors, clustered

DIM = 3  # of the examples in the document
EXAMPLES = 40
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with a collection (two groups, an index, an encoder) and a model, under the examples' names."""
    root = tmp_path_factory.mktemp("fuzz")
    url = archive_vectors(root, clustered(200, DIM), "ip", {"lines": np.arange(200)}, name="docs")
    build_indexes(url, ["hnsw"], actors=0)
    now = open_version(url)
    groups = [LocalBackend(ShardSet(now.collection, now.builds, group, 2), None) for group in range(2)]

    async def encode(texts: list[str]) -> F32:
        return np.ones((len(texts), DIM), np.float32)

    async def see(pictures: list[bytes]) -> Encoded:
        return Encoded(np.ones((len(pictures), DIM), np.float32), {})

    collections = {"docs": CollectionService("docs", now.collection, now.builds, groups, version=now.name)}
    model = ModelService.open("minilm", archived_model(root))
    app = build_api(Services(collections, {"minilm": model}, encoders={"docs": Encoding(encode, see)}))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_service(api_schema: Any, mode: GenerationMode) -> None:
    """Every operation, with requests that its description allows and requests that it forbids."""
    tried = 0
    for found in api_schema.get_all_operations():
        operation = found.ok()
        seen = 0

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def ask(case: Any) -> None:
            nonlocal seen
            seen += 1
            case.call_and_validate(checks=CHECKS)

        try:
            ask()
        except Unsatisfiable:  # nothing that an operation without parameters forbids
            continue
        tried += seen
    assert tried > 150
