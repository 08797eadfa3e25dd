"""Vectors as JSON lines: one object a row, with a list of numbers, perhaps an id, and metadata."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.rows import vector_array
from storage.vectors_npy import as_float32

_PIECE, _EVERY, _SAMPLE = 4 << 20, 256, 1000
_MAX_LINE = 64 << 20
_TYPES = {str: "string", bool: "bool", int: "int64", float: "double"}


@dataclass(frozen=True)
class JsonVectors:
    """Rows of a JSON-lines file; every 256th line's offset is known, so that a read begins near its first row.

    Metadata are the fields that the first 1,000 rows have: text, numbers and booleans as they are, anything else as
    JSON text. A field that first comes later is an error, so that nothing is lost in silence.
    """

    location: Location
    offsets: tuple[int, ...]
    count: int
    dim: int
    column: str
    id_column: str | None
    fields: tuple[tuple[str, str], ...]

    @property
    def has_ids(self) -> bool:
        """Whether rows have an id."""
        return self.id_column is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metadata fields."""
        return tuple(name for name, _ in self.fields)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows with ``vector``, ``id`` where there is one, and the metadata fields."""
        rows = self._rows(start, stop)
        values = np.empty((len(rows), self.dim), np.float64)
        for at, row in enumerate(rows):
            values[at] = self._vector(row, start + at)
        columns: dict[str, Any] = {"vector": vector_array(as_float32(values))}
        for name, kind in self.fields:
            columns[name] = self._field([row.get(name) for row in rows], name, kind, start)
        if self.has_ids:
            columns["id"] = self._ids(rows, start)
        return pa.table(columns)

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """Ids of the rows as strings."""
        return self._ids(self._rows(start, stop), start)

    def _rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        if start == stop:
            return []
        rows = []
        first, last = start // _EVERY, -(-stop // _EVERY)
        end = self.offsets[last] if last < len(self.offsets) else None
        data = self.location.read("", self.offsets[first], end)
        known = {self.column, self.id_column, *self.columns}
        lines = (line for line in data.split(b"\n") if line.strip())
        for row, line in enumerate(itertools.islice(lines, start - first * _EVERY, stop - first * _EVERY), start):
            parsed = parse_line(line, row, self.location.url)
            if not parsed.keys() <= known:
                name = min(parsed.keys() - known)
                what = f"row {row} has the field {name[:60]!r}, which the first {_SAMPLE:,} rows have not"
                raise HilbertflowError(what, where=self.location.url, remedy="give all rows the same fields")
            rows.append(parsed)
        if len(rows) != stop - start:
            raise HilbertflowError(
                f"ends after row {start + len(rows)}", where=self.location.url, remedy="copy it again"
            )
        return rows

    def _vector(self, row: dict[str, Any], at: int) -> list[float]:
        value = row.get(self.column)
        if not isinstance(value, list):
            raise HilbertflowError(f"row {at} has no vector", where=self.location.url, remedy="remove that row")
        if len(value) != self.dim:
            what = f"row {at} has {len(value)} values, row 0 has {self.dim}"
            raise HilbertflowError(what, where=self.location.url, remedy="all vectors must be of one length")
        if not all((type(item) in (int, float) and abs(item) < 1e300) or item != item for item in value):
            raise HilbertflowError(
                f"row {at} holds what is no number", where=self.location.url, remedy="repair that row"
            )
        return value

    def _field(self, values: list[Any], name: str, kind: str, start: int) -> pa.Array:
        fits = {"string": (str,), "bool": (bool,), "int64": (int,), "double": (int, float)}.get(kind)
        if fits is None:
            return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
        for at, value in enumerate(values):
            if value is not None and type(value) not in fits:
                what = f"row {start + at} has {type(value).__name__} in {name[:60]!r}, the first rows have {kind}"
                raise HilbertflowError(what, where=self.location.url, remedy="give a field one type")
        try:
            return pa.array(values, pa.type_for_alias(kind))
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            what = f"rows {start} to {start + len(values)} have in {name[:60]!r} what is no {kind}: {error}"
            raise HilbertflowError(what, where=self.location.url) from error

    def _ids(self, rows: list[dict[str, Any]], start: int) -> pa.Array:
        ids = []
        for at, row in enumerate(rows):
            value = row.get(str(self.id_column))
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise HilbertflowError(
                    f"row {start + at} has no id", where=self.location.url, remedy="text or an integer"
                )
            ids.append(str(value))
        try:
            return pa.array(ids, pa.string())
        except UnicodeError as error:
            what = f"an id among rows {start} to {start + len(rows)} is not valid Unicode"
            raise HilbertflowError(what, where=self.location.url) from error


def open_jsonl(location: Location, column: str, id_column: str | None) -> JsonVectors:
    """Open a JSON-lines file by one pass that counts its rows, and the fields of the first 1,000."""
    offsets, count = _index(location, location.size())
    if not count:
        raise HilbertflowError("has no rows", where=location.url, remedy="name a file with at least one vector")
    sample = _sample(location, offsets, count)
    lists = [name for name, value in sample[0].items() if _is_vector(value)]
    name = column if column in sample[0] else lists[0] if column == "vector" and len(lists) == 1 else ""
    if not name or not isinstance(sample[0][name], list):
        what = f"row 0 has no list of numbers called {column!r}"
        remedy = f"set source.column to one of {', '.join(lists)}" if lists else "no field of it is a list of numbers"
        raise HilbertflowError(what, where=location.url, remedy=remedy)
    if id_column is not None and id_column not in sample[0]:
        raise HilbertflowError(f"row 0 has no field {id_column!r} for ids", where=location.url)
    ids = id_column if id_column is not None else "id" if "id" in sample[0] and name != "id" else None
    if not all(key.isprintable() or key.encode("utf-8", "ignore").decode() == key for row in sample for key in row):
        raise HilbertflowError("a field has a name that is not valid Unicode", where=location.url)
    kinds: dict[str, set[type]] = {}
    for row in sample:
        for key, value in row.items():
            if key not in (name, ids):
                kinds.setdefault(key, set()).add(type(value))
    fields = tuple((key, _kind(types - {type(None)})) for key, types in kinds.items())
    return JsonVectors(location, offsets, count, len(sample[0][name]), name, ids, fields)


def _kind(types: set[type]) -> str:
    if types == {int, float}:
        return "double"
    return _TYPES.get(next(iter(types)), "json") if len(types) == 1 else "json"


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) in (int, float) for item in value)


def _sample(location: Location, offsets: tuple[int, ...], count: int) -> list[dict[str, Any]]:
    last = -(-min(count, _SAMPLE) // _EVERY)
    data = location.read("", offsets[0], offsets[last] if last < len(offsets) else None)
    lines = [line for line in data.split(b"\n") if line.strip()][:_SAMPLE]
    return [parse_line(line, row, location.url) for row, line in enumerate(lines)]


@lru_cache(maxsize=16)
def _index(location: Location, size: int) -> tuple[tuple[int, ...], int]:
    """Offsets of every 256th row and the number of rows; blank lines are no rows."""
    offsets, count, at, rest = [], 0, 0, b""
    while at < size:
        data = rest + location.read("", at, min(size, at + _PIECE))
        at = min(size, at + _PIECE)
        lines = data.split(b"\n")
        rest = lines.pop() if at < size else b""
        if len(rest) > _MAX_LINE:
            raise HilbertflowError(f"row {count} is longer than {_MAX_LINE >> 20} MiB", where=location.url)
        begin = at - len(data)
        for line in lines:
            if line.strip():
                if count % _EVERY == 0:
                    offsets.append(begin)
                count += 1
            begin += len(line) + 1
    return tuple(offsets), count


def parse_line(line: bytes, row: int, where: str) -> dict[str, Any]:
    """One row; raises when it is not a JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HilbertflowError(f"row {row} is not JSON: {str(error)[:100]}", where=where, remedy="repair it") from error
    if not isinstance(value, dict):
        raise HilbertflowError(f"row {row} is not a JSON object", where=where, remedy='expected {"vector": […], …}')
    return value
