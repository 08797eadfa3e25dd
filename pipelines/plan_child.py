"""What the plan of a checkpoint with a parent has instead: differences in place of quantizer and levels."""

from __future__ import annotations

import dataclasses
from typing import Any

from operators.delta import Delta
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.operator import Operator
from pipelines.recipe import Recipe
from storage import archive
from storage.fs import Location
from storage.lineage import link
from storage.model import ModelArchive
from storage.planes import PlaneUnits
from storage.spec import ArraySpec, index_array

Parts = tuple[PlaneUnits, tuple[Operator, ...], tuple[ArraySpec, ...], dict[str, Any]]


def child_parts(recipe: Recipe, source: PlaneUnits) -> Parts:
    """Source, stream, arrays and attributes of a child; its lossy levels are its parent's.

    Raises when the parent is no finished model with an exact level.
    """
    assert recipe.parent is not None
    opened = archive.open(recipe.parent.path)
    if not isinstance(opened, ModelArchive):
        raise HilbertflowError("is no model", where=opened.url, remedy="name the archive of a checkpoint as parent")
    if opened.url == Location(recipe.sink.path).join("models", recipe.archive_name).url:
        raise HilbertflowError("is its own parent", where=opened.url, remedy="set sink.name to another one")
    parent, told = link(opened, recipe.parent.max_chain)
    side, shard, planes = source.layout.side, source.layout.per_unit, source.layout.planes
    arrays = (
        ArraySpec("exact", (planes, side, side), f"uint{8 * source.layout.word}", (1, side, side), shard, "rans"),
        ArraySpec("scales", (planes, 2 * side), "int32", (1, 2 * side), shard, "rans"),
        index_array(planes, shard),
    )
    # Its ladder says only how many levels there are: they are read from the parent.
    ladder = {"method": "parent", "step": 0.0, "fine_bits": 0, "refinements": parent.ladder.refinements, "exact": True,
              "layout": "raster"}  # fmt: skip
    attributes = {"ladder": ladder, "parent": dataclasses.asdict(told)}
    return dataclasses.replace(source, parent=parent), (Delta(), FrameEncode(coder="rans")), arrays, attributes
