"""What a run holds does not grow with its length: a slow stage holds its producer back, and no process grows."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from operators.operator import Operator, Over
from pipelines.bench.memory import write_checkpoint
from pipelines.flow_limits import LEAST_IN_FLIGHT, LEAST_OBJECT_STORE, in_flight, object_store
from pipelines.graph import execute
from pipelines.pending import Pending
from pipelines.plan import Pass
from pipelines.recipe import Compute, load
from pipelines.run import run
from storage.writer import Receipt

UNIT_BYTES, UNITS = 4_000_000, 96
SLOW_S = 0.03
pytestmark = pytest.mark.usefixtures("ray_session")


def a_pass(ledger: Path, slow: str) -> Pass:
    """Units of random bytes, read at once, that a slow operator or a slow writer takes; each leaves a mark."""

    def mark(what: str, unit: int) -> None:
        (ledger / f"{what}-{unit}").touch()
        names = os.listdir(ledger)
        count = sum(n.startswith("read-") for n in names) - sum(n.startswith("written-") for n in names)
        (ledger / f"under way {count:03d}").touch()

    class Fast:
        units, unit_bytes = UNITS, UNIT_BYTES

        def read(self, unit: int) -> pa.Table:
            mark("read", unit)
            data = np.random.default_rng(unit).bytes(UNIT_BYTES)
            return pa.table({"unit": [unit], "bits": pa.array([data], pa.binary())})

    @dataclass(frozen=True)
    class Through(Operator):
        kind: str = "through"
        over: ClassVar[Over] = "planes"

        def apply(self, batch: pa.Table) -> pa.Table:
            time.sleep(SLOW_S * (slow == "operator"))
            return batch

    class Sink:
        folder = ""

        def write(self, table: pa.Table) -> Receipt:
            unit = table.column("unit")[0].as_py()
            time.sleep(SLOW_S * (slow == "writer"))
            mark("written", unit)
            return Receipt(unit, [], {}, UNIT_BYTES)

        def written(self) -> set[int]:
            return set()

    return Pass("slow", Fast(), (Through(),), Sink())


@pytest.mark.parametrize("slow", ["operator", "writer"])
def test_the_slowest_stage_sets_the_pace(slow: str, tmp_path: Path) -> None:
    compute = Compute(actors=1)
    execute(a_pass(tmp_path, slow), compute, Pending.all(UNITS))
    names = os.listdir(tmp_path)
    assert sum(name.startswith("written-") for name in names) == UNITS
    most = max(int(name.split()[-1]) for name in names if name.startswith("under way"))
    bound = in_flight(compute, UNIT_BYTES, cores=2)
    assert bound < UNITS * UNIT_BYTES / 4
    assert most * UNIT_BYTES <= bound + 2 * UNIT_BYTES, f"{most} units of {UNITS} were under way"
    assert most >= 2  # and it does read ahead


def test_a_run_twenty_times_as_long_takes_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for size in (2, 40):
        write_checkpoint(tmp_path / f"{size}", size * 1_048_576, rows=512)
        report = run(load("quickstart-model", [
            f"source.path={tmp_path}/{size}", f"sink.path={tmp_path}/root", f"sink.name=m{size}",
            "operators.1.layout=raster", "operators.2.method=uniform", "operators.4.coder=rans",
            "compute.planes_per_unit=8", "compute.actors=1",
        ]))  # fmt: skip
        assert report.written == size
        peaks.append(max(report.peak_memory.values()))
        assert peaks[-1] <= report.plan.recipe.compute.memory
    print(f"{peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB")
    assert peaks[1] <= 1.1 * peaks[0]


def test_what_may_be_in_flight_grows_with_the_cores_and_stays_within_the_memory_of_the_workers() -> None:
    assert in_flight(Compute(), 1000, cores=2) == LEAST_IN_FLIGHT
    assert in_flight(Compute(), 30_000_000, cores=4) == 4 * 6 * 30_000_000
    assert in_flight(Compute(memory=100_000_000, actors=2), 30_000_000, cores=4) == 200_000_000
    assert in_flight(Compute(memory=1_000_000, actors=1), 30_000_000, cores=4) == 3 * 30_000_000  # else nothing moves
    assert object_store(Compute(), 1000, cores=2) == LEAST_OBJECT_STORE
