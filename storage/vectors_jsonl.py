"""Vectors as JSON lines: one object a row, with a list of numbers, perhaps an id, and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage.damage import json_byte
from storage.fs import Location
from storage.rows import vector_array
from storage.tensors import is_unicode
from storage.vectors_npy import as_float32

_PIECE, _EVERY, _SAMPLE = 4 << 20, 256, 1000
_MAX_LINE = 64 << 20
_TYPES = {str: "string", bool: "bool", int: "int64", float: "double"}


class Spot(NamedTuple):
    """Where a row begins: the byte of the file, and the number of its line, counted from 1 as editors do."""

    byte: int
    line: int


@dataclass(frozen=True)
class JsonVectors:
    """Rows of a JSON-lines file; where every 256th begins is known, so that a read begins near its first row.

    Metadata are the fields that the first 1,000 rows have: text, numbers and booleans as they are, anything else as
    JSON text. A field that first comes later is an error, so that nothing is lost in silence.
    """

    location: Location
    spots: tuple[Spot, ...]
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
        for number, row in enumerate(rows):
            values[number] = self._vector(row, start + number)
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
        known = {self.column, self.id_column, *self.columns}
        for line, spot in self._lines(start, stop):
            parsed = parse_line(line, spot, self.location.url)
            if not parsed.keys() <= known:
                name = min(parsed.keys() - known)
                what = f"has the field {name[:60]!r}, which the first {_SAMPLE:,} rows have not"
                where = _place(self.location.url, spot)
                raise HilbertflowError(what, where=where, remedy="give all rows the same fields")
            rows.append(parsed)
        if len(rows) != stop - start:
            what = f"ends after {start + len(rows)} rows, there were {self.count}"
            where = at(self.location.url, self.location.size())
            raise HilbertflowError(what, where=where, remedy="leave it as it is while it is read")
        return rows

    def _lines(self, start: int, stop: int) -> Iterator[tuple[bytes, Spot]]:
        """The lines of rows ``start`` to ``stop``."""
        first, last = start // _EVERY, -(-stop // _EVERY)
        end = self.spots[last].byte if last < len(self.spots) else None
        data = self.location.read("", self.spots[first].byte, end)
        return islice(_rows(data, self.spots[first]), start - first * _EVERY, stop - first * _EVERY)

    def place(self, row: int, value: int = 0) -> str:
        """The file, the line of a row and the byte at which it begins."""
        _, spot = next(self._lines(row, row + 1), (b"", self.spots[row // _EVERY]))
        return _place(self.location.url, spot)

    def _vector(self, row: dict[str, Any], number: int) -> list[float]:
        value = row.get(self.column)
        if not isinstance(value, list):
            raise HilbertflowError("has no vector", where=self.place(number), remedy="remove that row")
        if len(value) != self.dim:
            what = f"has {len(value)} values, row 0 has {self.dim}"
            raise HilbertflowError(what, where=self.place(number), remedy="all vectors must be of one length")
        if not all((type(item) in (int, float) and abs(item) < 1e300) or item != item for item in value):
            raise HilbertflowError("holds what is no number", where=self.place(number), remedy="repair that row")
        return value

    def _field(self, values: list[Any], name: str, kind: str, start: int) -> pa.Array:
        fits = {"string": (str,), "bool": (bool,), "int64": (int,), "double": (int, float)}.get(kind)
        if fits is None:
            return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
        for number, value in enumerate(values):
            if value is not None and type(value) not in fits:
                what = f"has {type(value).__name__} in {name[:60]!r}, the first rows have {kind}"
                raise HilbertflowError(what, where=self.place(start + number), remedy="give a field one type")
        return self._array(values, kind, start, f"has in {name[:60]!r} what is no {kind}")

    def _ids(self, rows: list[dict[str, Any]], start: int) -> pa.Array:
        ids = []
        for number, row in enumerate(rows):
            value = row.get(str(self.id_column))
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise HilbertflowError("has no id", where=self.place(start + number), remedy="text or an integer")
            ids.append(str(value))
        return self._array(ids, "string", start, "has an id that is not valid Unicode")

    def _array(self, values: list[Any], kind: str, start: int, fault: str) -> pa.Array:
        """The values as a column; an error names the first row whose value does not fit."""
        try:
            return pa.array(values, pa.type_for_alias(kind))
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            if len(values) > 1:
                for number, value in enumerate(values):
                    self._array([value], kind, start + number, fault)
            raise HilbertflowError(f"{fault}: {error}", where=self.place(start), remedy="repair that row") from error


def open_jsonl(location: Location, column: str, id_column: str | None) -> JsonVectors:
    """Open a JSON-lines file by one pass that counts its rows, and the fields of the first 1,000."""
    spots, count = _index(location, location.size())
    if not count:
        remedy = "name a file with at least one vector"
        raise HilbertflowError("has no rows", where=at(location.url, location.size()), remedy=remedy)
    sample, first = _sample(location, spots, count), _place(location.url, spots[0])
    lists = [name for name, value in sample[0].items() if _is_vector(value)]
    name = column if column in sample[0] else lists[0] if column == "vector" and len(lists) == 1 else ""
    if not name or not isinstance(sample[0][name], list):
        what = f"has no list of numbers called {column!r}"
        remedy = f"set source.column to one of {', '.join(lists)}" if lists else "no field of it is a list of numbers"
        raise HilbertflowError(what, where=first, remedy=remedy)
    if id_column is not None and id_column not in sample[0]:
        raise HilbertflowError(f"has no field {id_column!r} for ids", where=first)
    ids = id_column if id_column is not None else "id" if "id" in sample[0] and name != "id" else None
    kinds: dict[str, set[type]] = {}
    for row in sample:
        for key, value in row.items():
            if key not in (name, ids):
                kinds.setdefault(key, set()).add(type(value))
    fields = tuple((key, _kind(types - {type(None)})) for key, types in kinds.items())
    return JsonVectors(location, spots, count, len(sample[0][name]), name, ids, fields)


def _kind(types: set[type]) -> str:
    if types == {int, float}:
        return "double"
    return _TYPES.get(next(iter(types)), "json") if len(types) == 1 else "json"


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) in (int, float) for item in value)


def _place(url: str, spot: Spot) -> str:
    return at(url, f"line {spot.line}", spot.byte)


def _rows(data: bytes, spot: Spot) -> Iterator[tuple[bytes, Spot]]:
    """The lines that are rows: those that are not blank. ``spot`` is where ``data`` begins."""
    byte = spot.byte
    for number, line in enumerate(data.split(b"\n"), spot.line):
        if line.strip():
            yield line, Spot(byte, number)
        byte += len(line) + 1


def _sample(location: Location, spots: tuple[Spot, ...], count: int) -> list[dict[str, Any]]:
    last = -(-min(count, _SAMPLE) // _EVERY)
    data = location.read("", spots[0].byte, spots[last].byte if last < len(spots) else None)
    sample = []
    for line, spot in islice(_rows(data, spots[0]), _SAMPLE):
        sample.append(parse_line(line, spot, location.url))
        if not all(is_unicode(key) for key in sample[-1]):
            raise HilbertflowError("a field has a name that is not valid Unicode", where=_place(location.url, spot))
    return sample


@lru_cache(maxsize=16)
def _index(location: Location, size: int) -> tuple[tuple[Spot, ...], int]:
    """Where every 256th row begins, and the number of rows; blank lines are no rows."""
    spots, count, end, rest, above = [], 0, 0, b"", 0
    while end < size:
        data = rest + location.read("", end, min(size, end + _PIECE))
        end = min(size, end + _PIECE)
        lines = data.split(b"\n")
        rest = lines.pop() if end < size else b""
        begin = end - len(data)
        for line in lines:
            above += 1
            if line.strip():
                if count % _EVERY == 0:
                    spots.append(Spot(begin, above))
                count += 1
            begin += len(line) + 1
        if len(rest) > _MAX_LINE:
            what = f"is longer than {_MAX_LINE >> 20} MiB"
            raise HilbertflowError(what, where=_place(location.url, Spot(begin, above + 1)))
    return tuple(spots), count


def parse_line(line: bytes, spot: Spot, url: str) -> dict[str, Any]:
    """One row; raises when it is not a JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        where = at(url, f"line {spot.line}", spot.byte + json_byte(error))
        raise HilbertflowError(f"is not JSON: {str(error)[:100]}", where=where, remedy="repair it") from error
    if not isinstance(value, dict):
        remedy = 'expected {"vector": […], …}'
        raise HilbertflowError("is not a JSON object", where=_place(url, spot), remedy=remedy)
    return value
