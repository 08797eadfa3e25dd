"""``parent: auto``: which archived model a checkpoint comes from, told before a byte of it is written.

Candidates are the models of the same root with the same architecture, as the catalog tells. Of a few matrices of the
checkpoint the sketches are taken, and compared with those that the candidates' signatures keep: no other archive is
read. The nearest is the parent, if it is near. Once an archive is begun, its own document holds the choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from operators.relation import difference
from operators.signature import Collector, Signature
from operators.sketch import sums
from pipelines.recipe import Parent, Recipe
from storage import archive, catalog, signatures
from storage import manifest as manifests
from storage.checkpoint import Checkpoint
from storage.fs import Location
from storage.held import Read
from storage.layout import Layout
from storage.model import ModelArchive
from storage.tensors import TensorSpec

NEAR = 0.25
"""A parent differs by at most so much of the weights' length: its lossy levels, which a child shares, are then within
12 dB of the child, and some two bits of a value are saved."""
MATRICES = 8
SAMPLE = 8 << 20
"""Bytes of the checkpoint that are looked at: so few matrices that they are no more, but one at least."""


@dataclass(frozen=True)
class Choice:
    """What became of ``parent: auto``.

    Parameters
    ----------
    parent: for the recipe; None where the checkpoint is archived alone.
    name: of the parent's archive, or empty.
    why: in words.
    candidates: models that were compared.
    difference: of the nearest, over the weights' length; None without one.
    matrices: names of those that were looked at.
    """

    parent: Parent | None
    name: str
    why: str
    candidates: int = 0
    difference: float | None = None
    matrices: tuple[str, ...] = ()

    @property
    def told(self) -> dict[str, Any]:
        """For JSON."""
        rest = asdict(self)
        del rest["parent"]
        return rest


def choose_parent(
    recipe: Recipe, checkpoint: Checkpoint, layout: Layout, frame: signatures.Frame, read: Read
) -> Choice:  # fmt: skip
    """The parent of a recipe that leaves it to us; of an archive that was begun, or is finished, the one it has."""
    assert recipe.parent is not None
    root = Location(recipe.sink.path)
    begun = _begun(root, recipe)
    if begun is not None:
        return begun
    held = _candidates(root, recipe.archive_name, layout)
    if not held:
        return Choice(None, "", "none: no other model of this root has its architecture and an exact level")
    specs = _sample([spec for spec in checkpoint.tensors if spec.name in layout.by_name], held.values())
    own = _signature(specs, frame, read)
    told = sorted((difference(own, signature), name) for name, signature in held.items())
    least, name = told[0]
    facts: dict[str, Any] = {
        "candidates": len(held), "matrices": tuple(spec.name for spec in specs),
        "difference": least if least < float("inf") else None,
    }  # fmt: skip
    why = reason(told, len(specs))
    if least > NEAR:
        return Choice(None, "", why, **facts)
    parent = recipe.parent.model_copy(update={"path": root.join("models", name).url})
    return Choice(parent, name, why, **facts)


def reason(told: Sequence[tuple[float, str]], matrices: int) -> str:
    """Why the nearest of those that were compared is the parent, or is not, in words.

    told: difference and name of each, nearest first. matrices: how many were looked at.
    """
    least, name = told[0]
    if least == float("inf"):
        return "none: it shares no matrix with the signatures of the models of its architecture"
    only = len(told) == 1
    if least > NEAR:
        many = f"of {len(told)} models of its architecture the nearest"
        of = "the only model of its architecture" if only else many
        return f"none: {of}, {name}, differs by {least:.3f} of its length, and {NEAR} is the most"
    many = f"which of {len(told)} models of its architecture differs least:"
    of = "the only model of its architecture, differs" if only else many
    looked = f"{matrices} matri{'x' if matrices == 1 else 'ces'}"
    behind = "" if only else f" (next: {told[1][1]}, {told[1][0]:.4f})"
    return f"{name}, {of} by {least:.4f} of its length, told from {looked}{behind}"


def _begun(root: Location, recipe: Recipe) -> Choice | None:
    """What was chosen when the archive was begun; None where its name is free, or what has it is damaged."""
    assert recipe.parent is not None
    place = root.join("models", recipe.archive_name)
    if not place.exists("zarr.json"):
        return None
    try:
        kept = json.loads(place.read("zarr.json"))["attributes"]["hilbertflow"]
        url = None if kept.get("parent") is None else str(kept["parent"]["url"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if url is None:
        return Choice(None, "", "none, as when this archive was begun")
    name = url.rsplit("/", 1)[-1]
    beside = root.join("models", name)
    if beside.exists(manifests.NAME):  # the root may have been moved since
        url = beside.url
    return Choice(recipe.parent.model_copy(update={"path": url}), name, f"{name}, as when this archive was begun")


def _candidates(root: Location, own: str, layout: Layout) -> dict[str, Signature]:
    """Signatures of models that a checkpoint laid out so may be coded by, by name."""
    if not root.exists():
        return {}
    kinds: dict[str, int] = {}
    for tensor in layout.placements:
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + prod(tensor.shape)
    wanted = {
        "kind": "model", "tensors": len(layout.placements), "parameters": sum(kinds.values()), "kinds": kinds,
        "dtypes": sorted({tensor.dtype for tensor in layout.placements}),
    }  # fmt: skip
    found = {}
    for row in catalog.ls(root.url):
        alike = all(row.get(key) == value for key, value in wanted.items())
        if not alike or row["name"] == own or "exact" not in row["levels"]:
            continue
        handle = archive.open(root.join("models", row["name"]).url)
        if isinstance(handle, ModelArchive) and signatures.KEY in handle.manifest.heads and _fits(handle, layout):
            found[row["name"]] = signatures.of_archive(handle)
    return found


def _fits(handle: ModelArchive, layout: Layout) -> bool:
    """Whether every tensor has its counterpart, of the same type and shape."""
    theirs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in handle.layout.placements}
    return theirs == {tensor.name: (tensor.dtype, tensor.shape) for tensor in layout.placements}


def _sample(specs: Sequence[TensorSpec], held: Iterable[Signature]) -> list[TensorSpec]:
    """Matrices to look at: of those that every candidate's signature has, the smaller half, evenly spread."""
    known = set.intersection(*({tensor.name for tensor in signature.tensors} for signature in held))
    kept = [spec for spec in specs if spec.name in known and signatures.shape_of(spec) is not None]
    if not kept:
        return []
    middle = sorted(spec.nbytes for spec in kept)[len(kept) // 2]
    small = [spec for spec in kept if spec.nbytes <= middle]
    for count in range(min(MATRICES, len(small)), 1, -1):
        some = [small[(len(small) - 1) * i // (count - 1)] for i in range(count)]
        if sum(spec.nbytes for spec in some) <= SAMPLE:
            return some
    return [min(kept, key=lambda spec: spec.nbytes)]


def _signature(specs: Iterable[TensorSpec], frame: signatures.Frame, read: Read) -> Signature:
    collector = Collector()
    for spec in specs:
        shape = signatures.shape_of(spec)
        assert shape is not None
        matrix = signatures.matrix_of(spec.name, shape, spec.kind, frame)
        values = signatures.values_of(spec, read(spec, 0, spec.nbytes))
        collector.add(spec.name, spec.kind, sums(matrix, values, 0, frame.anchor))
    return collector.finish()
