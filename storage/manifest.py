"""The manifest: written last, it makes an archive exist, and it lists every object with size and checksum."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import HilbertflowError
from storage.fs import Location

FORMAT = 4
"""Archives of format 1 kept the scales of rows in another form, and collections without a transform; those of format 2
had no checksums of what a reader opens first; those of format 3 kept coarser scales."""
NAME = "manifest.json"
OBJECTS = "objects.parquet"
_REMEDY = "restore it from a copy, or remove it and run the recipe again"


@dataclass(frozen=True)
class Manifest:
    """What an archive is.

    Parameters
    ----------
    kind: ``model`` or ``collection``.
    name: of the archive.
    fingerprint: of the source's content.
    recipe: what the archive was made with, defaults filled in; ``recipe_hash`` is over what determines its bytes.
    units: how many units it has.
    levels: for every level array its name and its bytes on storage.
    source_bytes: size of what was archived.
    quality: signal and error sums over the archive, by level.
    objects: sha256 of ``objects.parquet``, which lists every other object.
    heads: sha256 of the objects that belong to no unit, by key: a reader checks them without that list.
    """

    kind: str
    name: str
    fingerprint: str
    recipe_hash: str
    recipe: dict[str, Any]
    units: int
    levels: dict[str, int]
    source_bytes: int
    objects: str
    quality: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def dump(self) -> bytes:
        """Canonical JSON with its own checksum."""
        body = asdict(self)
        return (json.dumps({**body, "checksum": _digest(body)}, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Object:
    """One object of an archive: key below the archive, bytes, sha256 in hexadecimal, the unit that wrote it or -1."""

    key: str
    size: int
    sha256: str
    unit: int

    @staticmethod
    def of(key: str, data: bytes, unit: int = -1) -> Object:
        """Describe ``data``."""
        return Object(key, len(data), hashlib.sha256(data).hexdigest(), unit)


def dump_objects(objects: list[Object]) -> bytes:
    """The list of objects as Parquet, sorted by key."""
    rows = sorted(objects, key=lambda o: o.key)
    table = pa.table(
        {
            "key": pa.array([o.key for o in rows], pa.string()),
            "size": pa.array([o.size for o in rows], pa.int64()),
            "sha256": pa.array([o.sha256 for o in rows], pa.string()),
            "unit": pa.array([o.unit for o in rows], pa.int64()),
        }
    )
    return parquet_bytes(table)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet bytes that depend on nothing but the table."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=True)
    return sink.getvalue()


def load(place: Location) -> Manifest:
    """The manifest of the archive at ``place``; raises for a half-written, newer or damaged one."""
    where = place.join(NAME)
    if not where.exists():
        if place.join("zarr.json").exists():
            raise HilbertflowError(
                "half-written archive",
                where=place.url,
                remedy="run its recipe, or its copy, again: it goes on where it stopped",
            )
        raise HilbertflowError("no archive here", where=place.url, remedy="`hilbertflow ls ROOT` lists what there is")
    data = where.read()
    try:
        body = json.loads(data)
        version = body.get("format")
    except (ValueError, AttributeError) as error:
        raise HilbertflowError("damaged manifest", where=where.url, remedy=_REMEDY) from error
    if isinstance(version, int) and version < FORMAT:
        raise HilbertflowError(
            f"archive format {version} is older than this version reads ({FORMAT})",
            where=where.url, remedy="archive its source again, or restore it with the version that made it",
        )  # fmt: skip
    if not isinstance(version, int) or version > FORMAT:
        raise HilbertflowError(
            f"archive format {version} is newer than this version reads ({FORMAT})",
            where=where.url, remedy="upgrade hilbertflow",
        )  # fmt: skip
    checksum = body.pop("checksum", None)
    if checksum != _digest(body) or (manifest := Manifest(**body)).dump() != data:
        raise HilbertflowError("the manifest's checksum is wrong", where=where.url, remedy=_REMEDY)
    return manifest


def load_objects(place: Location, manifest: Manifest) -> list[Object]:
    """The list of objects, checked against the manifest."""
    where = place.join(OBJECTS)
    data = where.read()
    if hashlib.sha256(data).hexdigest() != manifest.objects:
        raise HilbertflowError(
            "the list of objects is damaged", where=where.url, remedy="`hilbertflow repair` makes it again"
        )
    return [Object(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
