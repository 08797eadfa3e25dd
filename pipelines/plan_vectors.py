"""What the plan of a checkpoint by a vector codebook has instead of a scalar quantizer's: the trained tree."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from operators import uniform
from operators.coders import CODERS
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.hilbert_map import HilbertMap
from operators.operator import Operator
from operators.vector_code import (
    TreeLayers,
    VectorCoding,
    VectorLadder,
    VectorQuantize,
    level_dtype,
    train,
    training_runs,
)
from pipelines.recipe import Recipe
from pipelines.tune import sample
from storage import code_arrays
from storage.planes import PlaneUnits
from storage.spec import ArraySpec, index_array

Parts = tuple[tuple[Operator, ...], tuple[ArraySpec, ...], dict[str, Any], dict[str, bytes]]


def vector_parts(recipe: Recipe, source: PlaneUnits) -> Parts:
    """Stream, arrays, attributes and the objects of the codebook, trained on planes spread over the source."""
    named = {type(operator): operator for operator in recipe.operators}
    vq, layers, mapper, encoder = (named[kind] for kind in (VectorQuantize, TreeLayers, HilbertMap, FrameEncode))
    assert isinstance(vq, VectorQuantize) and isinstance(layers, TreeLayers)
    assert isinstance(mapper, HilbertMap) and isinstance(encoder, FrameEncode)
    if mapper.layout == "hilbert":
        raise HilbertflowError("runs of values lie in the order of the source", where="hilbert_map",
                               remedy="use layout raster with vq")  # fmt: skip
    if mapper.side % vq.dim:
        raise HilbertflowError(
            f"dim {vq.dim} does not divide side {mapper.side}", where="vq", remedy="use a smaller dim"
        )
    side, shard, planes = mapper.side, source.layout.per_unit, source.layout.planes
    wanted = -(-training_runs(vq) * vq.dim // side**2)
    rows = [row for row in sample(source, wanted).to_pylist() if not row["opaque"]]
    tree = train(
        [(np.frombuffer(r["bits"], f"u{r['word']}").reshape(side, side), r["dtype"]) for r in rows], vq, layers
    )
    ladder = VectorLadder(tree, uniform.step_for(vq.fine_db))
    widths = {f"level{k}": side // vq.dim for k in range(tree.depth)} | {f"level{tree.depth}": side, "exact": side}
    types = {f"level{k}": level_dtype(tree, k) for k in range(tree.depth + 1)}
    types["exact"] = f"uint{8 * source.layout.word}"
    kinds = {name: "rans" if encoder.coder == "auto" else encoder.coder_of(name) for name in widths}
    arrays = tuple(
        ArraySpec(name, (planes, side, width), types[name], (1, side, width), shard, kinds[name])
        for name, width in widths.items()
    )
    scale = ArraySpec("scales", (planes, side), "int32", (1, side), shard, "rans")
    arrays = (*arrays, scale, index_array(planes, shard))
    objects = code_arrays.documents(tree.to_arrays())
    attributes = {"vector": {"dim": vq.dim, "step": ladder.step, "objects": sorted(objects)}}
    coders = {name: CODERS[kind] for name, kind in kinds.items()}
    stream = (dataclasses.replace(mapper, layout="raster"), VectorCoding(dim=vq.dim, ladder=ladder, coders=coders))
    return stream, arrays, attributes, objects
