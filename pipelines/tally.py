"""The actor that workers tell what they did; the driver asks it now and then. Its memory does not grow with the run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import pairwise

import ray

from pipelines import run_metrics
from pipelines.ledger import Ledger, Span
from storage.s3_meter import Used

FAILURES = 20


@dataclass(frozen=True)
class Written:
    """A unit that is written and journalled. operators: seconds it took in each; workers: who did it, in turn."""

    step: str
    unit: int
    source_bytes: int
    archive_bytes: int
    operators: dict[str, float]
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """An operator that raised over a unit, and what it said."""

    step: str
    operator: str
    unit: int
    error: str
    worker: str


@dataclass(frozen=True)
class Fresh:
    """What came since the driver last asked."""

    written: list[Written] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Watched:
    """All that was seen of a run.

    Parameters
    ----------
    ledger: of its operators.
    peaks: bytes of the largest worker of each stage, resident, shared memory included, by its first operator.
    s3: what its workers asked of S3.
    whole: False where what was seen first is lost.
    flows: operators by stage, by pass, in the order of the stream; ``read`` and ``write`` stand at its ends.
    """

    ledger: Ledger
    peaks: dict[str, int] = field(default_factory=dict)
    s3: Used = field(default_factory=Used)
    flows: dict[str, list[list[str]]] = field(default_factory=dict)
    whole: bool = True


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tally:
    """Collects what workers tell of the run of one archive.

    No byte of the archive hangs on it: one that dies begins anew, and what it had been told is lost.
    """

    def __init__(self, archive: str, began: float) -> None:
        self.archive = archive
        self.ledger = Ledger(began)
        self.fresh = Fresh()
        self.peaks: dict[str, int] = {}
        self.s3 = Used()
        self.flows: dict[str, list[list[str]]] = {}
        with warnings.catch_warnings():  # Ray's own use of what it deprecates
            warnings.simplefilter("ignore")
            self.whole = not ray.get_runtime_context().was_current_actor_reconstructed

    def flow(self, step: str, stages: list[list[str]]) -> None:
        """A pass begins; its operators by stage."""
        self.flows[step] = stages

    def told(
        self, step: str, spans: tuple[Span, ...], peak: int, used: Used, done: tuple[int, float, int, int] | None
    ) -> None:
        """What a worker has to say since it last spoke.

        spans: of parts of its work on units; ``peak`` is the most bytes that its process has held. used: what it asked
        of S3. done: a unit that is written and journalled, when in seconds since 1970, its bytes in the source and in
        the archive.
        """
        self.s3 += used
        for span in spans:
            self.ledger.add(step, span)
        if spans:
            self._seen(step, spans, peak)
        if done is not None:
            self._done(step, *done)

    def _seen(self, step: str, spans: tuple[Span, ...], peak: int) -> None:
        """Keep the memory of a stage, under its first operator, and say how many units wait for others."""
        stages, told = self.flows.get(step, []), {span.operator for span in spans}
        own = [stage[0] for stage in stages[1:-1] if told & {*stage}]
        if not own:
            own = [stages[1][0] if "read" in told and len(stages) > 2 else spans[0].operator]  # who reads codes, too
        self.peaks[own[0]] = max(peak, self.peaks.get(own[0], 0))
        for before, after in pairwise(stages):
            if before[-1] in told or after[0] in told:
                run_metrics.waiting(self.archive, after[0], self.ledger.waiting(step, before[-1], after[0]))

    def _done(self, step: str, unit: int, at: float, source_bytes: int, archive_bytes: int) -> None:
        spans = self.ledger.done(step, unit, at, source_bytes)
        operators = {span.operator: span.seconds for span in spans}
        workers = tuple(dict.fromkeys(span.worker for span in spans))
        self.fresh.written.append(Written(step, unit, source_bytes, archive_bytes, operators, workers))

    def failed(self, step: str, operator: str, unit: int, error: str, worker: str) -> None:
        """An operator raised."""
        if len(self.fresh.failures) < FAILURES:
            self.fresh.failures.append(Failure(step, operator, unit, error, worker))

    def take(self) -> Fresh:
        """What came since the last call."""
        fresh, self.fresh = self.fresh, Fresh()
        return fresh

    def watched(self) -> Watched:
        """All of it."""
        return Watched(self.ledger, self.peaks, self.s3, self.flows, self.whole)
