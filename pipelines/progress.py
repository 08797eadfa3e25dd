"""Tell the user how a run goes: a bar with units, MB/s and time left, or one JSON event a line."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from storage.s3_meter import Used

POLL_S = 0.25


@ray.remote(num_cpus=0)
class Tally:
    """Collects what the sink's workers have written; the driver asks it now and then."""

    def __init__(self) -> None:
        self.fresh: list[tuple[int, int, int]] = []
        self.peaks: dict[str, int] = {}
        self.s3 = Used()

    def used(self, more: Used) -> None:
        """What a worker has asked of S3 since it last told."""
        self.s3 += more

    def used_in_all(self) -> Used:
        """What all of them have."""
        return self.s3

    def memory(self, stage: str, peak: int) -> None:
        """The most bytes that a worker of a stage has held resident, shared memory included."""
        self.peaks[stage] = max(peak, self.peaks.get(stage, 0))

    def memory_by_stage(self) -> dict[str, int]:
        """The largest worker of each stage."""
        return self.peaks

    def done(self, unit: int, source_bytes: int, archive_bytes: int) -> None:
        """A unit is written and journalled."""
        self.fresh.append((unit, source_bytes, archive_bytes))

    def take(self) -> list[tuple[int, int, int]]:
        """What was done since the last call."""
        fresh, self.fresh = self.fresh, []
        return fresh


class Reporter:
    """Context manager that shows a run's units as they are written.

    Parameters
    ----------
    name: of the archive.
    json_log: one JSON object a line on standard output instead of a bar on standard error.
    """

    def __init__(self, name: str, json_log: bool) -> None:
        self.name, self.json_log = name, json_log
        self.step, self.units, self.done, self.found = "", 0, 0, 0
        self.source_bytes = self.archive_bytes = 0
        self.peak_memory: dict[str, int] = {}
        self.s3 = Used()
        self.tally = Tally.remote()  # type: ignore[attr-defined]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = self._step_began = time.monotonic()
        self.seconds = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("units"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=Console(stderr=True), disable=json_log,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._lock = threading.Lock()

    def begin(self, step: str, units: int, done: int) -> None:
        """The next pass, its units, and how many of them an earlier run wrote."""
        if self._task is not None:
            self._poll()
        with self._lock:
            self.step, self.units, self.done, self.found = step, units, done, done
            self.source_bytes = self.archive_bytes = 0
            self._step_began = time.monotonic()
            title = self.name if step == "archive" else f"{self.name}: {step}"
            self._task = self._bar.add_task(title, total=units, completed=done, rate="")
        self._event("start", units=units, done=done)

    def __enter__(self) -> Reporter:
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._poll()
            self.peak_memory = ray.get(self.tally.memory_by_stage.remote(), timeout=30)
            self.s3 = ray.get(self.tally.used_in_all.remote(), timeout=30)
        self._bar.stop()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._poll()
            except GetTimeoutError:  # a busy cluster: the next look will tell
                continue
            except RayError:  # the cluster is gone: the run itself will say so
                return

    def _poll(self) -> None:
        with self._lock:
            for unit, source, archive in ray.get(self.tally.take.remote(), timeout=30):
                self.done += 1
                self.source_bytes += source
                self.archive_bytes += archive
                rate = self.source_bytes / 1e6 / max(time.monotonic() - self._step_began, 1e-9)
                self._event("unit", unit=unit, done=self.done, units=self.units, source_bytes=source,
                            archive_bytes=archive, mb_per_s=round(rate, 2))  # fmt: skip
                if self._task is not None:
                    told = f"{rate:6.1f} MB/s" if source else ""
                    self._bar.update(self._task, completed=self.done, rate=told)

    def _event(self, event: str, **fields: Any) -> None:
        if self.json_log:
            emit(event, archive=self.name, step=self.step, **fields)


def emit(event: str, **fields: Any) -> None:
    """One JSON event on a line of standard output."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
