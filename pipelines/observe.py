"""Time what a worker does to a unit, and tell it: to Ray's metrics, and to the tally of the run.

A call of an actor takes two milliseconds of a core, half of them on either side: what a process has to say of a unit
waits until the unit is written, and goes in one.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import ray

from operators.errors import HilbertflowError
from pipelines.ledger import Span
from storage import s3_meter


@lru_cache(maxsize=1)
def worker() -> str:
    """This process among those of the cluster."""
    return f"{ray.util.get_node_ip_address()}:{os.getpid()}"


_NOTHING = s3_meter.Used()


class _Meter:
    """What blocks of this process asked of S3, which may overlap in time: no request counts twice."""

    def __init__(self) -> None:
        self._lock, self._under_way, self._told = Lock(), 0, s3_meter.Used()

    def begin(self, url: str) -> None:
        with self._lock:
            s3_meter.watch(url)
            if not self._under_way:
                self._told = s3_meter.used()
            self._under_way += 1

    def end(self) -> s3_meter.Used:
        with self._lock:
            now = s3_meter.used()
            more, self._told = now - self._told, now
            self._under_way -= 1
            return more


class _Outbox:
    """What this process has not told yet, by tally and pass: its calls read and write units of a pass together."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[tuple[Any, str], tuple[tuple[Span, ...], s3_meter.Used]] = {}

    def put(self, whose: tuple[Any, str], spans: Iterable[Span] = (), used: s3_meter.Used = _NOTHING) -> None:
        with self._lock:
            before, asked = self._held.get(whose, ((), _NOTHING))
            self._held[whose] = (*before, *spans), asked + used

    def take(self, whose: tuple[Any, str]) -> tuple[tuple[Span, ...], s3_meter.Used]:
        with self._lock:
            return self._held.pop(whose, ((), _NOTHING))


_meter, _outbox = _Meter(), _Outbox()


@dataclass
class Amounts:
    """What goes in and comes out, to be set by who is timed."""

    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True)
class Observer:
    """Watches the work of a pass.

    Parameters
    ----------
    archive, step: names of the archive and of the pass.
    tally: an actor handle that takes spans and failures; may be None, as in a repair: then nothing is told.
    """

    archive: str = ""
    step: str = ""
    tally: Any = None

    @contextmanager
    def operator(self, kind: str, unit: int, spans: list[Span]) -> Iterator[Amounts]:
        """Time a block; the span is appended to ``spans`` and counted. A failure is told with its unit and operator."""
        amounts = Amounts()
        if self.tally is None:
            yield amounts
            return
        from pipelines import run_metrics

        run_metrics.begins(self.archive, kind)
        began, clock = time.time(), time.perf_counter()
        try:
            yield amounts
        except Exception as error:
            run_metrics.stopped(self.archive, kind)
            said = str(error) if isinstance(error, HilbertflowError) else f"{type(error).__name__}: {error}"
            self.flush()
            self.tally.failed.remote(self.step, kind, unit, said[:500], worker())
            raise
        seconds = time.perf_counter() - clock
        spans.append(Span(kind, unit, began, seconds, amounts.bytes_in, amounts.bytes_out, worker()))
        run_metrics.ended(self.archive, spans[-1])

    @contextmanager
    def counted(self, url: str) -> Iterator[None]:
        """Count what the block asks of S3; ``url`` is the source's. Of blocks at once each request is told by one."""
        if self.tally is None:
            yield
            return
        _meter.begin(url)
        failed = True
        try:
            yield
            failed = False
        finally:
            used = _meter.end()
            if used.total or used.read:  # an answer may come after its request was counted by another block
                _outbox.put((self.tally, self.step), used=used)
            if failed:  # nothing may be told after it
                self.flush()

    def keep(self, spans: list[Span]) -> None:
        """Have spans told with what this process says next; the list is empty afterwards."""
        if self.tally is not None:
            _outbox.put((self.tally, self.step), spans)
        spans.clear()

    def tell(self, spans: list[Span]) -> None:
        """Hand spans to the tally, and what was kept; the list is empty afterwards."""
        self.keep(spans)
        self.flush()

    def written(self, spans: list[Span], unit: int, source_bytes: int, archive_bytes: int) -> None:
        """A unit is written and journalled: tell it with its spans, and what was kept."""
        self.keep(spans)
        self._send((unit, time.time(), source_bytes, archive_bytes))

    def flush(self) -> None:
        """Tell what was kept, if anything was."""
        self._send(None)

    def _send(self, done: tuple[int, float, int, int] | None) -> None:
        if self.tally is None:
            return
        spans, used = _outbox.take((self.tally, self.step))
        if spans or used != _NOTHING or done is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self.tally.told.remote(self.step, spans, peak, used, done)
