"""`serve deploy` with the configuration that `hilbertflow serve` takes: a real cluster, and Ray's own command.

The replicas are asked all the while a new index is published and taken up by a changed `user_config`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.build import build_indexes
from cluster.config import load_config
from cluster.engine import SearchEngine
from cluster.hnsw import Hnsw
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 1500, 12
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"}
QUERIES = clustered(8, DIM, seed=9)


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of the dashboard of a Ray of its own, whose files lie apart, so that nobody else finds it."""
    folder = tempfile.mkdtemp(prefix="hf-", dir="/tmp")  # short: sockets lie in it
    gcs, board, agent, grpc, metrics, client = free_ports(6)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000",
        f"--port={gcs}", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        "--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{board}"
    try:
        wait_for(lambda: httpx.get(f"{address}/api/serve/applications/", trust_env=False, timeout=20).is_success, 90)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(true: Any, seconds: float) -> None:
    """Until it is, whatever is not there yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


def deploy(path: Path, body: dict[str, Any], dashboard: str) -> None:
    """Ray's own command."""
    path.write_text(yaml.safe_dump(body))
    done = subprocess.run(
        [str(BIN / "serve"), "deploy", str(path), "-a", dashboard], capture_output=True, text=True, timeout=120,
        env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_swap_by_user_config_drops_no_request(dashboard: str, tmp_path: Path) -> None:
    """Options reach the deployments; asked throughout, every answer is a 200 and right; the new version takes over."""
    url = archive_vectors(tmp_path, clustered(ROWS, DIM), "ip")
    build_indexes(url, ["hnsw"], shards=2, actors=0)
    expected = SearchEngine.open(url).search(QUERIES, 5, "exact").ids.tolist()
    (port,) = free_ports(1)
    rows = {"name": "rows", "url": url, "placement": "shards", "groups": 2, "replicas": 1, "max_replicas": 3}
    args = {"collections": [rows], "port": port, "refresh_seconds": 0, "limits": {"queued": 77}}
    application = {"name": "search", "import_path": "cluster.serve_app:application", "route_prefix": "/", "args": args}
    body = {"proxy_location": "Disabled", "applications": [application]}
    path = tmp_path / "serve.yaml"
    deploy(path, body, dashboard)
    assert load_config(str(path)).collections[0].max_replicas == 3  # `hilbertflow serve` reads the same file
    base = f"http://127.0.0.1:{port}"
    wait_for(lambda: httpx.get(f"{base}/readyz", trust_env=False, timeout=20).status_code == 200, 120)
    told = httpx.get(f"{dashboard}/api/serve/applications/", trust_env=False, timeout=30).json()
    deployments = told["applications"]["search"]["deployments"]
    assert set(deployments) == {"ingress", "shards-rows-0", "shards-rows-1"}
    config = deployments["shards-rows-1"]["deployment_config"]
    bounds = config["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"], config["max_queued_requests"]) == (1, 3, 77)

    stop, seen, wrong = threading.Event(), [0], []

    def ask() -> None:
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as http:
            while not stop.is_set():
                reply = http.post("/v1/collections/rows/search", json={"vectors": QUERIES.tolist(), "k": 5, "ef": 400})
                seen[0] += 1
                hits = reply.json().get("results", [])
                if reply.status_code != 200 or [hit["ids"] for hit in hits] != expected or hits[0]["partial"]:
                    wrong.append(reply.text[:300])

    def version() -> str:
        return str(httpx.get(f"{base}/v1/collections/rows", trust_env=False, timeout=20).json()["version"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        before, at_start = version(), seen[0]
        build_indexes(url, [Hnsw(shards=2, links=12)], actors=0)
        assert version() == before  # published; nobody has told the replicas
        names = ("shards-rows-0", "shards-rows-1", "ingress")
        application["deployments"] = [{"name": name, "user_config": {"look": 1}} for name in names]
        deploy(path, body, dashboard)
        wait_for(lambda: version() != before, 60)
        at_swap = seen[0]
        wait_for(lambda: seen[0] > at_swap + 20, 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, json.dumps(wrong[:3])
    assert at_swap > at_start
    told = httpx.get(f"{dashboard}/api/serve/applications/", trust_env=False, timeout=30).json()
    replicas = [r for d in told["applications"]["search"]["deployments"].values() for r in d["replicas"]]
    assert len(replicas) == 3  # none was started anew


def test_replicas_come_and_go_with_the_searches_that_pass_serve(dashboard: str, tmp_path: Path) -> None:
    """Serve carries none of them; it hears of them from the replicas, starts a second one, and stops it again."""
    url = archive_vectors(tmp_path, clustered(20_000, DIM), "ip")
    expected = SearchEngine.open(url).search(QUERIES, 5, "exact").ids.tolist()
    (port,) = free_ports(1)
    rows = {"name": "rows", "url": url, "placement": "shards", "groups": 1, "replicas": 1, "max_replicas": 2}
    quick = {
        "min_replicas": 1, "initial_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1,
        "upscale_delay_s": 0, "downscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 0.5,
        "policy": {"policy_function": "cluster.scaling:by_searches"},
    }  # fmt: skip
    application = {
        "name": "search", "import_path": "cluster.serve_app:application", "route_prefix": "/",
        "args": {"collections": [rows], "port": port, "recall_seconds": 0},
        "deployments": [{"name": "shards-rows-0", "autoscaling_config": quick}],
    }  # fmt: skip
    deploy(tmp_path / "serve.yaml", {"proxy_location": "Disabled", "applications": [application]}, dashboard)
    base = f"http://127.0.0.1:{port}"
    wait_for(lambda: httpx.get(f"{base}/readyz", trust_env=False, timeout=20).status_code == 200, 120)

    def running() -> int:
        told = httpx.get(f"{dashboard}/api/serve/applications/", trust_env=False, timeout=30).json()
        replicas = told["applications"]["search"]["deployments"]["shards-rows-0"]["replicas"]
        return sum(replica["state"] == "RUNNING" for replica in replicas)

    stop, wrong = threading.Event(), []

    def ask(depth: int) -> None:
        body = {"vectors": QUERIES.tolist() * 16, "k": 5 + depth, "tier": "exact"}
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as http:
            while not stop.is_set():
                reply = http.post("/v1/collections/rows/search", json=body)
                if reply.status_code != 200 or [hit["ids"][:5] for hit in reply.json()["results"][:8]] != expected:
                    wrong.append(reply.text[:300])

    assert running() == 1
    threads = [threading.Thread(target=ask, args=(depth,)) for depth in range(4)]  # of unlike k: not one batch
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: running() == 2, 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    wait_for(lambda: running() == 1, 60)
    assert not wrong, json.dumps(wrong[:3])
