"""Compile a plan to a Ray Data graph: one stage of actors for neighbouring operators of equal resources."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from operators.embed import Embed
from operators.errors import HilbertflowError
from operators.operator import Operator, Resources
from pipelines.flow_limits import in_flight
from pipelines.ledger import Span
from pipelines.observe import Observer
from pipelines.pending import Pending
from pipelines.plan import Pass
from pipelines.ray_io import ArchiveSink, UnitSource
from pipelines.recipe import Compute

IO_CPUS = 0.25
"""What a read or a write asks for: they wait more than they work, and must not starve the coders."""


@dataclass(frozen=True)
class StageSpec:
    """Operators that run in one process, one after another, so that no plane is copied between them."""

    operators: tuple[Operator, ...]
    resources: Resources

    @property
    def name(self) -> str:
        """For logs and progress."""
        return " → ".join(kinds(self.operators))


def kinds(operators: tuple[Operator, ...]) -> list[str]:
    """What each is called."""
    return [o.kind for o in operators]  # type: ignore[attr-defined]


class Stage:
    """The actor of a stage; tells how long each operator took over a unit, and the most memory it has taken."""

    def __init__(self, operators: tuple[Operator, ...], observer: Observer) -> None:
        self.operators, self.observer = operators, observer
        self.kinds = kinds(operators)
        pa.set_cpu_count(1)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Apply the operators to whole units, one after another so that one unit's arrays are held at a time."""
        for unit in pc.unique(batch.column("unit")).to_pylist():
            table = batch.filter(pc.equal(batch.column("unit"), unit))
            spans: list[Span] = []
            for operator, kind in zip(self.operators, self.kinds, strict=True):
                with self.observer.operator(kind, unit, spans) as amounts:
                    amounts.bytes_in = table.nbytes
                    table = operator.apply(table)
                    amounts.bytes_out = table.nbytes
            self.observer.tell(spans)
            yield table


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

    Nothing is gathered: the driver sees receipts only, through the ``tally`` actor; what lies between the stages is
    bounded (:mod:`pipelines.flow_limits`), whatever the cluster's object stores hold. Blocks hold whole units, because
    Ray cuts a block only where one addition takes it from below its target to one and a half times that.
    """
    context = DataContext.get_current()
    context.target_max_block_size = int(2.5 * step.source.unit_bytes)
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its progress is ours to tell, and what it raises
    cores = int(ray.cluster_resources().get("CPU", 1))
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=in_flight(compute, step.source.unit_bytes, cores)
    )
    parts = stages(on_device(step.operators, compute.device, ray.cluster_resources().get("GPU", 0)))
    observer = Observer(archive, step.name, tally)
    if tally is not None:
        tally.flow.remote(step.name, [["read"], *(kinds(stage.operators) for stage in parts), ["write"]])
    data = ray.data.read_datasource(
        UnitSource(step.source, pending, observer, url), num_cpus=IO_CPUS, memory=compute.memory,
        override_num_blocks=UnitSource.tasks(pending, cores),
    )  # fmt: skip
    for stage in parts:
        actors = max(1, compute.actors or cores // max(1, round(stage.resources.cpus)))
        share = stage.resources.cpus if len(parts) == 1 else stage.resources.cpus / 2
        # All at once: waiting until the first is busy before the second begins would cost its start once more.
        pool = ActorPoolStrategy(min_size=1, max_size=actors, initial_size=max(1, min(actors, len(pending))))
        data = data.map_batches(
            Stage, fn_constructor_args=(stage.operators, observer), batch_size=None, batch_format="pyarrow",
            zero_copy_batch=True, compute=pool,
            num_cpus=max(0.1, share - IO_CPUS), num_gpus=stage.resources.gpus, memory=compute.memory,
        )  # fmt: skip
    data.write_datasink(ArchiveSink(step.writer, observer, url), ray_remote_args={"num_cpus": IO_CPUS})
