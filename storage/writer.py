"""Write an archive unit by unit: objects first, then the journal entry; the manifest when every unit is there."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from operators.coders import CODERS
from operators.errors import HilbertflowError
from operators.scales import stored
from operators.threads import thread_pool
from storage import id_frames, signatures
from storage import manifest as manifests
from storage.fs import Location
from storage.manifest import Manifest, Object, dump_objects, parquet_bytes
from storage.shard import pack, sealed, stored_size
from storage.spec import TOGETHER, ArchiveSpec, ArraySpec, identity_at, open_for_writing

SUMMED = ("energy", "error", "cosine")
"""Beginnings of the columns of planes that are summed over the archive."""
NUMBERS = ("plane", "crc", "count", "residual")
SKETCHES = "scratch/sketches"
"""What the units add to a model's signature, until the archive is finished."""


@dataclass(frozen=True)
class Receipt:
    """What the journal keeps of a written unit.

    Parameters
    ----------
    unit: its number.
    objects: what was written.
    planes: by column, the numbers, checksums and error sums of its planes.
    source_bytes: size of its share of the source.
    """

    unit: int
    objects: list[Object]
    planes: dict[str, list[Any]]
    source_bytes: int


@dataclass(frozen=True)
class ArchiveWriter:
    """Writes the units of an archive that is opened for writing; whoever started the run writes the manifest."""

    spec: ArchiveSpec

    @property
    def folder(self) -> str:
        """Where its units are journalled."""
        return "journal"

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit."""
        return write_unit(self.spec, table)

    def written(self) -> set[int]:
        """Units that the journal holds."""
        return written_units(self.spec)


def write_unit(spec: ArchiveSpec, table: pa.Table) -> Receipt:
    """Write one whole unit from its encoded planes; writing it twice writes the same bytes to the same keys.

    Raises when the archive is another's by now: a worker may outlive its run.
    """
    place = Location(spec.url)
    receipt, payloads = coded_unit(spec, table)
    if identity_at(place) != spec.identity:
        raise HilbertflowError("the archive was removed or replaced while this run wrote it", where=spec.url)
    _write_all(place, payloads)
    journalled(spec, receipt)
    return receipt


def _write_all(place: Location, payloads: Mapping[str, bytes]) -> None:
    """Write objects of one unit, all at once on a store, where each waits for an answer: else the waits add up to more
    than a worker takes to code a unit. Raises when none is under way any more.
    """
    if place.local_path is not None:
        for key, data in payloads.items():
            place.write_atomic(key, data, durable=False)
        return
    pool = thread_pool("put", 16)  # a worker writes two units at once
    for put in wait([pool.submit(place.write_atomic, *item, durable=False) for item in payloads.items()]).done:
        put.result()


def journalled(spec: ArchiveSpec, receipt: Receipt) -> None:
    """Write down that a unit is there: from now on no run makes it again."""
    fields = vars(receipt) | {"objects": [vars(item) for item in receipt.objects]}
    entry = json.dumps(fields, sort_keys=True).encode()
    Location(spec.url).write_atomic(f"journal/{spec.unit_name(receipt.unit)}.json", entry, durable=False)


def coded_unit(spec: ArchiveSpec, table: pa.Table) -> tuple[Receipt, dict[str, bytes]]:
    """What the journal keeps of a whole unit, and its objects by key."""
    table = table.combine_chunks()
    planes = table.column("plane").to_pylist()
    if planes != sorted(planes):
        table = table.sort_by("plane")
        planes = table.column("plane").to_pylist()
    unit = int(table.column("unit")[0].as_py())
    expected = table.column("planes")[0].as_py()
    if planes != list(range(planes[0], planes[0] + expected)):
        raise HilbertflowError(f"unit {unit} arrived in pieces: planes {planes} of {expected}", where=spec.url)
    payloads: dict[str, bytes] = {}
    sizes: dict[str, list[int]] = {}
    for array in spec.arrays:
        first = unit * array.shard
        chunks: list[bytes | None] = [None] * array.shard
        if array.name in TOGETHER:
            data = _together(array, table, [p - first for p in planes])
        else:
            for at, chunk in zip(planes, table.column(array.name).to_pylist(), strict=True):
                chunks[at - first] = chunk
            if spec.kind == "collection":
                sizes[f"bytes_{array.name}"] = [stored_size(chunk) for chunk in chunks[: len(planes)]]
            data = pack(chunks, array.shard)
        if data is not None:
            payloads[array.key(unit)] = data
    if "sketch" in table.column_names:
        payloads[f"{SKETCHES}/{unit:08d}.npz"] = table.column("sketch")[0].as_py()
    if "attributes" in table.column_names:
        rows = payloads[f"rows/{unit:08d}.parquet"] = parquet_bytes(_rows(table))
        sizes["crc_rows"] = [google_crc32c.value(rows)] * len(planes)
        frames = [id_frames.pack([row["id"] for row in rows]) for rows in table.column("attributes").to_pylist()]
        sizes["bytes_ids"] = [stored_size(frame) for frame in frames]
        payloads[id_frames.key(unit)] = sealed(frames)
    objects = [Object.of(key, data, unit) for key, data in payloads.items()]
    kept = [c for c in table.column_names if c in NUMBERS or c.startswith(SUMMED)]
    words = np.array(table.column("word").to_pylist()) * np.array(table.column("count").to_pylist())
    columns = {c: table.column(c).to_pylist() for c in kept} | sizes
    return Receipt(unit, objects, columns, int(words.sum())), payloads


def written_units(spec: ArchiveSpec) -> set[int]:
    """Units that the journal holds, from one listing.

    On a disk the sizes of their objects are compared too: nothing is synced before the end of a run, so that a machine
    that lost its power may have kept the journal's entry and lost what it speaks of.
    """
    place = Location(spec.url)
    names = (key.rsplit("/", 1)[-1].removesuffix(".json") for key in place.children("journal"))
    units = {int(name[:8]) for name in names if name[:8].isdigit() and name == spec.unit_name(int(name[:8]))}
    if units and place.local_path is not None:
        sizes = place.sizes()
        units = {unit for unit in units if _is_whole(place, spec.unit_name(unit), sizes)}
    return units


def _is_whole(place: Location, name: str, sizes: dict[str, int]) -> bool:
    try:
        objects = json.loads(place.read(f"journal/{name}.json"))["objects"]
    except ValueError:
        return False
    return all(sizes.get(item["key"]) == item["size"] for item in objects)


def finish(spec: ArchiveSpec, extra: dict[str, bytes]) -> Manifest:
    """Gather the journal into tables and write the manifest; then :func:`clear` may take the journal away.

    ``extra`` are further objects that belong to the archive (the table of tensors). Raises when a unit is missing.
    """
    place = Location(spec.url)
    if place.local_path is not None:
        os.sync()  # once for all units, before the manifest says that they are there
    missing = set(range(spec.units)) - written_units(spec)
    if place.local_path is None and all(place.exists(f"journal/{spec.unit_name(unit)}.json") for unit in missing):
        missing = set()  # a store may list what lay there a moment ago; by its name an object is found
    if missing:
        raise HilbertflowError(
            f"{len(missing)} of {spec.units} units are not written", where=spec.url, remedy="run the recipe again"
        )
    open_for_writing(spec)
    manifest, tables = gathered(spec, extra)
    for key, data in tables.items():
        place.write_atomic(key, data)
    place.write_atomic(manifests.NAME, manifest.dump())
    return manifest


def gathered(spec: ArchiveSpec, extra: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    """From a journal that is whole, the manifest and what is to be written before it, by key."""
    objects = [Object.of(key, data) for key, data in spec.metadata().items()]
    columns: dict[str, list[Any]] = {}
    source_bytes = 0
    sketches: list[str] = []
    for receipt in _journal(spec):
        for item in receipt.objects:
            if item.key.startswith(SKETCHES):
                sketches.append(item.key)
            else:
                objects.append(item)
        source_bytes += receipt.source_bytes
        for name, values in receipt.planes.items():
            columns.setdefault(name, []).extend(values)
    planes = _chunk_table(columns) if spec.kind == "collection" else pa.table(columns)
    tables = extra | {"planes.parquet": parquet_bytes(planes)}
    if sketches:
        held = (Location(spec.url).read(key) for key in sketches)
        tables[signatures.KEY] = signatures.dump(signatures.merged(held, spec.attributes.get("parameters", 0)))
    objects += [Object.of(key, data) for key, data in tables.items()]
    listing = dump_objects(objects)
    manifest = Manifest(
        kind=spec.kind, name=spec.name, fingerprint=spec.fingerprint, recipe_hash=spec.recipe_hash, recipe=spec.recipe,
        units=spec.units, levels=_bytes_by_array(spec, objects), source_bytes=source_bytes,
        objects=Object.of(manifests.OBJECTS, listing).sha256, quality=_quality(columns, spec.attributes.get("rows", 0)),
        heads={item.key: item.sha256 for item in objects if item.unit < 0},
    )  # fmt: skip
    return manifest, tables | {manifests.OBJECTS: listing}


def clear(place: Location) -> None:
    """Remove what only a run under way needs."""
    for folder in ("journal", "scratch"):
        place.delete(folder, recursive=True)


def _journal(spec: ArchiveSpec) -> Iterator[Receipt]:
    place = Location(spec.url)
    for unit in range(spec.units):
        body = json.loads(place.read(f"journal/{spec.unit_name(unit)}.json"))
        yield Receipt(body["unit"], [Object(**o) for o in body["objects"]], body["planes"], body["source_bytes"])


def _together(array: ArraySpec, table: pa.Table, slots: list[int]) -> bytes | None:
    told = table.column(array.name).to_pylist()
    if not any(told):
        return None
    rows = np.zeros((array.shard, array.chunk[1]), f"u{np.dtype(array.dtype).itemsize}")
    for slot, row in zip(slots, told, strict=True):
        if row:
            rows[slot] = np.frombuffer(row, rows.dtype)
    data: bytes = CODERS[array.coder].encode(stored(rows) if array.name == "scales" else rows.view(array.dtype))
    return data + struct.pack("<I", google_crc32c.value(data))


def _rows(table: pa.Table) -> pa.Table:
    structs = table.column("attributes").combine_chunks()
    structs = structs.chunk(0) if isinstance(structs, pa.ChunkedArray) else structs
    return pa.Table.from_struct_array(structs.flatten())


def _bytes_by_array(spec: ArchiveSpec, objects: list[Object]) -> dict[str, int]:
    folders = ("code", "rows", "ids") if spec.kind == "collection" else ()
    sizes = {name: 0 for name in (*(array.name for array in spec.arrays), *folders, "tables")}
    for item in objects:
        top = item.key.split("/")[0]
        own = top in folders or (top in sizes and not item.key.endswith("zarr.json"))
        sizes[top if own else "tables"] += item.size
    return sizes


def _quality(columns: dict[str, list[Any]], rows: float) -> dict[str, Any]:
    # Rounded: sums of float64 may differ in the last bits between machines, an archive's bytes must not.
    energy = sum(columns["energy"])
    errors = {c: sum(v) for c, v in columns.items() if c.startswith("error")}
    ratios = {c: 10 * float(np.log10(energy / e)) if e > 0 and energy > 0 else None for c, e in errors.items()}
    cosines = {c: sum(v) / rows for c, v in columns.items() if c.startswith("cosine")}
    names = {c: "parent" if c == "error_parent" else f"level{c[5:]}" for c in ratios}
    return {f"sqnr_db_{names[c]}": None if r is None else round(r, 3) for c, r in ratios.items()} | {
        f"cosine_level{c[6:]}": round(mean, 5) for c, mean in cosines.items()
    }


def _chunk_table(columns: dict[str, list[Any]]) -> pa.Table:
    """Of a collection: read whole to open it, so without the sums that only the manifest tells, and narrow."""
    types = {"crc": pa.uint32(), "crc_rows": pa.uint32(), "residual": pa.float32()}
    kept = {name: values for name, values in columns.items() if not name.startswith(SUMMED)}
    return pa.table({name: pa.array(values, types.get(name, pa.int32())) for name, values in kept.items()})
