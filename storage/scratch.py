"""Rows on their way into a collection: what one pass over them leaves below ``scratch/`` for the next.

Texts are embedded once, and their vectors kept until the archive is finished. Rows that are to lie in lists are sorted
within each unit and written as segments, a run of lists each; the next pass gathers the segments of a few lists from
all units. So no pass holds more than some units in memory, each goes on where a killed one stopped, and what comes out
does not depend on who wrote what and when.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from operators.row_code import CHUNK, LIST
from storage.chunks import Lists
from storage.fs import Location
from storage.manifest import Object
from storage.rows import check_range
from storage.spec import ArchiveSpec
from storage.writer import Receipt

I64 = npt.NDArray[np.int64]
EMBEDDED, SORTED = "scratch/embedded", "scratch/sorted"


@dataclass(frozen=True)
class EmbeddedWriter:
    """Keeps units of embedded texts."""

    spec: ArchiveSpec

    @property
    def folder(self) -> str:
        """Where its units lie."""
        return EMBEDDED

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit: ``id``, ``vector`` and metadata, in order."""
        table = table.sort_by("row")
        unit = int(table.column("unit")[0].as_py())
        sink = io.BytesIO()
        kept = _plain(table.drop_columns(["unit", "row"]))
        with pa.ipc.new_stream(sink, kept.schema) as stream:
            stream.write_table(kept)
        return _kept(self.spec, EMBEDDED, unit, sink.getvalue())

    def written(self) -> set[int]:
        """Units that are there."""
        return _units(self.spec, EMBEDDED)


@dataclass(frozen=True)
class EmbeddedRows:
    """The rows that :class:`EmbeddedWriter` kept, as a source of vectors."""

    spec: ArchiveSpec
    per_unit: int
    count: int
    dim: int
    columns: tuple[str, ...]
    fingerprint: str

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``: ``id``, ``vector``, metadata."""
        check_range(start, stop, self.count, self.spec.url)
        parts = [self._unit(0).slice(0, 0)]
        for unit in range(start // self.per_unit, -(-stop // self.per_unit)):
            base = unit * self.per_unit
            low = max(start - base, 0)
            parts.append(self._unit(unit).slice(low, min(stop - base, self.per_unit) - low))
        return pa.concat_tables(parts)

    def check(self) -> None:
        """Nothing: the texts were checked."""

    def __reduce__(self) -> tuple[object, ...]:
        return EmbeddedRows, (self.spec, self.per_unit, self.count, self.dim, self.columns, self.fingerprint)

    @cached_property
    def _unit(self) -> Any:
        def load(unit: int) -> pa.Table:
            data = Location(self.spec.url).read(_key(self.spec, EMBEDDED, unit))
            return pa.ipc.open_stream(data).read_all()

        return lru_cache(maxsize=4)(load)


@dataclass(frozen=True)
class SortedWriter:
    """Keeps units of rows sorted by list, in segments.

    Parameters
    ----------
    spec: of the archive to be.
    edges: the first list of every segment, and the number of lists.
    """

    spec: ArchiveSpec
    edges: tuple[int, ...]

    @property
    def folder(self) -> str:
        """Where its units lie."""
        return SORTED

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit: ``row``, ``LIST``, ``vector``, ``id`` and metadata."""
        unit = int(table.column("unit")[0].as_py())
        kept = _plain(table.drop_columns(["unit"]).sort_by([(LIST, "ascending"), ("row", "ascending")]))
        lists = kept.column(LIST).to_numpy()
        borders = np.searchsorted(lists, self.edges)
        batch = kept.combine_chunks().to_batches()[0]
        parts = [
            batch.slice(low, high - low).serialize().to_pybytes() if high > low else b""
            for low, high in pairwise(borders)
        ]
        number, count = np.unique(lists, return_counts=True)
        about = {
            "lists": number.tolist(), "counts": count.tolist(), "sizes": [len(part) for part in parts],
            "schema": base64.b64encode(batch.schema.serialize().to_pybytes()).decode(),
        }  # fmt: skip
        receipt = _kept(self.spec, SORTED, unit, b"".join(parts))
        place = Location(self.spec.url)
        place.write_atomic(f"{SORTED}/{self.spec.unit_name(unit)}.json", json.dumps(about).encode())
        return receipt

    def written(self) -> set[int]:
        """Units that are there, with what tells of them."""
        return _units(self.spec, SORTED, ".json")


@dataclass(frozen=True, eq=False)
class SortedUnits:
    """The units of the archive, gathered from what :class:`SortedWriter` kept.

    Parameters
    ----------
    spec: of the archive to be; ``edges`` as they were written.
    sources: how many units were written.
    per_unit: chunks of a unit of the archive.
    lists: where every list begins, over all units.
    dim: length of a vector.
    schema: of the segments.
    """

    spec: ArchiveSpec
    edges: tuple[int, ...]
    sources: int
    per_unit: int
    lists: Lists
    dim: int
    schema: bytes

    @property
    def units(self) -> int:
        """How many there are."""
        return -(-self.lists.chunks // self.per_unit)

    @property
    def unit_bytes(self) -> int:
        """The most bytes one takes in the stream."""
        return self.per_unit * self.lists.block * (4096 + 4 * self.dim)

    def read(self, unit: int) -> pa.Table:
        """The unit's rows in archive order: ``unit``, ``CHUNK``, ``LIST``, ``row``, ``vector``, ``id``, metadata."""
        lists, place = self.lists, Location(self.spec.url)
        first = unit * self.per_unit
        stop = min(first + self.per_unit, lists.chunks)
        low, high = int(lists.first_row[first]), int(lists.first_row[stop])
        runs = np.searchsorted(self.edges, lists.list_of[[first, stop - 1]], "right") - 1
        base = self.edges[runs[0]]
        starts, counts = self._starts(place, base, self.edges[runs[1] + 1])
        offsets = _matrix(place, "offsets", int(runs[0]), int(runs[1]) + 2, self.sources)
        wanted: list[tuple[str, int, int]] = []
        of: list[int] = []
        for run in range(int(runs[0]), int(runs[1]) + 1):
            rows = slice(self.edges[run] - base, self.edges[run + 1] - base)
            held = (counts[rows] > 0) & (starts[rows] < high) & (starts[rows] + counts[rows] > low)
            for source in np.flatnonzero(held.any(axis=0)):
                begin, end = offsets[run - runs[0] : run - runs[0] + 2, source]
                wanted.append((_key(self.spec, SORTED, int(source)), int(begin), int(end)))
                of.append(int(source))
        schema = pa.ipc.read_schema(pa.py_buffer(self.schema))
        parts, places = [], []
        for unit_of, data in zip(of, place.read_ranges(wanted), strict=True):
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            own = batch.column(LIST).to_numpy()
            within = np.arange(len(own)) - np.searchsorted(own, own)
            where = starts[own - base, unit_of] + within
            mine = np.flatnonzero((where >= low) & (where < high))
            parts.append(batch.take(pa.array(mine)))
            places.append(where[mine])
        where = np.concatenate(places)
        order = np.argsort(where)
        table = pa.Table.from_batches(parts).take(pa.array(order))
        if not np.array_equal(where[order], np.arange(low, high)):
            raise HilbertflowError(f"rows of unit {unit} are missing in scratch", where=self.spec.url,
                                   remedy="remove the archive and run again")  # fmt: skip
        chunks = np.repeat(np.arange(first, stop), np.diff(lists.first_row[first : stop + 1]))
        table = table.append_column("unit", pa.array(np.full(high - low, unit), pa.int64()))
        return table.append_column(CHUNK, pa.array(chunks, pa.int64()))

    def _starts(self, place: Location, low: int, high: int) -> tuple[I64, I64]:
        """For lists ``low`` … ``high - 1``, the first place (lists, units) of each unit's rows, and their number."""
        counts = _matrix(place, "counts", low, high, self.sources)
        return self.lists.borders[low:high, None] + np.cumsum(counts, axis=1) - counts, counts


def gather(writer: SortedWriter, sources: int, per_unit: int, block: int, dim: int) -> SortedUnits:
    """What the units that a writer kept make together; two small tables are left for those who read them."""
    spec, place = writer.spec, Location(writer.spec.url)
    counts = np.zeros((writer.edges[-1], sources), np.int64)
    offsets = np.zeros((len(writer.edges), sources), np.int64)
    schema = b""
    for unit, about in _abouts(spec, sources):
        counts[about["lists"], unit] = about["counts"]
        offsets[1:, unit] = np.cumsum(about["sizes"])
        schema = base64.b64decode(about["schema"])
    for name, values in (("counts", counts), ("offsets", offsets)):
        place.write_atomic(f"{SORTED}.{name}", values.astype("<i8").tobytes())
    borders = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int64)
    return SortedUnits(spec, writer.edges, sources, per_unit, Lists(borders, block), dim, schema)


def segment_edges(lists: int, units: int) -> tuple[int, ...]:
    """Runs of lists, about as many as units of the archive."""
    return tuple(sorted({lists * k // units for k in range(units + 1)}))


def _abouts(spec: ArchiveSpec, sources: int) -> Iterator[tuple[int, dict[str, Any]]]:
    place = Location(spec.url)
    for first in range(0, sources, 64):
        names = {f"{SORTED}/{spec.unit_name(unit)}.json": unit for unit in range(first, min(sources, first + 64))}
        for key, data in place.read_many(list(names)).items():
            yield names[key], json.loads(data)


def _matrix(place: Location, name: str, low: int, high: int, width: int) -> I64:
    data = place.read(f"{SORTED}.{name}", 8 * low * width, 8 * high * width)
    return np.frombuffer(data, "<i8").reshape(high - low, width).astype(np.int64)


def _plain(table: pa.Table) -> pa.Table:
    """The table with dictionaries resolved: segments and slices stand alone."""
    for at, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(at, column.name, table.column(at).cast(column.type.value_type))
    return table


def _key(spec: ArchiveSpec, folder: str, unit: int) -> str:
    return f"{folder}/{spec.unit_name(unit)}.arrow"


def _kept(spec: ArchiveSpec, folder: str, unit: int, data: bytes) -> Receipt:
    key = _key(spec, folder, unit)
    Location(spec.url).write_atomic(key, data)
    return Receipt(unit, [Object.of(key, data, unit)], {}, 0)


def _units(spec: ArchiveSpec, folder: str, suffix: str = ".arrow") -> set[int]:
    names = Location(spec.url).children(folder)
    found = {int(name[:8]) for name in names if name.endswith(suffix) and name[:8].isdigit()}
    return {unit for unit in found if f"{spec.unit_name(unit)}{suffix}" in names}
