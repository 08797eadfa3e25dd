"""A replica that is ready has met every kernel: no request of any kind waits for a compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.build import build_indexes
from tests.archived_model import archived_child, archived_model
from tests.collection_fixtures import archive_vectors, clustered

ROOT = Path(__file__).resolve().parents[2]
ROWS, DIM = 5000, 16

ASKS = """
import gc, json, sys
import numpy as np
from fastapi.testclient import TestClient
from numba.core.dispatcher import Dispatcher
from cluster.config import parse_config
from cluster.serve_app import Ingress

def specialised():
    held = [item for item in gc.get_objects() if isinstance(item, Dispatcher)]
    return {f"{d.py_func.__module__}.{d.py_func.__qualname__}{s}" for d in held for s in d.signatures
            if d.py_func.__module__.partition(".")[0] in ("cluster", "operators", "storage", "pipelines")}

served = next(kind for kind in Ingress.__mro__ if "_service" in vars(kind))
body = parse_config(json.loads(sys.argv[1])).model_dump(mode="json")
app = served(body, {}, []).__serve_build_asgi_app__()
ready, late = specialised(), {}
with TestClient(app) as client:
    def ask(method, path, **more):
        before = specialised()
        reply = client.request(method, path, **more)
        assert reply.status_code == 200, (path, reply.text)
        if new := specialised() - before:
            late[f"{method} {path} {str(more)[-60:]}"] = sorted(new)
    vectors = np.random.default_rng(0).normal(size=(70, 16)).tolist()
    def search():
        for tier in client.get("/v1/collections/rows").json()["tiers"]:
            for some in (vectors[:1], vectors):
                for more in ({}, {"filter": "lines < 100"}, {"filter": "lines > 5"}, {"radius": 3.0}):
                    ask("POST", "/v1/collections/rows/search", json={"vectors": some, "tier": tier, **more})
    search()
    for op in ("upsert", "append"):
        ask("POST", "/v1/collections/rows/rows",
            json={"ids": [op], "vectors": vectors[:1], "metadata": {"lines": [3]}, "op": op})
    ask("DELETE", "/v1/collections/rows/rows", json={"ids": ["upsert", "row-9"]})
    search()
    for model in ("small", "after"):
        about = client.get(f"/v1/models/{model}").json()
        for tensor in about["tensor_list"]:
            for level in about["levels"]:
                for kind in ("safetensors", "npy"):
                    ask("GET", f"/v1/models/{model}/tensors/{tensor['name']}?level={level}&format={kind}")
            if not tensor["exact_at_every_level"]:
                ask("GET", f"/v1/models/{model}/tensors/{tensor['name']}?rows=3:90")
                ask("GET", f"/v1/models/{model}/tensors/{tensor['name']}/planes.png")
                ask("GET", f"/models/{model}/tensors/{tensor['name']}")
        ask("GET", f"/models/{model}")
        ask("GET", f"/v1/models/{model}/similar")
    ask("GET", "/v1/models/after/tensors/layer.0.weight/chain.mp4")
    ask("GET", "/v1/models/small/differences/after")
    for path in ("/", "/state", "/collections/rows?row=row-7", "/v1/registry/tree"):
        ask("GET", path)
print(json.dumps({"ready": len(ready), "late": late}))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Rows in lists with both indexes, a model and what became of it."""
    root = tmp_path_factory.mktemp("warm")
    url = archive_vectors(root, clustered(ROWS, DIM), "ip", {"lines": np.arange(ROWS)})
    build_indexes(url, ["ivfpq", "hnsw"], shards=2, actors=0)
    model = archived_model(root)
    return {
        "collections": [{"name": "rows", "url": url}],
        "models": [{"name": "small", "url": model}, {"name": "after", "url": archived_child(root, "after", model, 20)}],
    }


def test_no_request_meets_a_new_kernel(config: dict[str, object]) -> None:
    """In a fresh process: what Numba had not specialised when the replica was ready, no request makes it do."""
    command = [sys.executable, "-c", ASKS, json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ready"] > 20  # kernels inside kernels are not counted
    assert told["late"] == {}
