"""The deployment files, each against the schema of the tool that reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray.serve.schema import ServeDeploySchema

from cluster.auth import Keys
from cluster.config import IMPORT_PATH, parse_config
from cluster.metrics import Metrics
from operators.errors import HilbertflowError
from pipelines import run_metrics
from pipelines.bench.datasets import debian_files

DEPLOY = Path(__file__).resolve().parents[2] / "cluster" / "deploy"

# Fields of ray.io/v1 that the files may use (KubeRay 1.4 and newer); ``dict`` is checked below.
CLUSTER = {
    "rayVersion": str, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict, "headGroupSpec": dict,
    "workerGroupSpecs": list, "suspend": bool, "gcsFaultToleranceOptions": dict, "headServiceAnnotations": dict,
}  # fmt: skip
HEAD = {"template": dict, "rayStartParams": dict, "serviceType": str, "enableIngress": bool, "headService": dict}
WORKER = {
    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict,
    "template": dict, "suspend": bool, "numOfHosts": int, "idleTimeoutSeconds": int,
}  # fmt: skip
SPECS: dict[str, dict[str, type]] = {
    "RayCluster": CLUSTER,
    "RayJob": {
        "entrypoint": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
        "rayClusterSpec": dict, "runtimeEnvYAML": str, "activeDeadlineSeconds": int, "submissionMode": str,
    },
    "RayService": {"serveConfigV2": str, "rayClusterConfig": dict, "upgradeStrategy": dict},
}  # fmt: skip
AUTOSCALER = {"idleTimeoutSeconds": int, "upscalingMode": str, "version": str, "resources": dict}


def documents(name: str) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all((DEPLOY / name).read_text())


def closed(given: dict[str, Any], known: dict[str, type]) -> None:
    assert given.keys() <= known.keys()
    assert all(isinstance(value, known[key]) for key, value in given.items())


def clusters(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return {"RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}.get(
        document["kind"], spec
    )


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"])
def test_kuberay(name: str) -> None:
    for document in documents(name):
        assert document["apiVersion"] == "ray.io/v1"
        closed(document["spec"], SPECS[document["kind"]])
        cluster = clusters(document)
        closed(cluster, CLUSTER)
        closed(cluster.get("autoscalerOptions", {}), AUTOSCALER)
        assert cluster["rayVersion"] == ray.__version__
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            closed(group, HEAD if group is groups[0] else WORKER)
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
            kubernetes_validate.validate(pod, "1.31", strict=True)
            mounted = {m["name"] for c in pod["spec"]["containers"] for m in c.get("volumeMounts", ())}
            assert mounted == {v["name"] for v in pod["spec"].get("volumes", ())}


def test_serve_configurations() -> None:
    service = next(documents("rayservice.yaml"))["spec"]["serveConfigV2"]
    for text in (service, (DEPLOY / "serve.yaml").read_text()):
        body = yaml.safe_load(text)
        schema = ServeDeploySchema.model_validate(body)
        assert [app.import_path for app in schema.applications] == [IMPORT_PATH]
        config = parse_config(body["applications"][0]["args"])
        assert config.keys or config.host == "127.0.0.1"  # nothing public without keys
        assert config.listen == (body.get("proxy_location") == "Disabled")  # one of them listens on port 8000
    body["applications"][0]["args"]["colections"] = []
    with pytest.raises(HilbertflowError, match="colections"):
        parse_config(body["applications"][0]["args"])


def test_keys_example_is_read() -> None:
    assert Keys(str(DEPLOY / "keys.example.yaml")).find("not a key of anybody") is None


def test_ray_up() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    body = next(documents("ray-up-aws.yaml"))
    jsonschema.validate(body, schema)
    assert body["head_node_type"] in body["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body | {"max_wrokers": 1}, schema)


def test_dockerfile() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([0-9.]+)-", text)) == {ray.__version__}
    for source in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parents[1] / part).exists() for part in source.split())


def test_prometheus(tmp_path: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        if shutil.which("apt-get") is None:
            pytest.skip("promtool is not here, and no apt-get to bring it")
        tool = str(debian_files("prometheus", "usr/bin", "promtool") / "promtool")
    text = (DEPLOY / "prometheus.yml").read_text()
    with_key = text.replace("# authorization:", "authorization:")
    assert with_key != text
    (tmp_path / "metrics.key").write_text("token")
    for name, body in (("open.yml", text), ("keyed.yml", with_key)):
        (tmp_path / name).write_text(body)
        found = subprocess.run(
            [tool, "check", "config", tmp_path / name], capture_output=True, text=True, timeout=60
        )  # fmt: skip
        assert found.returncode == 0, found.stderr


def test_grafana_shows_metrics_that_exist() -> None:
    body = json.loads((DEPLOY / "grafana.json").read_text())
    dashboard = Dashboard.from_json(body)
    assert len(dashboard.panels or ()) == len({panel["id"] for panel in body["panels"]}) >= 8
    known = {metric.name for metric in Metrics().registry.collect()} | {f"ray_{name}" for name in run_metrics.NAMES}
    shown = set()
    for panel in body["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"(?:ray_)?hilbertflow_\w+", target["expr"]):
                shown.add(re.sub(r"_(total|bucket|sum|count)$", "", name))
    assert shown <= known
    assert {f"ray_{name}" for name in run_metrics.NAMES} <= shown
