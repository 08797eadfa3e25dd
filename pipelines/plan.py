"""From a recipe to a plan: what is read, in which units, through which operators, into which arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from operators.embed import Embed
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from operators.frame_encode import LEVEL_DTYPES, FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.operator import Operator
from operators.quantize import Quantize
from operators.row_blocks import RowBlocks
from operators.sample import Sample, shares
from pipelines.recipe import CheckpointSource, ImagesSource, Recipe, recipe_hash
from pipelines.tune import Trials, tune
from storage.checkpoint import Checkpoint, open_checkpoint
from storage.documents import FolderRows
from storage.fs import Location
from storage.layout import place
from storage.manifest import parquet_bytes
from storage.planes import PlaneUnits
from storage.references import local_url
from storage.rows import RowSource
from storage.safetensors_file import safetensors_metadata
from storage.spec import ArchiveSpec, ArraySpec

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


@dataclass(frozen=True)
class RowUnits:
    """A source of rows cut into units of equal length."""

    source: RowSource
    per_unit: int
    dim: int
    row_bytes: int = 4096

    @property
    def units(self) -> int:
        """How many there are."""
        return -(-self.source.count // self.per_unit)

    @property
    def unit_bytes(self) -> int:
        """The most bytes one takes in the stream."""
        return self.per_unit * max(self.row_bytes, 4 * self.dim)

    def read(self, unit: int) -> pa.Table:
        """Rows with ``unit`` and ``row``."""
        start = unit * self.per_unit
        table = self.source.read(start, min(self.source.count, start + self.per_unit))
        n = table.num_rows
        table = table.append_column("unit", pa.array([unit] * n, pa.int64()))
        return table.append_column("row", pa.array(range(start, start + n), pa.int64()))


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
    extra: dict[str, bytes]
    trials: Trials
    sampled: dict[str, tuple[int, int]]
    source_bytes: int


def make_plan(recipe: Recipe) -> Plan:
    """Open the source, apply the operators on tables, resolve ``auto`` on sampled units, fix every array."""
    return _model_plan(recipe) if not recipe.collection else _collection_plan(recipe)


def _model_plan(recipe: Recipe) -> Plan:
    checkpoint = open_checkpoint(recipe.source.path)
    mapper, layers = _one(recipe, HilbertMap), _one(recipe, Layerize)
    quantizer = _one(recipe, Quantize)
    table = _tensor_table(checkpoint)
    for operator in recipe.operators:
        if operator.over == "tensors":
            table = operator.apply(table)
    if "keep" not in table.column_names:
        table = Sample().apply(table)
    sampled = shares(table)
    layout = place(table, mapper.side, recipe.compute.planes_per_unit)
    source = PlaneUnits(checkpoint, layout)
    stream = tuple(o for o in recipe.operators if o.over != "tensors")
    stream, trials = tune(stream, source)
    side, shard = mapper.side, layout.per_unit
    arrays = _arrays(stream, layers, (layout.planes, side, side), (1, side, side), shard, f"uint{8 * layout.word}")
    attributes = {
        "ladder": _ladder(quantizer, layers, _one_of(stream, HilbertMap).layout),
        "side": side, "per_unit": shard, "trials": trials.report, "config": dict(checkpoint.config),
        "metadata": _metadata(checkpoint),
    }  # fmt: skip
    spec = _spec(recipe, checkpoint.fingerprint, attributes, arrays, layout.units)
    extra = {"tensors.parquet": parquet_bytes(layout.table())}
    return Plan(recipe, source, stream, spec, extra, trials, sampled, layout.nbytes)


def _collection_plan(recipe: Recipe) -> Plan:
    from pipelines.sources import row_source

    assert not isinstance(recipe.source, CheckpointSource)
    metric, source = recipe.source.metric, row_source(recipe)
    if source.count == 0:
        raise HilbertflowError("the source has no rows", where=recipe.source.path)
    blocks, layers, quantizer = _one(recipe, RowBlocks), _one(recipe, Layerize), _one(recipe, Quantize)
    dim = source.dim or _embedding_dim(recipe)
    rows = max(blocks.rows, recipe.compute.rows_per_unit - recipe.compute.rows_per_unit % blocks.rows)
    units = RowUnits(source, rows, dim, source.row_bytes if isinstance(source, FolderRows) else 4096)
    if metric == "cosine":
        blocks = dataclasses.replace(blocks, normalize=True)
    stream: tuple[Operator, ...] = tuple(
        blocks if isinstance(o, RowBlocks) else _located(o) if isinstance(o, Embed) else o for o in recipe.operators
    )
    stream, trials = tune(stream, units)
    arrays = _arrays(stream, layers, (source.count, dim), (blocks.rows, dim), rows // blocks.rows, "uint32")
    attributes = {
        "ladder": _ladder(quantizer, layers, "raster"), "rows": source.count, "dim": dim, "block": blocks.rows,
        "per_unit": rows // blocks.rows, "metric": metric, "trials": trials.report,
        "encoder": next((o.model for o in recipe.operators if isinstance(o, Embed)), ""),
    }  # fmt: skip
    spec = _spec(recipe, source.fingerprint, attributes, arrays, units.units)
    return Plan(recipe, units, stream, spec, {}, trials, {}, source.count * dim * 4)


def _spec(
    recipe: Recipe, fingerprint: str, attributes: dict[str, Any], arrays: tuple[ArraySpec, ...], units: int
) -> ArchiveSpec:
    kind = "collection" if recipe.collection else "model"
    return ArchiveSpec(
        url=Location(recipe.sink.path).join(f"{kind}s", recipe.archive_name).url, kind=kind, name=recipe.archive_name,
        fingerprint=fingerprint, recipe_hash=recipe_hash(recipe), recipe=_portable(recipe), attributes=attributes,
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
    encoder = _one_of(stream, FrameEncode)
    names = [f"level{k}" for k in range(layers.refinements + 1)]
    dtypes = {name: {"i2": "int16"}.get(LEVEL_DTYPES.get(name, "i1"), "int8") for name in names} | {"exact": word}
    arrays = [ArraySpec(n, shape, t, chunk, shard, encoder.coder_of(n)) for n, t in dtypes.items()]
    planes = -(-shape[0] // chunk[0])
    height = chunk[-2]
    return (*arrays, ArraySpec("scales", (planes, height), "int16", (1, height), shard, "rans"))


def _ladder(quantizer: Quantize, layers: Layerize, layout: str) -> dict[str, Any]:
    return {
        "method": quantizer.method, "step": quantizer.step, "fine_bits": layers.fine_bits,
        "refinements": layers.refinements, "exact": layers.levels[-1] == "exact", "layout": layout,
        "states": quantizer.states,
    }  # fmt: skip


def _one(recipe: Recipe, kind: type[_T]) -> _T:
    return _one_of(recipe.operators, kind)


def _one_of(operators: tuple[Operator, ...], kind: type[_T]) -> _T:
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


def _embedding_dim(recipe: Recipe) -> int:
    embed = next((o for o in recipe.operators if isinstance(o, Embed)), None)
    if embed is None:
        raise HilbertflowError("no operator embeds what the source has", remedy="add {kind: embed, model: …}")
    encoder = open_encoder(_located(embed).model)
    if isinstance(recipe.source, ImagesSource) and not encoder.takes_pictures:
        raise HilbertflowError("this model takes no pictures", where=embed.model, remedy="name a CLIP model directory")
    return encoder.dim


def _located(embed: Embed) -> Embed:
    return dataclasses.replace(embed, model=local_url(embed.model))


def _portable(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"compute", "sink"})
