"""From a recipe to a plan: what is read, in which units, through which operators, into which arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from operators.errors import HilbertflowError
from operators.frame_encode import LEVEL_DTYPES, FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.operator import Operator
from operators.plane_index import ENTRIES
from operators.quantize import Quantize
from operators.sample import Sample, shares
from operators.vector_code import VectorQuantize
from pipelines.recipe import Recipe, recipe_hash
from pipelines.tune import Trials, tune
from storage.checkpoint import Checkpoint, open_checkpoint
from storage.fs import Location
from storage.layout import place
from storage.manifest import parquet_bytes
from storage.planes import PlaneUnits
from storage.safetensors_file import safetensors_metadata
from storage.spec import ArchiveSpec, ArraySpec
from storage.writer import ArchiveWriter, Receipt

_T = TypeVar("_T", bound=Operator)


class Units(Protocol):
    """A source cut into units."""

    @property
    def units(self) -> int:
        """How many there are."""

    @property
    def unit_bytes(self) -> int:
        """The most bytes one takes in the stream."""

    def read(self, unit: int) -> pa.Table:
        """The rows of one."""


class UnitWriter(Protocol):
    """What the units of a pass become."""

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit; twice gives the same bytes under the same keys."""

    def written(self) -> set[int]:
        """Units that are there."""


@dataclass(frozen=True)
class Pass:
    """One stream: the units of a source through operators to a writer.

    Parameters
    ----------
    name: for progress.
    """

    name: str
    source: Units
    operators: tuple[Operator, ...]
    writer: UnitWriter


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Parameters
    ----------
    source: the units.
    operators: those of the stream, in order, with every ``auto`` resolved.
    spec: the archive.
    extra: objects beside the arrays, such as the table of tensors.
    trials: what ``auto`` compared.
    sampled: kept and available parameters by kind, for a checkpoint.
    """

    recipe: Recipe
    source: Units
    operators: tuple[Operator, ...]
    spec: ArchiveSpec
    source_bytes: int
    extra: dict[str, bytes] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def last(self) -> Pass:
        """The pass that writes the archive."""
        return Pass("archive", self.source, self.operators, ArchiveWriter(self.spec))


def make_plan(recipe: Recipe) -> Plan:
    """Open the source, apply the operators on tables, resolve ``auto`` on sampled units, fix every array.

    The arrays of a collection are fixed later, by :func:`prepare`.
    """
    from pipelines.plan_rows import collection_plan

    return collection_plan(recipe) if recipe.collection else _model_plan(recipe)


def prepare(plan: Plan, carry_out: Callable[[Pass], None]) -> Plan:
    """The plan with its last pass settled, once the passes before it are carried out: a collection has some."""
    from pipelines.plan_rows import prepare_collection

    return prepare_collection(plan, carry_out) if plan.recipe.collection else plan


def _model_plan(recipe: Recipe) -> Plan:
    checkpoint = open_checkpoint(recipe.source.path)
    table = _tensor_table(checkpoint)
    for operator in recipe.operators:
        if operator.over == "tensors":
            table = operator.apply(table)
    if "keep" not in table.column_names:
        table = Sample().apply(table)
    layout = place(table, only(recipe, HilbertMap).side, recipe.compute.planes_per_unit)
    source, trials = PlaneUnits(checkpoint, layout), Trials()
    extra = {"tensors.parquet": parquet_bytes(layout.table())}
    if recipe.parent is not None:
        from pipelines.plan_child import child_parts

        source, stream, arrays, own = child_parts(recipe, source)
    elif any(isinstance(operator, VectorQuantize) for operator in recipe.operators):
        from pipelines.plan_vectors import vector_parts

        stream, arrays, own, codebook = vector_parts(recipe, source)
        extra |= codebook
    else:
        stream, arrays, own, trials = _scalar_parts(recipe, source)
    attributes = own | {
        "side": layout.side, "per_unit": layout.per_unit, "trials": trials.report, "config": dict(checkpoint.config),
        "metadata": _metadata(checkpoint),
    }  # fmt: skip
    spec = archive_spec(recipe, checkpoint.fingerprint, attributes, arrays, layout.units)
    return Plan(recipe, source, stream, spec, layout.nbytes, extra, trials, shares(table))


def _scalar_parts(
    recipe: Recipe, source: PlaneUnits
) -> tuple[tuple[Operator, ...], tuple[ArraySpec, ...], dict[str, Any], Trials]:
    stream, trials = tune(tuple(o for o in recipe.operators if o.over != "tensors"), source)
    layers, side, shard = only(recipe, Layerize), source.layout.side, source.layout.per_unit
    shape, word = (source.layout.planes, side, side), f"uint{8 * source.layout.word}"
    arrays = _arrays(stream, layers, shape, (1, side, side), shard, word)
    ladder = _ladder(only(recipe, Quantize), layers, only_of(stream, HilbertMap).layout)
    return stream, arrays, {"ladder": ladder}, trials


def archive_spec(
    recipe: Recipe, fingerprint: str, attributes: dict[str, Any], arrays: tuple[ArraySpec, ...], units: int
) -> ArchiveSpec:
    """What an archive of this recipe and source is; of another parent under the same path it is another one."""
    kind = "collection" if recipe.collection else "model"
    made_by = recipe_hash(recipe)
    if "parent" in attributes:
        made_by = hashlib.sha256(f"{made_by}:{attributes['parent']['identity']}".encode()).hexdigest()
    return ArchiveSpec(
        url=Location(recipe.sink.path).join(f"{kind}s", recipe.archive_name).url, kind=kind, name=recipe.archive_name,
        fingerprint=fingerprint, recipe_hash=made_by, recipe=_portable(recipe), attributes=attributes,
        arrays=arrays, units=units,
    )  # fmt: skip


def _arrays(
    stream: tuple[Operator, ...],
    layers: Layerize,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    shard: int,
    word: str,
) -> tuple[ArraySpec, ...]:
    encoder = only_of(stream, FrameEncode)
    names = [f"level{k}" for k in range(layers.refinements + 1)]
    dtypes = {name: {"i2": "int16"}.get(LEVEL_DTYPES.get(name, "i1"), "int8") for name in names} | {"exact": word}
    arrays = [ArraySpec(n, shape, t, chunk, shard, encoder.coder_of(n)) for n, t in dtypes.items()]
    planes = -(-shape[0] // chunk[0])
    height = chunk[-2]
    scales = ArraySpec("scales", (planes, height), "int16", (1, height), shard, "rans")
    return (*arrays, scales, ArraySpec("means", (planes, ENTRIES), "int16", (1, ENTRIES), shard, "rans"))


def _ladder(quantizer: Quantize, layers: Layerize, layout: str) -> dict[str, Any]:
    return {
        "method": quantizer.method, "step": quantizer.step, "fine_bits": layers.fine_bits,
        "refinements": layers.refinements, "exact": layers.levels[-1] == "exact", "layout": layout,
        "states": quantizer.states,
    }  # fmt: skip


def only(recipe: Recipe, kind: type[_T]) -> _T:
    """The operator of this kind that a recipe names once."""
    return only_of(recipe.operators, kind)


def only_of(operators: tuple[Operator, ...], kind: type[_T]) -> _T:
    """The operator of this kind that is named once."""
    found = [o for o in operators if isinstance(o, kind)]
    if len(found) != 1:
        name = kind.__dataclass_fields__["kind"].default  # type: ignore[attr-defined]
        raise HilbertflowError(f"operators name {name} {len(found)} times", remedy=f"name {name} once")
    return found[0]


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    files = sorted({tensor.file for tensor in checkpoint.tensors if tensor.file.endswith(".safetensors")})
    return safetensors_metadata(Location(files[0])) if files else {}


def _tensor_table(checkpoint: Checkpoint) -> pa.Table:
    tensors = checkpoint.tensors
    return pa.table(
        {
            "name": pa.array([t.name for t in tensors], pa.string()),
            "kind": pa.array([t.kind for t in tensors], pa.string()),
            "dtype": pa.array([t.dtype for t in tensors], pa.string()),
            "shape": pa.array([list(t.shape) for t in tensors], pa.list_(pa.int64())),
        }
    )


def _portable(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"compute", "sink"})
