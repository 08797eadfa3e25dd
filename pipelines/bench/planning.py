"""Plan a run of ten million units, in a process of its own: ``python -m pipelines.bench.planning UNITS DONE``.

The source is simulated, since no disk here holds one; what the driver does with it is the product's: which units are
missing, the read tasks, and their pickled bytes, which is what goes to the cluster. DONE says what an earlier run
wrote: ``none``, ``half`` (the first half) or ``scattered`` (every other unit, the worst there is).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass

import pyarrow as pa
from ray import cloudpickle

from pipelines.pending import Pending
from pipelines.ray_io import UnitSource

CORES = 256
"""Of the cluster that is planned for."""


@dataclass(frozen=True)
class Simulated:
    """A source of so many units; nobody reads them."""

    units: int
    unit_bytes: int = 50 << 20

    def read(self, unit: int) -> pa.Table:
        """One row, its number."""
        return pa.table({"unit": [unit]})


def done_before(units: int, how: str) -> set[int]:
    """Units that are journalled."""
    return set({"none": range(0), "half": range(units // 2), "scattered": range(0, units, 2)}[how])


def main(units: int, how: str) -> dict[str, float]:
    """Seconds, megabytes of memory that were taken for it, and what was planned."""
    source, done = Simulated(units), done_before(units, how)
    given = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    pending = Pending.missing(source.units, done)
    reader = UnitSource(source, pending)
    tasks = reader.get_read_tasks(UnitSource.tasks(pending, CORES))
    sent = sum(len(cloudpickle.dumps(task)) for task in tasks)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned = len(pending)
    assert planned == units - len(done)
    return {"seconds": seconds, "peak_mb": peak * 1024 / 1e6, "given_mb": given * 1024 / 1e6, "tasks": len(tasks),
            "sent_mb": sent / 1e6, "planned": planned}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2])))
