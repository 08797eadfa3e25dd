"""The plan of a collection: passes over its rows, and the code that is trained between them.

Texts are embedded first. A sample of the vectors trains the order of the rows, their code and the entropy tables: one
artefact, written once, which every unit goes by and a resumed run takes up again. Where rows are to lie in lists, the
second pass sorts them, and the last gathers and codes them; where they stay as they come, it codes them at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from operators.embed import Embed
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.operator import Operator
from operators.row_blocks import RowBlocks, vector_matrix
from operators.row_code import RowCoding
from operators.row_training import AssignLists, Trained, sample_rows, train
from pipelines.plan import Pass, Plan, Units, archive_spec, only, only_of
from pipelines.recipe import CheckpointSource, ImagesSource, Recipe
from storage import code_arrays
from storage.chunks import Lists
from storage.collection_rows import CollectionRows
from storage.documents import FolderRows
from storage.fs import Location
from storage.generations import generation
from storage.references import local_url
from storage.row_units import RowUnits
from storage.rows import RowSource, encoder_digest
from storage.scratch import EmbeddedRows, EmbeddedWriter, SortedWriter, gather, segment_edges
from storage.spec import ArchiveSpec, ArraySpec
from storage.vectors import VectorRows

F32 = npt.NDArray[np.float32]

EMBEDDED_TOGETHER = 512
"""Texts or pictures embedded, kept and resumed together."""
_UNIT_ROWS, _UNIT_BYTES = 16384, 32 << 20
_RUNS = 64  # that a sample is read in


def collection_plan(recipe: Recipe) -> Plan:
    """Open the source and settle what needs no sample of it."""
    from pipelines.sources import row_source

    assert not isinstance(recipe.source, CheckpointSource)
    source = row_source(recipe)
    if source.count == 0:
        raise HilbertflowError("the source has no rows", where=recipe.source.path)
    dim = source.dim or _embedding_dim(recipe)
    blocks = only(recipe, RowBlocks).resolved(source.count)
    metric = recipe.source.metric or getattr(source, "metric", "ip")
    if metric == "cosine" and getattr(source, "metric", "") != "cosine":  # rows of such a collection have unit length
        blocks = dataclasses.replace(blocks, normalize=True)
    if blocks.normalize and isinstance(source, VectorRows):
        source = dataclasses.replace(source, directed=True)
    operators = tuple(
        blocks if isinstance(o, RowBlocks) else _located(o) if isinstance(o, Embed) and not source.dim else o
        for o in recipe.operators
    )
    rows = recipe.compute.rows_per_unit or min(_UNIT_ROWS, _UNIT_BYTES // (4 * dim))
    per_unit = max(1, rows // blocks.rows)
    attributes = {
        "rows": source.count, "dim": dim, "block": blocks.rows, "per_unit": per_unit, "metric": metric,
        "order": blocks.order, "lists": blocks.lists, "depth": only(recipe, RowCoding).depth,
    } | _origin(recipe, source, operators)  # fmt: skip
    units = RowUnits(source, per_unit * blocks.rows)
    spec = archive_spec(recipe, source.fingerprint, attributes, (), units.units)
    if isinstance(source, CollectionRows):
        operators = tuple(o for o in operators if not isinstance(o, Embed))  # says how texts were embedded
        if source.home.url == spec.url:
            spec = dataclasses.replace(spec, url=generation(source.home, source.version, spec.identity).url)
    return Plan(recipe, units, operators, spec, source_bytes=source.count * dim * 4)


def prepare_collection(plan: Plan, carry_out: Callable[[Pass], None]) -> Plan:
    """Run the passes before the last, train, and settle the arrays of the archive and the stream of the last pass."""
    spec, blocks = plan.spec, only_of(plan.operators, RowBlocks)
    assert isinstance(plan.source, RowUnits)
    source, dim = plan.source.source, spec.attributes["dim"]
    if any(isinstance(o, Embed) for o in plan.operators):
        source = _embedded(plan, source, carry_out)
    trained = _trained(plan, source)
    per_unit, block = spec.attributes["per_unit"], blocks.rows
    coding = trained.operator(only_of(plan.operators, RowCoding))
    rows = RowUnits(source, per_unit * block)
    units: Units
    stream: tuple[Operator, ...]
    if trained.lists == 1:
        units, stream = dataclasses.replace(rows, block=block), (blocks, coding)
        lists = Lists(np.array([0, source.count]), block)
    else:
        writer = SortedWriter(spec, segment_edges(trained.lists, rows.units))
        carry_out(Pass("sort", rows, (blocks, AssignLists(trained)), writer))
        units = gather(writer, rows.units, per_unit, block, dim)
        stream, lists = (coding,), units.lists
    extra = code_arrays.documents(trained.code.to_arrays() | {"sizes": np.diff(lists.borders).astype(np.int32)})
    spec = _settled(spec, trained, lists, units.units, sorted(extra))
    return dataclasses.replace(plan, source=units, operators=stream, spec=spec, extra=extra)


def _embedded(plan: Plan, source: RowSource, carry_out: Callable[[Pass], None]) -> RowSource:
    embed = only_of(plan.operators, Embed)
    spec, wide = plan.spec, source.row_bytes if isinstance(source, FolderRows) else 4096
    each = max(1, min(EMBEDDED_TOGETHER, _UNIT_BYTES // wide))
    given = RowUnits(source, each, row_bytes=wide)
    carry_out(Pass("embed", given, (embed,), EmbeddedWriter(spec)))
    return EmbeddedRows(spec, each, source.count, spec.attributes["dim"], source.columns, source.fingerprint)


def _trained(plan: Plan, source: RowSource) -> Trained:
    """The artefact that an earlier run left, or a new one, which is kept before anything is made with it."""
    spec, place = plan.spec, Location(plan.spec.url)
    key = trained_key(spec.identity)
    if place.exists(key):
        return Trained.from_bytes(place.read(key))
    blocks = only_of(plan.operators, RowBlocks)
    sample = read_sample(source, blocks, spec.attributes["dim"])
    encoder = only_of(plan.operators, FrameEncode)
    trained = train(
        sample, blocks, only_of(plan.operators, RowCoding),
        lambda name: "rans" if encoder.coder == "auto" else encoder.coder_of(name),
    )  # fmt: skip
    place.write_atomic(key, trained.to_bytes())
    return trained


def trained_key(identity: str) -> str:
    """Where a run leaves what it trained, for the runs that go on."""
    return f"journal/trained-{identity[:12]}.npz"


def read_sample(source: RowSource, blocks: RowBlocks, dim: int) -> F32:
    """Vectors of runs of rows spread evenly over the source, as the archive will hold them."""
    wanted, count = sample_rows(blocks, dim), source.count
    if count <= wanted:
        step = _UNIT_BYTES // (4 * dim) + 1
        parts = [range(low, min(low + step, count)) for low in range(0, count, step)]
    else:
        parts = [range(count * k // _RUNS, count * k // _RUNS + wanted // _RUNS) for k in range(_RUNS)]
    tables = (RowUnits(source, 1).numbered(part.start, part.stop) for part in parts)
    return np.concatenate([vector_matrix(blocks.apply(table)) for table in tables])


def _settled(spec: ArchiveSpec, trained: Trained, lists: Lists, units: int, objects: list[str]) -> ArchiveSpec:
    """The archive with its arrays, and with what a reader needs to know of the code."""
    block, per_unit = spec.attributes["block"], spec.attributes["per_unit"]
    code = trained.code
    attributes = spec.attributes | {
        "lists": trained.lists, "code": code.attributes(), "code_hash": code.hash, "code_objects": objects,
        "arrays": list(trained.coders),
    }  # fmt: skip
    arrays = tuple(
        ArraySpec(
            name, (lists.chunks * block, code.width(name)), _DTYPES.get(name, "int16"), (block, code.width(name)),
            per_unit, coder.kind, getattr(coder, "tables", b""),
        )
        for name, coder in trained.coders.items()
    )  # fmt: skip
    return dataclasses.replace(spec, attributes=attributes, arrays=arrays, units=units)


_DTYPES = {"cells": "int32", "exact": "uint32"}


def _embedding_dim(recipe: Recipe) -> int:
    embed = next((o for o in recipe.operators if isinstance(o, Embed)), None)
    if embed is None:
        raise HilbertflowError("no operator embeds what the source has", remedy="add {kind: embed, model: …}")
    encoder = open_encoder(_located(embed).model)
    if isinstance(recipe.source, ImagesSource) and not encoder.takes_pictures:
        raise HilbertflowError("this model takes no pictures", where=embed.model, remedy="name a CLIP model directory")
    return encoder.dim


def _origin(recipe: Recipe, source: RowSource, operators: tuple[Operator, ...]) -> dict[str, str]:
    """What the rows were made of, whatever directory is asked from: model, hash of its files, folder of pictures.

    Rows that two models embedded are not to be compared. Those of a compaction come from where they came from before.
    """
    if isinstance(source, CollectionRows):
        base = source.view.base
        known = {name: str(base.attributes.get(name, "")) for name in ("encoder", "encoder_digest")}
        return known | {"pictures": base.pictures}
    embed = next((o for o in operators if isinstance(o, Embed)), None)
    given = next((o.model for o in recipe.operators if isinstance(o, Embed)), "")
    return {
        "encoder": given if "://" in given or not given else Location(given).url,
        "encoder_digest": encoder_digest(embed.model) if embed is not None else "",
        "pictures": Location(recipe.source.path).url if isinstance(recipe.source, ImagesSource) else "",
    }


def _located(embed: Embed) -> Embed:
    return dataclasses.replace(embed, model=local_url(embed.model))
