"""`hilbertflow run` told to stop, by SIGTERM and by Ctrl-C: a line, its exit code, no process left, and it goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.recipe import load
from pipelines.run import run_here
from tests.faults.killing import Session

# Who runs tests in the background has SIGINT ignored, and processes inherit that.
MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.cli import main
main(sys.argv[1:])
"""


def settings(folder: Path) -> list[str]:
    """Several hundred units, streamed by one actor."""
    np.save(folder / "v.npy", np.random.default_rng(1).standard_normal((60_000, 16)).astype(np.float32))
    return [
        f"source.path={folder / 'v.npy'}", f"sink.path={folder / 'root'}", "compute.actors=1",
        "compute.rows_per_unit=128", "operators.0.order=source", "index=null",
    ]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "stopped"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_run_that_is_stopped(tmp_path: Path, number: int, code: int, said: str) -> None:
    """While it starts Ray, and while it streams."""
    chosen = settings(tmp_path)
    arguments = ["-c", MAIN, "run", "vectors", *(part for setting in chosen for part in ("--set", setting))]
    for phase in ("starting", "streaming"):
        log = tmp_path / f"{phase}.log"
        run = Session(arguments, log)
        try:
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline and run.wait(0.1) is None:
                begun = any("gcs_server" in name for name in run.processes().values())
                # units, not the lease
                if begun if phase == "starting" else len(list(tmp_path.rglob("journal/0*.json"))) > 3:
                    break
            os.kill(run.pid, number)
            assert run.wait(60) == code, log.read_text()[-2000:]
            *bar, last = log.read_text().splitlines()
            assert last == f"{said}; the same command goes on where it stopped"
            assert all(line.startswith("vectors ") for line in bar), bar  # how far it had come
            gone = time.monotonic() + 20
            while run.processes() and time.monotonic() < gone:
                time.sleep(0.1)
            assert not run.processes()
        finally:
            run.end()
    report = run_here(load("vectors", chosen))
    assert report.skipped > 3 and report.written > 0
