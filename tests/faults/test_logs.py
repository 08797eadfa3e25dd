"""What stays on disk of who asked what: no key, no vector and no text of a query, whatever went wrong with it."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from cluster import running
from cluster.auth import new_key
from operators.encode import open_encoder
from tests.collection_fixtures import archive_vectors, clustered
from tests.model_fixtures import bert

SECRET = "zanzibar quokka"
NUMBER = 0.7316492185


def test_logs_hold_nothing_of_a_query(ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Good requests, refused ones, ones that meet a shard that was killed; then every log of the cluster is read."""
    import ray

    model = bert(tmp_path / "bert")
    dim = open_encoder(str(model)).dim
    url = archive_vectors(tmp_path, clustered(300, dim), "ip", {"body": ["row"] * 300})
    token, digest = new_key()
    wrong, _ = new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "app", "sha256": digest, "scopes": ["write:rows"]}]}))
    rows = {"name": "rows", "url": url, "placement": "shards", "groups": 2, "encoder": {"model": str(model)}}
    service = running.start({"collections": [rows], "port": 0, "keys": str(keys), "limits": {"text_chars": 1000}})
    vector = [NUMBER] * dim
    statuses = []
    try:
        with httpx.Client(base_url=f"{service.url}/v1/collections/rows", trust_env=False, timeout=60) as http:
            headers = {"Authorization": f"Bearer {token}"}
            for body in (
                {"texts": [SECRET]}, {"vectors": [vector]}, {"vectors": [vector], "tier": SECRET},
                {"vectors": [[*vector, 1]]}, {"texts": [SECRET * 100]}, {"texts": [SECRET], "surprise": SECRET},
                {"vectors": [[SECRET]]}, {"texts": [SECRET], "filter": f"body == '{SECRET}' and ("},
            ):  # fmt: skip
                statuses.append(http.post("/search", json=body, headers=headers).status_code)
                assert http.post("/search", json=body, headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
            statuses.append(http.post("/search", content=f'{{"texts": ["{SECRET}', headers=headers).status_code)
            put = {"ids": ["a"], "vectors": [vector], "metadata": {"body": [SECRET]}}
            statuses.append(http.post("/rows", json=put, headers=headers).status_code)
            statuses.append(http.post("/rows", json=put | {"op": "append"}, headers=headers).status_code)
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if "shards-rows-" in actor["name"]:
                    ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
            for body in ({"texts": [SECRET]}, {"vectors": [vector]}):
                assert http.post("/search", json=body, headers=headers).status_code in (200, 503)
    finally:
        service.stop()
    assert statuses == [200, 200, 422, 422, 413, 422, 422, 422, 422, 200, 422]
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    read = 0
    for path in [*logs.rglob("*.log"), *logs.rglob("*.out"), *logs.rglob("*.err")]:
        text = path.read_text(errors="replace")
        read += len(text)
        for secret in (token, wrong, digest, SECRET, "quokka", str(NUMBER), str(float(np.float32(NUMBER)))):
            assert secret not in text, path
    assert read > 1000
    assert "quokka" not in caplog.text
