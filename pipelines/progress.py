"""Tell the user how a run goes: a bar with units, MB/s and time left, or one JSON event a line."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
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

from pipelines import console
from pipelines.ledger import Ledger
from pipelines.tally import Failure, Tally, Watched, Written

POLL_S = 0.5


def job_id() -> str:
    """Id of this run among Ray's jobs: the one it was submitted under, else the driver's own."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return str(told.get("metadata", {}).get("job_submission_id") or ray.get_runtime_context().get_job_id())


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
        self.job, self.started = job_id(), time.time()
        self.watched = Watched(Ledger(self.started))
        self.tally = Tally.remote(name, self.started)  # type: ignore[attr-defined]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = self._step_began = time.monotonic()
        self.seconds = 0.0
        shown = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("units"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=shown, disable=json_log, auto_refresh=shown.is_terminal, refresh_per_second=4,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._lock = threading.Lock()

    def begin(self, step: str, units: int, done: int) -> None:
        """The next pass, its units, and how many of them an earlier run wrote."""
        if self._task is not None:
            with suppress(RayActorError):
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
            try:
                self._poll()
                self.watched = ray.get(self.tally.watched.remote(), timeout=30)
            except RayActorError:  # the tally is dead for good: what it saw is lost, of the archive nothing
                self.watched = replace(self.watched, whole=False)
        else:
            with suppress(RayError, RuntimeError):  # what failed is told, if Ray still answers
                self._poll(5)
        self._bar.stop()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._poll()
            except GetTimeoutError:  # a busy cluster: the next look will tell
                continue
            except RayError:  # the cluster is gone: the run itself will say so
                return

    def _poll(self, timeout: float = 30) -> None:
        with self._lock:
            fresh = ray.get(self.tally.take.remote(), timeout=timeout)
            for unit in fresh.written:
                self._written(unit)
            for failure in fresh.failures:
                self._failed(failure)

    def _written(self, unit: Written) -> None:
        self.done += 1
        self.source_bytes += unit.source_bytes
        self.archive_bytes += unit.archive_bytes
        rate = self.source_bytes / 1e6 / max(time.monotonic() - self._step_began, 1e-9)
        self._event(
            "unit", unit=unit.unit, done=self.done, units=self.units, source_bytes=unit.source_bytes,
            archive_bytes=unit.archive_bytes, mb_per_s=round(rate, 2),
            operators={kind: round(seconds, 4) for kind, seconds in unit.operators.items()},
            workers=unit.workers,
        )  # fmt: skip
        if self._task is not None:
            told = f"{rate:6.1f} MB/s" if unit.source_bytes else ""
            self._bar.update(self._task, completed=self.done, rate=told)

    def _failed(self, failure: Failure) -> None:
        self._event("failed", unit=failure.unit, operator=failure.operator, error=failure.error, worker=failure.worker)

    def _event(self, event: str, **fields: Any) -> None:
        if self.json_log:
            emit(event, job=self.job, archive=self.name, step=self.step, **fields)


def emit(event: str, **fields: Any) -> None:
    """One JSON event on a line of standard output, with the time."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    console.print_json({"event": event, "time": at, **fields})
