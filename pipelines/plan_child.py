"""The plan of a checkpoint that has a parent: its planes are coded as differences to the parent's."""

from __future__ import annotations

import dataclasses
import hashlib

from operators.delta import Delta
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.operator import Operator
from pipelines.plan import Plan
from storage import archive
from storage.lineage import link
from storage.model import ModelArchive
from storage.planes import PlaneUnits
from storage.spec import ArraySpec


def child_plan(plan: Plan) -> Plan:
    """The plan of the same checkpoint without a parent, turned into a child's.

    Quantizer and levels give way to the differences; the archive then has the lossy levels of its parent. Raises when
    the parent is no finished model with an exact level.
    """
    said = plan.recipe.parent
    assert said is not None and isinstance(plan.source, PlaneUnits)
    opened = archive.open(said.path)
    if not isinstance(opened, ModelArchive):
        raise HilbertflowError("is no model", where=opened.url, remedy="name the archive of a checkpoint as parent")
    if opened.url == plan.spec.url:
        raise HilbertflowError("is its own parent", where=opened.url, remedy="set sink.name to another one")
    parent, told = link(opened, said.max_chain)
    layout = plan.source.layout
    shape, shard = (layout.planes, layout.side, layout.side), layout.per_unit
    arrays = (
        ArraySpec("exact", shape, f"uint{8 * layout.word}", (1, layout.side, layout.side), shard, "rans"),
        ArraySpec("scales", (layout.planes, 2 * layout.side), "int16", (1, 2 * layout.side), shard, "rans"),
    )
    attributes = {
        **plan.spec.attributes, "ladder": parent.attributes["ladder"] | {"layout": "raster"}, "trials": {},
        "parent": dataclasses.asdict(told),
    }  # fmt: skip
    # Another parent under the same path makes another archive: the two must never mix.
    recipe_hash = hashlib.sha256(f"{plan.spec.recipe_hash}:{told.identity}".encode()).hexdigest()
    spec = dataclasses.replace(plan.spec, arrays=arrays, attributes=attributes, recipe_hash=recipe_hash)
    stream: tuple[Operator, ...] = (Delta(), FrameEncode(coder="rans"))
    source = dataclasses.replace(plan.source, parent=parent)
    return dataclasses.replace(plan, source=source, operators=stream, spec=spec)
