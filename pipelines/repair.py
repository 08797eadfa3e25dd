"""Mend a damaged archive: make its broken units again from the source, or fetch broken objects from a sound copy.

The recipe that an archive was made with stands in its manifest, and the same recipe on the same source gives the same
bytes. So only the units that hold a broken object go through the operators again, only broken objects are written, and
each must come out with the SHA-256 that was recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from operators.row_training import Trained
from operators.rowcode import RowCode
from operators.vector_code import VectorLadder
from pipelines.compile import make_plan, prepare
from pipelines.pending import Pending
from pipelines.plan import Pass, Plan
from pipelines.plan_rows import trained_key
from pipelines.recipe import Recipe
from storage import code_arrays, signatures
from storage import manifest as manifests
from storage.codecs import coder_of
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.lease import held
from storage.manifest import Manifest, Object
from storage.model import ModelArchive
from storage.spec import ArchiveSpec
from storage.upkeep import BESIDE, copy_object
from storage.verify import damages
from storage.writer import SKETCHES, Receipt, clear, coded_unit, gathered, journalled, written_units

Runner = Callable[[Pass, Pending], None]
"""Streams some units of a pass to its writer."""


@dataclass(frozen=True)
class Repaired:
    """What was mended: keys of the objects, and how many units were made again for it."""

    url: str
    objects: tuple[str, ...]
    units: int


@dataclass(frozen=True)
class BrokenOnly:
    """Writes of a unit the objects that are broken, once they have come out as they were.

    Parameters
    ----------
    wanted: SHA-256 of the broken objects by key.
    journal: whether to keep every unit's receipt as well: the tables of the archive are made of them.
    """

    spec: ArchiveSpec
    wanted: dict[str, str] = field(default_factory=dict)
    journal: bool = False

    @property
    def folder(self) -> str:
        """Where receipts lie."""
        return "journal"

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit."""
        receipt, payloads = coded_unit(self.spec, table)
        place = Location(self.spec.url)
        put(place, payloads, self.wanted)
        if self.journal:
            for key in [key for key in payloads if key.startswith(SKETCHES)]:  # the signature is made of them
                place.write_atomic(key, payloads[key])
            journalled(self.spec, receipt)
        return receipt

    def written(self) -> set[int]:
        """Units whose receipts an earlier try kept."""
        return written_units(self.spec) if self.journal else set()


def put(place: Location, payloads: dict[str, bytes], wanted: dict[str, str]) -> None:
    """Write those of the objects that are wanted; raises for one that is not what it was."""
    for key, data in payloads.items():
        if key in wanted:
            if hashlib.sha256(data).hexdigest() != wanted[key]:
                raise HilbertflowError(
                    "does not come out as it was written", where=place.join(key).url,
                    remedy="another version or machine made it: name a copy of the archive after --from",
                )  # fmt: skip
            place.write_atomic(key, data)


def repair(place: Location, source: str, run: Runner) -> Repaired:
    """Make the archive at ``place`` whole again.

    Parameters
    ----------
    source: what it was made of, wherever that lies now, or a copy of the archive; empty for the recipe's own path.
    run: streams units.

    Raises HilbertflowError when the source is another one, or when an object does not come out as it was.
    """
    copy = Location(source) if source and Location(source).exists(manifests.NAME) else None
    manifest, mended = _manifest(place, copy)
    listed = _listed(place, manifest, copy)
    broken = _broken(place, listed)
    if mended:  # what reads the archive meanwhile, the operators above all, goes by it
        place.write_atomic(manifests.NAME, manifest.dump())
    with held(place):
        if copy is not None:
            units = 0
            for item in broken:
                copy_object(copy, place, item)
        else:
            units = _made_again(place, source, manifest, broken, run) if broken else 0
    clear(place)
    listing = manifests.dump_objects(listed)
    if hashlib.sha256(_there(place, manifests.OBJECTS)).hexdigest() != manifest.objects:
        place.write_atomic(manifests.OBJECTS, listing)
        mended += (manifests.OBJECTS,)
    if left := _broken(place, listed):
        raise HilbertflowError(
            "cannot be made again", where=place.join(left[0].key).url, remedy="name a copy of the archive after --from"
        )
    return Repaired(place.url, (*sorted(item.key for item in broken), *mended), units)


def _manifest(place: Location, copy: Location | None) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest, and its name where it has to be taken from the copy."""
    try:
        manifest = manifests.load(place)
    except HilbertflowError:
        if copy is None:
            raise
        manifest = manifests.load(copy)
        if hashlib.sha256(_there(place, "zarr.json")).hexdigest() != manifest.heads.get("zarr.json"):
            raise
        return manifest, (manifests.NAME,)
    if copy is not None and manifests.load(copy) != manifest:
        raise HilbertflowError("is not a copy of this archive", where=copy.url, remedy=f"{place.url} is another one")
    return manifest, ()


def _listed(place: Location, manifest: Manifest, copy: Location | None) -> list[Object]:
    """The list of objects: as it stands, the copy's, or made again of objects that are all sound."""
    for where in (place, copy):
        if where is not None:
            try:
                return manifests.load_objects(where, manifest)
            except HilbertflowError as error:
                last = error
    found = [
        Object.of(key, place.read(key), unit_of(key)) for key in place.list()
        if not key.startswith((*BESIDE, "journal/", "scratch/")) and key not in (manifests.NAME, manifests.OBJECTS)
    ]  # fmt: skip
    if hashlib.sha256(manifests.dump_objects(found)).hexdigest() == manifest.objects:
        return found
    raise HilbertflowError(
        f"{last.what}, and so are objects that it tells of", where=last.where,
        remedy="name a copy of the archive after --from, or remove manifest.json and run the recipe again",
    )  # fmt: skip


def unit_of(key: str) -> int:
    """The unit whose object has this key, -1 for what belongs to none."""
    parts = key.split("/")
    if parts[0] in ("rows", "ids"):
        return int(parts[1].partition(".")[0])
    return int(parts[2]) if len(parts) > 2 and parts[1] == "c" and parts[0] != code_arrays.FOLDER else -1


def _broken(place: Location, listed: list[Object]) -> list[Object]:
    damaged = {damage.key for damage in damages(place, listed)}
    return [item for item in listed if item.key in damaged]


def _there(place: Location, key: str) -> bytes:
    try:
        return place.read(key)
    except MissingFileError:
        return b""


def _made_again(place: Location, source: str, manifest: Manifest, broken: list[Object], run: Runner) -> int:
    """Make broken objects of the source; returns how many units it took."""
    wanted = {item.key: item.sha256 for item in broken}
    plan = _plan(place, source, manifest)
    if plan.recipe.collection:
        _keep_code(place, manifest)
    plan = prepare(plan, lambda step: run(step, Pending.missing(step.source.units, step.writer.written())))
    whole = bool({"planes.parquet", signatures.KEY} & set(wanted))  # they tell of every unit
    writer = BrokenOnly(plan.spec, wanted, whole)
    units = set(range(plan.spec.units)) if whole else {item.unit for item in broken if item.unit >= 0}
    done = (set(range(plan.spec.units)) - units) | writer.written()
    if pending := Pending.missing(plan.spec.units, done):
        run(Pass("repair", plan.source, plan.operators, writer), pending)
    put(place, plan.spec.metadata() | (gathered(plan.spec, plan.extra)[1] if whole else plan.extra), wanted)
    return len(units)


def _plan(place: Location, source: str, manifest: Manifest) -> Plan:
    """The plan that the archive was made by, of its source."""
    body: dict[str, Any] = json.loads(json.dumps(manifest.recipe))
    root, _, name = place.url.rpartition(f"/{manifest.kind}s/")
    if "/" in name or not root or body["source"]["kind"] == "collection":
        raise HilbertflowError(
            "a compacted collection has no source any more", where=place.url, remedy="name a copy of it after --from"
        )
    body["sink"] = {"path": root, "name": name}
    body["source"]["path"] = source or body["source"]["path"]
    for operator in body["operators"]:
        if operator.get("codebook"):
            operator["codebook"] = _codebook(place, manifest) or operator["codebook"]
    plan = make_plan(Recipe.model_validate_json(json.dumps(body)))
    if plan.spec.fingerprint != manifest.fingerprint:
        raise HilbertflowError(
            "is not what the archive was made of: its content differs", where=body["source"]["path"],
            remedy="name the source, or a copy of the archive, after --from",
        )  # fmt: skip
    if plan.spec.recipe_hash != manifest.recipe_hash:
        raise HilbertflowError(
            "was made by another version of hilbertflow, or of another parent", where=place.url,
            remedy="name a copy of the archive after --from",
        )  # fmt: skip
    return plan


def _codebook(place: Location, manifest: Manifest) -> str:
    """Where the points of ``vq`` lie now, taken from the archive, for their file may be gone; empty if broken there."""
    with contextlib.suppress(HilbertflowError):
        ladder = ModelArchive(place, manifest).ladder
        if isinstance(ladder, VectorLadder):
            points = np.empty_like(ladder.tree.points[-1])
            points[ladder.tree.leaf] = ladder.tree.points[-1]
            np.save(sink := io.BytesIO(), points)
            place.write_atomic("scratch/codebook.npy", sink.getvalue())
            return place.join("scratch/codebook.npy").url
    return ""


def _keep_code(place: Location, manifest: Manifest) -> None:
    """Leave the code that the rows are coded with where the plan looks for it, unless it is broken itself."""
    handle = CollectionArchive(place, manifest)
    with contextlib.suppress(HilbertflowError):  # then it is trained again, on the same sample
        about = handle.attributes
        if about["order"] != "hilbert":  # the cuts of a curve are not kept
            arrays = code_arrays.load(handle.heads(about["code_objects"]), place.url)
            arrays.pop("sizes")
            documents = handle.heads([f"{name}/zarr.json" for name in about["arrays"]])
            coders = {key.split("/")[0]: coder_of(data, key) for key, data in documents.items()}
            trained = Trained(RowCode.from_arrays(arrays, about["code"]), coders)
            place.write_atomic(trained_key(handle.fingerprint), trained.to_bytes())
