"""Our sources and archives as Ray sees them: what read tasks give and a data sink takes makes the archive of a run."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import save

from pipelines.compile import make_plan
from pipelines.pending import Pending
from pipelines.ray_io import ArchiveSink, UnitSource
from pipelines.recipe import load
from pipelines.run import run_here
from storage.fs import Location
from storage.spec import open_for_writing
from storage.writer import clear, finish
from tests.archived_model import small_tensors


def objects(root: Path) -> dict[str, bytes]:
    place = root / "models" / "m"
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_sink_writes_what_a_run_writes(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    source.write_bytes(save(small_tensors()))

    def settings(root: str) -> list[str]:
        return [f"source.path={source}", f"sink.path={tmp_path / root}", "sink.name=m", "operators.1.side=64",
                "operators.1.layout=hilbert", "operators.2.states=4", "operators.4.coder=rans",
                "compute.planes_per_unit=2"]  # fmt: skip

    run_here(load("quickstart-model", settings("run")))
    plan = make_plan(load("quickstart-model", settings("sink")))
    open_for_writing(plan.spec)
    step, pending = plan.last, Pending.all(plan.last.source.units)
    tables = [table for task in UnitSource(step.source, pending).get_read_tasks(3) for table in task()]
    for operator in step.operators:
        tables = [operator.apply(table) for table in tables]
    assert ArchiveSink(step.writer).write(tables[:2], None) == 2
    assert ArchiveSink(step.writer).write(tables[2:], None) == len(tables) - 2
    finish(plan.spec, plan.extra)
    clear(Location(plan.spec.url))
    made, expected = objects(tmp_path / "sink"), objects(tmp_path / "run")
    assert made.keys() == expected.keys()
    assert all(made[key] == expected[key] for key in expected if key != "manifest.json")
