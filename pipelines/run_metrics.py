"""Metrics of operators, through ``ray.util.metrics``: Ray's agent on each machine gives them to Prometheus.

Ray puts ``ray_`` before the names, and its own labels (node, worker) beside ours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ray.util.metrics import Counter, Gauge

from pipelines.ledger import Span

COUNTED = {
    "hilbertflow_operator_units": "Units that went through an operator",
    "hilbertflow_operator_seconds": "Time that workers spent in an operator",
    "hilbertflow_operator_bytes_in": "Bytes that an operator took",
    "hilbertflow_operator_bytes_out": "Bytes that an operator gave",
}
IN_FLIGHT = "hilbertflow_operator_in_flight"
QUEUE = "hilbertflow_queue_units"
NAMES = (*COUNTED, IN_FLIGHT, QUEUE)
_BY_OPERATOR = ("archive", "operator")


@lru_cache(maxsize=1)
def _operators() -> dict[str, Any]:
    """Those of this process; Ray keeps one of each name a process."""
    made: dict[str, Any] = {name: Counter(name, said, _BY_OPERATOR) for name, said in COUNTED.items()}
    return made | {IN_FLIGHT: Gauge(IN_FLIGHT, "Units that an operator is at work on", _BY_OPERATOR)}


@lru_cache(maxsize=1)
def _queue() -> Gauge:
    return Gauge(QUEUE, "Units in front of a stage, those in its first operator included", ("archive", "stage"))


def begins(archive: str, operator: str) -> None:
    """An operator of this process takes a unit up."""
    _operators()[IN_FLIGHT].set(1, {"archive": archive, "operator": operator})


def stopped(archive: str, operator: str) -> None:
    """It gives it up."""
    _operators()[IN_FLIGHT].set(0, {"archive": archive, "operator": operator})


def ended(archive: str, span: Span) -> None:
    """It is through with it."""
    stopped(archive, span.operator)
    metrics, tags = _operators(), {"archive": archive, "operator": span.operator}
    amounts = (1.0, span.seconds, float(span.bytes_in), float(span.bytes_out))
    for name, amount in zip(COUNTED, amounts, strict=True):
        if amount > 0:  # Ray's counters refuse to be moved by nothing
            metrics[name].inc(amount, tags)


def waiting(archive: str, stage: str, units: int) -> None:
    """So many units wait in front of a stage, named by its first operator."""
    _queue().set(units, {"archive": archive, "stage": stage})
