"""What the operators of a recipe cost on one thread, without a pipeline: the bound that a pipeline is held against.

``python -m pipelines.bench.kernels RECIPE UNITS KEY=VALUE…`` is a process of its own, because numerical libraries read
how many threads they may take when they are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from operators.errors import HilbertflowError

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}


@dataclass(frozen=True)
class Kernels:
    """Seconds by operator over some units, and how many of the plan's units those are."""

    seconds: dict[str, float]
    timed: int
    units: int
    source_bytes: int

    @property
    def a_unit(self) -> float:
        """Seconds of one unit, all operators."""
        return sum(self.seconds.values()) / self.timed

    def allow(self, cores: int) -> float:
        """Source bytes a second that so many cores could do, if there was nothing but operators."""
        return cores * self.source_bytes / (self.a_unit * self.units)


def start(recipe: str, units: int, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    """Begin to time; :func:`result` waits for it."""
    command = [sys.executable, "-m", "pipelines.bench.kernels", recipe, str(units), *settings]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)) | ONE_THREAD
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def result(process: subprocess.Popen[bytes]) -> Kernels:
    """What a process timed."""
    said, _ = process.communicate()
    if process.returncode:
        raise HilbertflowError("the operators could not be timed", where="pipelines.bench.kernels")
    return Kernels(**json.loads(said))


def measure(recipe: str, units: int, settings: Sequence[str]) -> Kernels:
    """Time the operators over ``units`` units spread over the source; one before them compiles and is not counted."""
    return result(start(recipe, units, settings))


def _main(name: str, wanted: int, settings: Sequence[str]) -> Kernels:
    import pyarrow as pa

    from pipelines.compile import make_plan
    from pipelines.recipe import load
    from pipelines.stage import kinds

    pa.set_cpu_count(1)
    step = make_plan(load(name, list(settings))).last
    count = step.source.units
    chosen = [count * k // wanted for k in range(min(wanted, count))]
    taken: dict[str, float] = dict.fromkeys(kinds(step.operators), 0.0)
    for at, unit in enumerate([chosen[-1], *chosen]):
        batch = step.source.read(unit)
        for operator, kind in zip(step.operators, kinds(step.operators), strict=True):
            began = perf_counter()
            batch = operator.apply(batch)
            taken[kind] += (perf_counter() - began) if at else 0.0
    size = step.source.layout.nbytes  # type: ignore[attr-defined]
    return Kernels(taken, len(chosen), count, size)


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]).__dict__))
