"""Time what a worker does to a unit, and tell it: to Ray's metrics, and to the tally of the run."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray

from operators.errors import HilbertflowError
from pipelines.ledger import Span


@lru_cache(maxsize=1)
def worker() -> str:
    """This process among those of the cluster."""
    return f"{ray.util.get_node_ip_address()}:{os.getpid()}"


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
            self.tally.failed.remote(self.step, kind, unit, said[:500], worker())
            raise
        seconds = time.perf_counter() - clock
        spans.append(Span(kind, unit, began, seconds, amounts.bytes_in, amounts.bytes_out, worker()))
        run_metrics.ended(self.archive, spans[-1])

    def tell(self, spans: list[Span]) -> None:
        """Hand spans to the tally, with the memory that this process has taken; the list is empty afterwards."""
        if self.tally is not None and spans:
            self.tally.spans.remote(self.step, tuple(spans), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            spans.clear()

    def written(self, unit: int, source_bytes: int, archive_bytes: int) -> None:
        """A unit is written and journalled."""
        if self.tally is not None:
            self.tally.done.remote(self.step, unit, time.time(), source_bytes, archive_bytes)
