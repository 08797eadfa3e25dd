"""Recipes on two raylets, and as jobs of a real job server."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.recipe import load
from pipelines.run import run_here
from tests.fixtures import write_safetensors
from tests.raylets import Cluster, cluster

pytestmark = pytest.mark.timeout(700)  # a job has its own copy of the checkout, for which each machine compiles kernels


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint on a disk that both machines reach."""
    return checkpoint(tmp_path_factory.mktemp("shared") / "m.safetensors", 2048)


def checkpoint(path: Path, rows: int) -> Path:
    """One tensor of ``rows`` x 512 values: at one plane of 65,536 values a unit, ``rows`` / 128 units."""
    values = (np.random.default_rng(0).standard_normal((rows, 512)) * 0.05).astype(np.float32)
    write_safetensors(path, {"layer.0.mlp.weight": ("F32", values.shape, values.tobytes())})
    return path


def settings(source: Path, root: Path, *more: str) -> list[str]:
    return [f"source.path={source}", f"sink.path={root}", "sink.name=m", "compute.planes_per_unit=1",
            "compute.memory=300MB", "operators.1.layout=hilbert", "operators.4.coder=rans", *more]  # fmt: skip


def options(*given: str) -> list[str]:
    return [part for setting in given for part in ("--set", setting)]


def digests(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def here(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made_here(source, tmp_path_factory.mktemp("here"))


def made_here(source: Path, root: Path) -> dict[str, str]:
    """Digests of what one process makes without Ray."""
    run_here(load("quickstart-model", settings(source, root)))
    return digests(root / "models" / "m")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_two_raylets_make_the_bytes_of_one_process(two: Cluster, tmp_path: Path) -> None:
    """A machine that is up first does not wait for the other, so of a few units it may take all: then of more."""
    for units in (16, 128, 1024):
        source, root = checkpoint(tmp_path / f"{units}.safetensors", 128 * units), tmp_path / f"{units}"
        given = options(*settings(source, root))
        made = two.call("run", "quickstart-model", "--json", "--address", two.gcs, *given)
        assert made.returncode == 0, made.stderr[-2000:]
        said = events(made.stdout)
        told = [event for event in said if event["event"] == "unit"]
        assert sorted(event["unit"] for event in told) == list(range(units))
        assert digests(root / "models" / "m") == made_here(source, tmp_path / f"here-{units}")
        assert "2 machines" in Path(said[-1]["page"]).read_text()
        workers = {worker.rpartition(":")[0] for event in told for worker in event["workers"]}
        assert workers <= set(two.nodes)
        if len(workers) == 2:
            return
    pytest.fail(f"{workers} did all the work")


def test_a_job_streams_its_log_and_gives_its_exit_code(
    two: Cluster, source: Path, here: dict[str, str], tmp_path: Path
) -> None:
    given = settings(source, tmp_path)
    made = two.call("submit", "quickstart-model", "--address", two.jobs, *options(*given))
    assert made.returncode == 0, made.stderr[-2000:]
    (job,) = re.findall(r"^job (\w+)$", made.stderr, re.MULTILINE)
    said = events(made.stdout)
    assert [event["event"] for event in said] == ["start", *["unit"] * 16, "archived", "done"]
    assert {event["job"] for event in said} == {job}
    assert digests(tmp_path / "models" / "m") == here
    told = two.call("status", job, "--address", two.jobs, "--json")
    assert json.loads(told.stdout)["status"] == "SUCCEEDED"
    # what only the cluster can find out: another recipe under the name
    other = two.call("submit", "quickstart-model", "--address", two.jobs, *options(*given, "operators.2.sqnr_db=30"))
    assert other.returncode == 1 and "sink.name" in other.stdout


def test_a_job_that_nobody_waits_for_is_asked_and_stopped(two: Cluster, tmp_path: Path) -> None:
    long = checkpoint(tmp_path / "long.safetensors", 65_536)  # 2,048 units: minutes, so that it is at work when asked
    slow = options(*settings(long, tmp_path, "operators.2.states=256", "operators.1.side=128"))
    begun = two.call("submit", "quickstart-model", "--address", two.jobs, "--no-wait", *slow)
    assert begun.returncode == 0, begun.stderr
    (job,) = begun.stdout.split()
    end = time.monotonic() + 300
    while not list(tmp_path.glob("models/m/journal/0*.json")) and time.monotonic() < end:
        time.sleep(0.2)
    told = two.call("status", job, "--address", two.jobs)
    assert told.stdout.startswith("RUNNING"), told.stdout + told.stderr
    assert two.call("stop", job, "--address", two.jobs).stdout.strip() == "stopped"
    while not (told := two.call("status", job, "--address", two.jobs)).stdout.startswith("STOPPED"):
        assert time.monotonic() < end + 60, told
        time.sleep(0.2)
    assert two.call("stop", job, "--address", two.jobs).stdout.strip() == "it was not running"
    assert list(tmp_path.glob("models/m/journal/0*.json")) and not list(tmp_path.rglob("manifest.json"))
    missing = two.call("status", "raysubmit_none", "--address", two.jobs)
    assert missing.returncode == 1 and "raysubmit_none" in missing.stderr
