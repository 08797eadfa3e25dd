"""Compile a plan to a Ray Data graph: one stage of actors for neighbouring operators of equal resources."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from operators.embed import Embed
from operators.errors import HilbertflowError
from operators.operator import Operator, Resources
from pipelines.flow_limits import in_flight
from pipelines.observe import Observer
from pipelines.pending import Pending
from pipelines.plan import Pass
from pipelines.ray_io import UnitSource
from pipelines.recipe import Compute
from pipelines.stage import CALLS, Stage, kinds


@dataclass(frozen=True)
class StageSpec:
    """Operators that run in one process, one after another, so that no plane is copied between them."""

    operators: tuple[Operator, ...]
    resources: Resources

    @property
    def name(self) -> str:
        """For logs and progress."""
        return " → ".join(kinds(self.operators))


def stages(operators: tuple[Operator, ...]) -> tuple[StageSpec, ...]:
    """Fuse neighbours of equal resources; embedding keeps workers of its own."""
    grouped = groupby(operators, key=lambda o: (o.over == "texts", o.parallel()))
    return tuple(StageSpec(tuple(members), key[1]) for key, members in grouped)


def on_device(operators: tuple[Operator, ...], device: str, gpus: float) -> tuple[Operator, ...]:
    """The operators with the GPUs that ``device`` gives those that can use one: embedding.

    ``auto`` takes a GPU a worker where the cluster has any, ``cuda`` fails where it has none.
    """
    if device == "cuda" and not gpus:
        raise HilbertflowError("the cluster has no GPU", where="compute.device", remedy="use auto or cpu")
    wanted = {"auto": float(gpus >= 1), "cuda": 1.0, "cpu": 0.0}[device]
    return tuple(
        dataclasses.replace(o, gpus=o.gpus if o.gpus and wanted else wanted) if isinstance(o, Embed) else o
        for o in operators
    )


def execute(
    step: Pass, compute: Compute, pending: Pending, tally: Any = None, url: str = "", archive: str = ""
) -> None:
    """Stream the pending units of a pass through its stages to its writer.

    ``url`` is that of the run's source, ``archive`` a name for metrics.

    The first stage reads its units and the last writes them, so that nothing but numbers of units leaves a worker where
    there is one stage. Nothing is gathered: the driver sees receipts only, through the ``tally`` actor; what lies
    between stages is bounded (:mod:`pipelines.flow_limits`), whatever the cluster's object stores hold. Blocks hold
    whole units, because Ray cuts a block only where one addition takes it from below its target to one and a half times
    that.
    """
    context = DataContext.get_current()
    context.target_max_block_size = int(2.5 * step.source.unit_bytes)
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a thread a call, for a figure that nobody asks for
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its progress is ours to tell, and what it raises
    cores = int(ray.cluster_resources().get("CPU", 1))
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=in_flight(compute, step.source.unit_bytes, cores)
    )
    parts = stages(on_device(step.operators, compute.device, ray.cluster_resources().get("GPU", 0)))
    observer = Observer(archive, step.name, tally)
    if tally is not None:
        tally.flow.remote(step.name, [["read"], *(kinds(stage.operators) for stage in parts), ["write"]])
    done = step.writer.written if len(parts) == 1 else None
    tasks = UnitSource.tasks(pending, cores)
    data = None
    for stage in parts:
        actors = max(1, compute.actors or cores // max(1, round(stage.resources.cpus)))
        share = stage.resources.cpus / min(2, len(parts))
        asked = {"num_cpus": share, "num_gpus": stage.resources.gpus, "memory": compute.memory}
        if data is None:  # asks for what its stage asks for: so Ray reads in the stage's workers
            data = ray.data.read_datasource(
                UnitSource(step.source, pending, observer, url, done), override_num_blocks=tasks, **asked
            )
        # All at once, and none is let go: a worker takes seconds to start.
        least = max(1, min(actors, len(pending), int(cores / share)))
        pool = ActorPoolStrategy(
            min_size=least, max_size=actors, initial_size=least, max_tasks_in_flight_per_actor=CALLS,
            max_concurrent_calls_per_actor=CALLS, enable_true_multi_threading=True,
        )  # fmt: skip
        writer = step.writer if stage is parts[-1] else None
        data = data.map_batches(
            Stage, fn_constructor_args=(stage.operators, observer, writer, url), batch_size=None,
            batch_format="pyarrow", zero_copy_batch=True, compute=pool, **asked,
        )  # fmt: skip
    assert data is not None
    with warnings.catch_warnings():
        # a task that carries planes which planning has read is large on purpose
        warnings.filterwarnings("ignore", "The serialized size of your read function", UserWarning)
        for _ in data.iter_internal_ref_bundles():
            pass
