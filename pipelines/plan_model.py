"""The plan of a checkpoint: its tensors laid on planes, and the arrays that their levels become."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import pyarrow as pa

from operators.frame_encode import LEVEL_DTYPES, FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.operator import Operator
from operators.quantize import Quantize
from operators.sample import Sample, shares
from operators.sketch import compile_sums
from operators.vector_code import VectorQuantize
from pipelines.choose_parent import choose_parent
from pipelines.plan import Plan, Trials, archive_spec, only, only_of
from pipelines.plan_child import child_parts
from pipelines.plan_vectors import vector_parts
from pipelines.recipe import Recipe
from pipelines.tune import tune
from storage.checkpoint import Checkpoint, open_checkpoint
from storage.fs import Location
from storage.held import Recorder
from storage.layout import place
from storage.manifest import parquet_bytes
from storage.planes import PlaneUnits
from storage.safetensors_file import safetensors_metadata
from storage.signatures import frame_of
from storage.spec import ArraySpec, index_array


def model_plan(recipe: Recipe) -> Plan:
    """Open the checkpoint, sample its tensors, resolve ``auto`` on sampled planes, fix every array."""
    checkpoint = open_checkpoint(recipe.source.path)
    table = whole = _tensor_table(checkpoint)
    for operator in recipe.operators:
        if operator.over == "tensors":
            table = operator.apply(table)
    if "keep" not in table.column_names:
        table = Sample().apply(table)
    layout = place(table, only(recipe, HilbertMap).side, recipe.compute.planes_per_unit)
    recorder = Recorder(checkpoint)
    frame = frame_of(checkpoint, recorder)
    chosen = None
    if recipe.parent is not None and recipe.parent.automatic:
        chosen = choose_parent(recipe, checkpoint, layout, frame, recorder)
        recipe = recipe.model_copy(update={"parent": chosen.parent})
    source, trials, told = PlaneUnits(checkpoint, layout, recorder=recorder), Trials(), dict[str, Any]()
    extra = {"tensors.parquet": parquet_bytes(layout.table())}
    if recipe.parent is not None:
        source, stream, arrays, own = child_parts(recipe, source)
    elif any(isinstance(operator, VectorQuantize) for operator in recipe.operators):
        stream, arrays, own, objects, told = vector_parts(recipe, source, checkpoint.fingerprint)
        extra |= objects
    else:
        stream, arrays, own, trials = _scalar_parts(recipe, source)
    attributes = own | {
        "side": layout.side, "per_unit": layout.per_unit, "trials": trials.report, "config": dict(checkpoint.config),
        "metadata": _metadata(checkpoint), "parameters": sum(prod(p.shape) for p in layout.placements),
    }  # fmt: skip
    spec = archive_spec(recipe, checkpoint.fingerprint, attributes, arrays, layout.units)
    source = dataclasses.replace(source, frame=frame, held=tuple(recorder.pieces), recorder=None)
    compile_sums()
    parent = chosen.told if chosen else {}
    return Plan(recipe, source, stream, spec, layout.nbytes, extra, trials, shares(table, whole), told, parent)


def _scalar_parts(
    recipe: Recipe, source: PlaneUnits
) -> tuple[tuple[Operator, ...], tuple[ArraySpec, ...], dict[str, Any], Trials]:
    stream, trials = tune(tuple(o for o in recipe.operators if o.over != "tensors"), source)
    layers, side, shard = only(recipe, Layerize), source.layout.side, source.layout.per_unit
    shape, word = (source.layout.planes, side, side), f"uint{8 * source.layout.word}"
    arrays = _arrays(stream, layers, shape, (1, side, side), shard, word)
    ladder = _ladder(only(recipe, Quantize), layers, only_of(stream, HilbertMap).layout)
    return stream, arrays, {"ladder": ladder}, trials


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
    scales = ArraySpec("scales", (planes, height), "int32", (1, height), shard, "rans")
    return (*arrays, scales, index_array(planes, shard))


def _ladder(quantizer: Quantize, layers: Layerize, layout: str) -> dict[str, Any]:
    ladder = {
        "method": quantizer.method, "step": quantizer.step, "fine_bits": layers.fine_bits,
        "refinements": layers.refinements, "exact": layers.levels[-1] == "exact", "layout": layout,
        "states": quantizer.states,
    }  # fmt: skip
    return ladder | ({"inset": quantizer.inset} if quantizer.inset else {})  # without one, as readers always knew it


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
            "blocks": pa.array([t.blocks for t in tensors], pa.string()),
        }
    )
