"""What the plan of a checkpoint by a vector codebook has instead of a scalar quantizer's: the tree of its points.

Training sums floats in an order that depends on the machine. So the tree is left in the journal before a unit is coded
with it, and a run that goes on, wherever it does, takes it up from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np

from operators import uniform
from operators.coders import CODERS
from operators.codetree import CodeTree
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.hilbert_map import HilbertMap
from operators.operator import Operator
from operators.vector_code import F32, TreeLayers, VectorCoding, VectorLadder, VectorQuantize, level_dtype
from operators.vector_training import train, training_runs, training_sample, tree_of
from pipelines.plan import Plan, archive_spec
from pipelines.recipe import Recipe
from pipelines.tune import sample
from storage import code_arrays
from storage import manifest as manifests
from storage.damage import damage
from storage.fs import Location
from storage.model import ModelArchive
from storage.planes import PlaneUnits
from storage.rows import check_finite
from storage.spec import ArchiveSpec, ArraySpec, index_array
from storage.vectors_npy import open_npy

Parts = tuple[tuple[Operator, ...], tuple[ArraySpec, ...], dict[str, Any], dict[str, bytes], dict[str, Any]]


def vector_parts(recipe: Recipe, source: PlaneUnits, fingerprint: str) -> Parts:
    """Stream, arrays, attributes, the objects of the codebook, and what a dry run tells of it.

    Its points are the user's, or trained on planes spread over the source; what an earlier run of the recipe on this
    source (``fingerprint``) made of them stays.
    """
    named = {type(operator): operator for operator in recipe.operators}
    vq, layers, mapper, encoder = (named[kind] for kind in (VectorQuantize, TreeLayers, HilbertMap, FrameEncode))
    assert isinstance(vq, VectorQuantize) and isinstance(layers, TreeLayers)
    assert isinstance(mapper, HilbertMap) and isinstance(encoder, FrameEncode)
    if mapper.layout == "hilbert":
        raise HilbertflowError("runs of values lie in the order of the source", where="hilbert_map",
                               remedy="use layout raster with vq")  # fmt: skip
    vq, points = _given(vq)
    if mapper.side % vq.dim:
        raise HilbertflowError(
            f"dim {vq.dim} does not divide side {mapper.side}", where="vq", remedy="use a smaller dim"
        )
    side, shard, planes = mapper.side, source.layout.per_unit, source.layout.planes
    content = {} if points is None else {"codebook": _digest(points)}
    spec, fit = archive_spec(recipe, fingerprint, {"vector": content}, (), 0), None
    if (tree := _kept(spec)) is None:
        wanted = -(-training_runs(vq) * vq.dim // side**2)
        rows = [row for row in sample(source, wanted).to_pylist() if not row["opaque"]]
        spread = training_sample(
            [(np.frombuffer(r["bits"], f"u{r['word']}").reshape(side, side), r["dtype"]) for r in rows], vq
        )
        tree, fit = tree_of(train(spread, vq) if points is None else points, spread, layers)
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
    attributes = {"vector": {"dim": vq.dim, "step": ladder.step, "objects": sorted(objects)} | content}
    told = {
        "path": vq.codebook or None, "sha256": content.get("codebook"), "codes": vq.codes, "dim": vq.dim,
        "layers": [len(cells) for cells in tree.points], "sqnr_db": None if fit is None else round(fit, 2),
    }  # fmt: skip
    coders = {name: CODERS[kind] for name, kind in kinds.items()}
    stream = (dataclasses.replace(mapper, layout="raster"), VectorCoding(dim=vq.dim, ladder=ladder, coders=coders))
    return stream, arrays, attributes, objects, told


def keep_tree(plan: Plan) -> Plan:
    """Leave the tree of a plan that has one for runs that go on; raises when they go by another one already."""
    tree = next((o.ladder.tree for o in plan.operators if isinstance(o, VectorCoding)), None)
    if tree is not None and _kept(plan.spec) is None:
        sink = io.BytesIO()
        np.savez(sink, allow_pickle=False, **tree.to_arrays())
        Location(plan.spec.url).create_if_new(_key(plan.spec), sink.getvalue())
    if tree is not None and not _equal(tree, _kept(plan.spec)):
        raise HilbertflowError(
            "another run has begun with another codebook", where=plan.spec.url, remedy="run the recipe again"
        )
    return plan


def _kept(spec: ArchiveSpec) -> CodeTree | None:
    """The tree that units of the archive are coded with; None where there is none yet, or it is damaged."""
    place, key = Location(spec.url), _key(spec)
    if place.exists(key):
        remedy = f"units may be coded with it: `hilbertflow rm {spec.url}`, then run the recipe again"
        with damage("is damaged", place.join(key).url, remedy), np.load(io.BytesIO(place.read(key))) as file:
            return CodeTree.from_arrays({name: file[name] for name in file.files})
    with contextlib.suppress(HilbertflowError):  # of a damaged archive: repair makes it again
        if place.exists(manifests.NAME):
            manifest = manifests.load(place)
            if (manifest.fingerprint, manifest.recipe_hash) == (spec.fingerprint, spec.recipe_hash):
                ladder = ModelArchive(place, manifest).ladder
                return ladder.tree if isinstance(ladder, VectorLadder) else None
    return None


def _key(spec: ArchiveSpec) -> str:
    return f"journal/tree-{spec.identity[:12]}.npz"


def _equal(tree: CodeTree, other: CodeTree | None) -> bool:
    arrays, others = tree.to_arrays(), other.to_arrays() if other is not None else {}
    return arrays.keys() == others.keys() and all(np.array_equal(arrays[name], others[name]) for name in arrays)


def _given(vq: VectorQuantize) -> tuple[VectorQuantize, F32 | None]:
    """The sizes and the points (codes, dim) of a codebook of the user's own; None where it is to be trained."""
    if not vq.codebook:
        return vq, None
    file = open_npy(Location(vq.codebook), "", None)
    vq = vq.sized(file.count, file.dim)  # before a byte of its values is read
    table = file.read(0, file.count)
    points = table.column("vector").combine_chunks().flatten().to_numpy().reshape(file.count, file.dim)
    check_finite(points, None, file.place)
    return vq, points


def _digest(points: F32) -> str:
    """SHA-256 (hex) of the points as they are coded with, whatever the file's dtype and order."""
    shape = " ".join(map(str, points.shape))
    return hashlib.sha256(f"codebook {shape}\n".encode() + points.astype("<f4").tobytes()).hexdigest()
