"""A small service for the tests of the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.engine import SearchEngine
from cluster.local_backend import LocalBackend
from cluster.models import ModelService
from cluster.service import CollectionService
from cluster.services import Services
from cluster.shard_set import ShardSet
from tests.archived_model import archived_model
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 400, 8
HOSTILE = "<script>alert(1)</script>"


def collection_service(name: str, url: str) -> CollectionService:
    """A collection that is searched in this process."""
    engine = SearchEngine.open(url)
    backend = LocalBackend(ShardSet(engine.collection, engine.builds), None)
    return CollectionService(name, engine.collection, engine.builds, [backend])


def small_service(root: Path) -> Services:
    """A collection `rows` whose metadata are markup, and a model `small`."""
    columns = {"lines": np.arange(ROWS), "title": [f"{HOSTILE} {i}" for i in range(ROWS)]}
    rows = collection_service("rows", archive_vectors(root, clustered(ROWS, DIM), "ip", columns))
    return Services({"rows": rows}, {"small": ModelService.open("small", archived_model(root))})
