"""``bench pipeline``: what streaming costs beside the operators, two workers against one, planning of many units."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from statistics import median
from time import perf_counter

from pipelines.bench import kernels
from pipelines.bench.memory import write_checkpoint
from pipelines.bench.processes import held_to, taken
from pipelines.bench.report import Table
from pipelines.bench.s3_server import WEED, server
from pipelines.compile import make_plan
from pipelines.pending import Pending
from pipelines.recipe import load
from pipelines.run import Report, here, local_ray
from pipelines.run import run as run_recipe
from storage.fs import Location
from storage.spec import open_for_writing

RECIPE = "quickstart-model"
SHARE, SPEED_UP, PLAN_S, PLAN_MB = 0.8, 1.8, 10.0, 1000.0
UNITS = 10_000_000
FIRST = 8
"""Units that are not timed: workers load kernels for them, as the process does that times the operators alone."""
_names = count()


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    megabytes: of the checkpoint whose throughput is measured, and of its part that one worker and two are compared on.
    timed: units that the operators are timed over.
    tiny: units of the overhead.
    runs, streams: by workers; of the throughput, on disk and on S3.
    """

    megabytes: int
    part: int
    timed: int
    tiny: int
    runs: int
    streams: int


SIZES = {False: Size(960, 240, 12, 1500, 5, 3), True: Size(48, 48, 3, 300, 3, 1)}


def run(quick: bool) -> Iterator[Table]:
    """Tables as they come; ``quick`` takes a smaller checkpoint and three runs of each kind."""
    size = SIZES[quick]
    yield planning(UNITS)
    with tempfile.TemporaryDirectory() as name, server(_made(Path(name, "s3")), "bench"), local_ray(None):
        folder = Path(name)
        write_checkpoint(folder / "source", size.megabytes * 1_000_000)
        source = [f"source.path={folder}/source", "operators.1.layout=hilbert", "operators.4.coder=rans",
                  "compute.planes_per_unit=32"]  # fmt: skip
        _stream(source, str(folder / "warm"), 2)  # compiles, and starts Ray's workers
        yield throughput(size, source, folder)
        yield workers(size, [*source, f"operators.0.max_params={size.part * 500_000}"], folder)
        yield overhead(size, folder)


def throughput(size: Size, source: list[str], folder: Path) -> Table:
    """Bytes a second of whole runs beside what the operators' single-thread times allow, on disk and on S3."""
    cores = os.cpu_count() or 1
    place = Location("s3://bench/source")
    for path in (folder / "source").iterdir():
        place.write_atomic(path.name, path.read_bytes())
    remote = ["source.path=s3://bench/source", *source[1:]]
    found: dict[str, list[tuple[float, float, float, float, float]]] = {}
    spent: dict[str, dict[str, float]] = {}
    for _ in range(size.streams):
        for where, settings, root in (("disk", source, str(folder / "root")), ("S3", remote, "s3://bench/root")):
            timed = [*source, f"sink.path={folder}/none"]
            alone = kernels.measure(RECIPE, size.timed, timed)
            together = [kernels.result(one) for one in [kernels.start(RECIPE, size.timed, timed) for _ in range(cores)]]
            served = taken(WEED.name)
            report = _stream(settings, root, cores)
            assert report.manifest is not None and report.seen is not None
            served = (taken(WEED.name) - served) / report.written  # a unit
            whole = report.manifest.source_bytes / report.seconds
            steady = report.manifest.source_bytes / report.written / _steady(report)
            found.setdefault(where, []).append(
                (alone.allow(cores), sum(one.allow(1) for one in together), steady, whole, served / _steady(report))
            )
            spent[where] = {kind: total.seconds for (_, kind), total in report.seen.watched.ledger.totals.items()}
    rows, notes = [], []
    for where, runs in found.items():
        allowed, at_once, steady, whole = (median(column) / 1e6 for column in list(zip(*runs, strict=True))[:4])
        share, of_both = (median(run[2] / run[k] for run in runs) for k in (0, 1))
        left = median(run[2] / (run[0] * (1 - run[4] / cores)) for run in runs)
        rows.append((where, f"{allowed:.1f}", f"{at_once:.1f}", f"{steady:.1f}", f"{whole:.1f}", f"{share:.3f}",
                     f"{of_both:.3f}", f"{left:.3f}", "met" if share >= SHARE else "missed"))  # fmt: skip
        told = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in spent[where].items())
        notes.append(f"{where}: seconds of work in the last run, in the pipeline: {told}")
    notes.append(
        f"medians of {size.streams} runs, interleaved with timings of {size.timed} units; steady: after the first"
        f" {FIRST} units, which load kernels; share: steady, of {cores} × one thread, target {SHARE}; at once: as many"
        " processes of operators alone as there are cores; of what is left: of the cores without what S3's server took"
        " of them, which is another machine's elsewhere"
    )
    return Table(
        f"pipeline: {size.megabytes} MB of bfloat16 through {RECIPE} on {cores} cores, MB/s of source",
        ("where", f"{cores} × one thread alone", "at once", "steady", "with the start", "share",
         "of at once", "of what is left", "target"), tuple(rows), tuple(notes),
    )  # fmt: skip


def workers(size: Size, source: list[str], folder: Path) -> Table:
    """Units a second with one worker of the stage and with two; the machine's own scaling beside it.

    A worker reads and writes beside its coding, so that one alone takes more than a core where there are two. How much
    a second worker with its core brings is told by the run in which the first has one core, too, with all of Ray.
    """
    every = sorted(os.sched_getaffinity(0))
    ways = {"1, all on one core": (1, {every[0]}), "1": (1, set(every)), "2": (2, set(every))}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    own = []
    for _ in range(size.runs):
        for name, (actors, cores) in ways.items():
            with held_to(cores):
                rates[name].append(1 / _steady(_stream(source, str(folder / "root"), actors)))
        own.append(_scaling(size, [*source, f"sink.path={folder}/none"]))
    rows = [(name, f"{median(found):.2f}", f"{min(found):.2f} to {max(found):.2f}") for name, found in rates.items()]
    notes = []
    for name, said in (
        ("1, all on one core", "2 on two cores against 1 on one"),
        ("1", "2 against 1, both on two cores"),
    ):
        ratio = median(rates["2"]) / median(rates[name])
        notes.append(f"{said}: {ratio:.2f} x, target {SPEED_UP}: {'met' if ratio >= SPEED_UP else 'missed'}")
    return Table(
        "pipeline: units a second by workers, steady", ("workers", "units/s, median", "all runs"),
        tuple(rows),
        (*notes, f"two processes of operators alone: {median(own):.2f} x one, median of {len(own)}"),
    )  # fmt: skip


def overhead(size: Size, folder: Path) -> Table:
    """Milliseconds a unit beyond the work on it, with units of one small plane, once the workers are there."""
    cores = os.cpu_count() or 1
    write_checkpoint(folder / "tiny", 8_388_608 * -(-size.tiny // 4096))
    settings = [f"source.path={folder}/tiny", "compute.planes_per_unit=1", "operators.1.side=32",
                "operators.1.layout=hilbert", "operators.4.coder=rans",
                f"operators.0.max_params={size.tiny * 1024}"]  # fmt: skip
    report = _stream(settings, str(folder / "root"), cores)
    steady = _steady(report)
    plan = make_plan(load(RECIPE, [*settings, f"sink.path={folder}/alone"]))
    open_for_writing(plan.spec)
    units = Pending.all(plan.source.units)
    here(plan.last, units.part(0, FIRST))
    began = perf_counter()
    here(plan.last, units.part(FIRST, len(units)))
    work = (perf_counter() - began) / (len(units) - FIRST)
    rows = [("wall clock, steady", f"{1e3 * steady:.2f}"),
            ("read, coded and written in one process without Ray", f"{1e3 * work:.2f}"),
            (f"overhead: {cores} cores × wall clock − that", f"{1e3 * (cores * steady - work):.2f}")]  # fmt: skip
    return Table(
        f"pipeline: scheduling, {report.written} units of one plane of 32²", ("a unit", "ms"), tuple(rows),
        ("the start of workers and their first units are left out; a unit is 4 to 8 MB otherwise",),
    )  # fmt: skip


def planning(units: int) -> Table:
    """Seconds and memory of the driver for a simulated source of so many units."""
    rows, slowest, most = [], 0.0, 0.0
    for how, said in (
        ("none", "a new run"),
        ("half", "the first half is there"),
        ("scattered", "every other is there"),
    ):
        command = [sys.executable, "-m", "pipelines.bench.planning", str(units), how]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
        told = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        slowest, most = max(slowest, told["seconds"]), max(most, told["peak_mb"])
        rows.append((said, told["planned"], told["tasks"], f"{told['sent_mb']:.0f}", f"{told['seconds']:.2f}",
                     f"{told['peak_mb']:.0f}", f"{told['given_mb']:.0f}"))  # fmt: skip
    return Table(
        f"pipeline: planning {units:,} units of a simulated source",
        ("run", "units planned", "read tasks", "MB of tasks", "seconds", "driver MB", "MB before it"), tuple(rows),
        (f"slowest {slowest:.1f} s of {PLAN_S:.0f}: {'met' if slowest < PLAN_S else 'missed'}",
         f"driver {most:.0f} MB of {PLAN_MB:.0f}: {'met' if most < PLAN_MB else 'missed'}; before it: what is imported,"
         " and the numbers of units that are there"),
    )  # fmt: skip


def _stream(settings: list[str], root: str, actors: int) -> Report:
    """One run into an archive of its own, which is removed again."""
    name = f"n{next(_names)}"
    made = load(RECIPE, [*settings, f"sink.path={root}", f"sink.name={name}", f"compute.actors={actors}"])
    report = run_recipe(made, json_log=False)
    Location(root).delete(recursive=True)
    gc.collect()  # with what is left of the run its actor goes, which would take its part of a core while others run
    return report


def _steady(report: Report) -> float:
    """Seconds a unit, from the :data:`FIRST` that are written to the last: the start of workers is no part of it."""
    assert report.seen is not None
    written = report.seen.watched.ledger.written
    shares = [amount * report.written / sum(written.amounts) for amount in written.amounts]  # units, slot by slot
    slots = [at for at, done in enumerate(accumulate(shares)) if done >= min(FIRST, report.written / 2)]
    last = max(at for at, share in enumerate(shares) if share)
    return (last - slots[0]) * written.slot / sum(shares[slots[0] + 1 :])


def _scaling(size: Size, settings: list[str]) -> float:
    """Units a second of two processes at once over those of one."""
    alone = kernels.measure(RECIPE, size.timed, settings).a_unit
    both = [kernels.start(RECIPE, size.timed, settings) for _ in range(2)]
    return sum(alone / kernels.result(process).a_unit for process in both)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
