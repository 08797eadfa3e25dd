"""What can be seen of a run: its page, its events, its metrics as Prometheus scrapes them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from pipelines import run_metrics
from pipelines.pending import Pending
from pipelines.plan import Pass
from pipelines.progress import Reporter
from pipelines.recipe import Compute, load
from pipelines.run import Report, run
from storage.fs import Location
from storage.upkeep import orphans
from storage.verify import verify
from storage.writer import Receipt
from tests.fixtures import write_safetensors

OPERATORS = ["read", "hilbert_map", "quantize", "layerize", "frame_encode", "write"]


@dataclass(frozen=True)
class Seen:
    """A run that was watched. events: what it said with ``--json``."""

    root: Path
    report: Report
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Seen:
    folder = tmp_path_factory.mktemp("observed")
    values = (np.random.default_rng(0).standard_normal((600, 256)) * 0.05).astype(np.float32)
    write_safetensors(folder / "m.safetensors", {"layer.0.mlp.weight": ("F32", values.shape, values.tobytes())})
    recipe = load("quickstart-model", [
        f"source.path={folder}/m.safetensors", f"sink.path={folder}/root", "sink.name=watched",
        "compute.planes_per_unit=16", "operators.1.side=32", "operators.1.layout=hilbert", "operators.4.coder=rans",
    ])  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as said:
        report = run(recipe, json_log=True)
    return Seen(folder / "root", report, [json.loads(line) for line in said.getvalue().splitlines()])


def test_every_event_names_the_job_and_a_unit_its_operators(seen: Seen) -> None:
    kinds = [event["event"] for event in seen.events]
    assert kinds == ["start", *["unit"] * seen.report.written, "archived"] and seen.report.written >= 9
    for event in seen.events:
        assert event["job"] == seen.report.job and event["archive"] == "watched" and event["time"].endswith("+00:00")
    units = [event for event in seen.events if event["event"] == "unit"]
    assert sorted(event["unit"] for event in units) == list(range(len(units)))
    for event in units:
        assert sorted(event["operators"]) == sorted(OPERATORS) and sum(event["operators"].values()) > 0


def test_the_page_lies_beside_the_archive_and_belongs_to_none(seen: Seen) -> None:
    page = Path(seen.report.page)
    assert page.parent == seen.root / "runs" / "models" / "watched"
    text = page.read_text()
    assert [name for name in OPERATORS if f"</span>{name}</div>" in text] == OPERATORS
    assert f">{seen.report.written}</dd>" in text and "at most" in text and "level0" in text
    place = Location(seen.report.url)
    assert verify(place).sound and orphans(place, (), 0) == []
    again = run(seen.report.plan.recipe)
    assert again.page == "" and [path.name for path in page.parent.iterdir()] == [page.name]


def test_prometheus_scrapes_every_operator(seen: Seen) -> None:
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {(name, kind) for name in run_metrics.COUNTED for kind in OPERATORS}
    wanted -= {("hilbertflow_operator_bytes_in", "read")}
    units = {("hilbertflow_operator_units", kind): float(seen.report.written) for kind in OPERATORS}
    found: dict[tuple[str, str], float] = {}
    gauges: set[str] = set()
    text, end = "", time.monotonic() + 45  # Ray's workers tell their agent every ten seconds, each by its own clock
    while time.monotonic() < end and not (
        wanted <= found.keys() and units.items() <= found.items() and len(gauges) == 2
    ):
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for name, labels, value in re.findall(r"^ray_(hilbertflow_operator_\w+?)_total\{(.*)\} (\S+)$", text, re.M):
            told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if told["archive"] == "watched":
                found[name, told["operator"]] = found.get((name, told["operator"]), 0) + float(value)
        gauges = {gauge for gauge in (run_metrics.IN_FLIGHT, run_metrics.QUEUE)
                  if re.search(rf'^ray_{gauge}\{{.*archive="watched".*\}} 0\.0$', text, re.M)}  # fmt: skip
    assert wanted <= found.keys()
    assert {key: found[key] for key in units} == units
    assert gauges == {run_metrics.IN_FLIGHT, run_metrics.QUEUE}


@dataclass(frozen=True)
class Numbers:
    """A source of four small units."""

    units: int = 4
    unit_bytes: int = 100

    def read(self, unit: int) -> pa.Table:
        return pa.table({"unit": [unit]})


@dataclass(frozen=True)
class Refuses(Operator):
    """Takes every unit but one."""

    kind: Literal["refuses"] = "refuses"
    over: ClassVar[Over] = "planes"

    def apply(self, batch: pa.Table) -> pa.Table:
        if batch.column("unit")[0].as_py() == 2:
            raise HilbertflowError("is not to my taste", where="unit 2")
        return batch


@dataclass(frozen=True)
class Nowhere:
    """A writer that keeps nothing."""

    folder: str = ""

    def write(self, table: pa.Table) -> Receipt:
        return Receipt(table.column("unit")[0].as_py(), [], {}, 8)

    def written(self) -> set[int]:
        return set()


def test_a_failure_names_operator_and_unit(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.graph import execute

    step = Pass("archive", Numbers(), (Refuses(),), Nowhere())
    with pytest.raises(Exception, match="not to my taste"), Reporter("picky", True) as reporter:
        reporter.begin("archive", 4, 0)
        execute(step, Compute(actors=1), Pending.all(4), reporter.tally, archive="picky")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert failed and {(e["operator"], e["unit"], e["archive"]) for e in failed} == {("refuses", 2, "picky")}
    assert "not to my taste" in failed[0]["error"] and failed[0]["job"] and re.search(r":\d+$", failed[0]["worker"])
