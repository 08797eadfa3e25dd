"""A collection in the archive: rows of vectors with ids and metadata, read by range or by row number, at any level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.coders import Coder
from operators.errors import HilbertflowError
from operators.rowcode import RowCode
from storage import code_arrays, id_frames
from storage.chunks import ChunkTable, Lists, chunk_table, spans
from storage.codecs import coder_of
from storage.handle import Archive, Level, damaged, read_table
from storage.ranges import coalesced

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

GAP = 8192
"""Bytes between two chunks that are read over rather than asked for apart."""
_DECODED = 2048  # rows that are decoded at a time
_DTYPES = {"cells": np.dtype(np.int32), "exact": np.dtype(np.uint32)}


class CollectionArchive(Archive):
    """Rows by number, their position in the archive: list by list, where there are lists."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self._told("rows"))

    def __len__(self) -> int:
        return self.count

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._told("dim"))

    @property
    def metric(self) -> Literal["ip", "l2", "cosine"]:
        """How rows are compared."""
        metric: Literal["ip", "l2", "cosine"] = self._told("metric")
        return metric

    @property
    def encoder(self) -> str:
        """The model directory that embedded the texts, as the recipe names it; empty for a source of vectors."""
        return str(self.attributes.get("encoder", ""))

    @property
    def encoder_digest(self) -> str:
        """Hash of the encoder's files; empty where it is not known."""
        return str(self.attributes.get("encoder_digest", ""))

    @property
    def pictures(self) -> str:
        """The folder of the pictures that the rows were made of; empty where they were made of something else."""
        source = self.manifest.recipe.get("source", {})
        given = source.get("path", "") if source.get("kind") == "images" else ""
        return str(self.attributes.get("pictures") or given)

    @property
    def encoder_tokens(self) -> int:
        """Tokens behind which the rows' texts were cut, as queries have to be; 0 is the encoder's own limit."""
        said = self.manifest.recipe.get("operators", ())
        return next((int(operator["max_tokens"]) for operator in said if operator.get("kind") == "embed"), 0)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels that can be asked for, coarse to fine."""
        return (*range(self._told("depth")), "exact")

    @property
    def code(self) -> RowCode:
        """How the rows are coded."""
        return self._opened[0]

    @property
    def chunks(self) -> ChunkTable:
        """Lists, chunks and their bytes."""
        return self._opened[1]

    @property
    def centroids(self) -> F32:
        """(K, d) float32, of the lists along the tour; (1, d), the mean, where there are none."""
        return self.code.centres

    @property
    def borders(self) -> I64:
        """(K + 1,) int64: the first row of every list, and the number of rows."""
        return self.chunks.borders

    @property
    def sorted(self) -> bool:
        """Whether rows lie in another order than the source's."""
        return len(self.code.centroids) > 0

    def coder(self, name: str) -> Coder:
        """The coder of an array, with the tables that its chunks share."""
        return self._opened[2][name]

    def read(self, start: int, stop: int, level: Level = "exact") -> F32:
        """Rows ``start … stop - 1`` as (stop - start, dim) float32."""
        level = self.check_level(level)
        if not 0 <= start <= stop <= self.count:
            raise HilbertflowError(f"rows {start} to {stop} of {self.count}", where=self.url)
        if start == stop:
            return np.empty((0, self.dim), np.float32)
        first, last = self.chunks.chunk_of(np.array([start, stop - 1]))
        rows = self.decoded(np.arange(first, last + 1), level)
        base = int(self.chunks.first_row[first])
        return np.asarray(rows[start - base : stop - base], np.float32)

    def take(self, rows: I64, level: Level = "exact") -> F32:
        """The rows of these numbers, in this order; each chunk that holds any is fetched once, all of them together."""
        level = self.check_level(level)
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        chunks, which = np.unique(self.chunks.chunk_of(rows), return_inverse=True)
        heights = np.diff(self.chunks.first_row)[chunks]
        place = np.concatenate([[0], np.cumsum(heights)])[which] + rows - self.chunks.first_row[chunks[which]]
        return np.asarray(self.decoded(chunks, level)[place], np.float32)

    def iter_batches(self, level: Level = "exact", batch_rows: int = 4096) -> Iterator[F32]:
        """All rows in order, at most ``batch_rows`` at a time, in whole chunks where these are smaller."""
        first_row, start = self.chunks.first_row, 0
        while start < self.count:
            border = int(first_row[np.searchsorted(first_row, start + batch_rows, "right") - 1])
            stop = border if border > start else min(start + batch_rows, self.count)
            yield self.read(start, stop, level)
            start = stop

    def base_blocks(self, ranges: Sequence[tuple[int, int]], level: Level = 0) -> tuple[I64, F32]:
        """Numbers (m,) and vectors (m, d) of the rows of all chunks that hold any row of the ranges (start, stop).

        Fetched in one round of a few coalesced requests.
        """
        level = self.check_level(level)
        ends = [self.chunks.chunk_of(np.array([a, b - 1])) for a, b in ranges if b > a]
        chunks = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in ends] or [np.empty(0, np.int64)]))
        return self.rows_of(chunks), self.decoded(chunks, level)

    def rows_of(self, chunks: I64) -> I64:
        """Numbers of the rows of chunks, one chunk after the other."""
        first = self.chunks.first_row
        return spans(first[chunks], first[chunks + 1])

    def decoded(self, chunks: I64, level: Level) -> F32:
        """Vectors (m, d) of all rows of the chunks (ascending numbers), one chunk after the other."""
        heights = np.diff(self.chunks.first_row)[chunks]
        out = np.empty((int(heights.sum()), self.dim), np.float32)
        pieces = np.cumsum(heights) // _DECODED
        at = 0
        for piece in range(int(pieces[-1]) + 1 if len(chunks) else 0):
            part = chunks[pieces == piece]
            if len(part):
                rows = self._decoded(part, level)
                out[at : at + len(rows)] = rows
                at += len(rows)
        return out

    def coefficients(self, chunks: I64, level: int, fetched: Mapping[str, Sequence[bytes]] | None = None) -> I32:
        """Transform coefficients (m, r) at a level, centroids included, of all rows of the chunks."""
        names = [f"level{k}" for k in range(level + 1)]
        return self.code.coefficients(self._levels(names, chunks, fetched), self._lists(chunks))

    def fetch(self, wanted: Mapping[str, I64], gap: int = GAP) -> dict[str, list[bytes]]:
        """The coded chunks of arrays by name (``ids``: frames of ids), checked, in one round of requests.

        Chunks that lie less than ``gap`` bytes apart are read by one request.
        """
        table = self.chunks
        keys: list[str] = []
        of, starts, sizes = [], [], []
        for name, chunks in wanted.items():
            chunks = np.asarray(chunks, np.int64)
            units, which = np.unique(table.unit_of(chunks), return_inverse=True)
            of.append(which + len(keys))
            ids = name == id_frames.FOLDER
            keys += [id_frames.key(unit) if ids else f"{name}/c/{unit}/0" for unit in units.tolist()]
            starts.append(table.offsets[name][chunks])
            sizes.append(table.sizes[name][chunks])
        if not keys:
            return {name: [] for name in wanted}
        owners = np.concatenate(of)
        parts = coalesced(self.place, keys, owners, np.concatenate(starts), np.concatenate(sizes), gap)
        bodies, crc_of = [part[:-4] for part in parts], google_crc32c.value
        for at, (part, body) in enumerate(zip(parts, bodies, strict=True)):
            if crc_of(body) != int.from_bytes(part[-4:], "little"):
                chunk = int(np.concatenate(list(wanted.values()))[at])
                raise HilbertflowError(
                    f"damaged in chunk {chunk}", where=f"{self.url}/{keys[owners[at]]}",
                    remedy="`hilbertflow verify` names the object",
                )  # fmt: skip
        ends = np.cumsum([len(chunks) for chunks in wanted.values()]).tolist()
        return {name: bodies[end - len(wanted[name]) : end] for name, end in zip(wanted, ends, strict=True)}

    def symbols(self, name: str, data: bytes, rows: int) -> npt.NDArray[Any]:
        """The integers (rows, width) of one coded chunk that holds ``rows`` rows."""
        shape = (self.chunks.block, self.code.width(name))
        return self.coder(name).decode(data, shape, _DTYPES.get(name, np.dtype(np.int16)))[:rows]

    def chunk_ids(self, data: bytes, rows: int) -> list[str]:
        """The ids of one fetched frame of a chunk that holds ``rows`` rows."""
        return id_frames.unpack(data, rows)

    def ids(self, start: int, stop: int) -> pa.Array:
        """Ids of rows ``start … stop - 1``."""
        return self.table(start, stop, ("id",)).column("id").combine_chunks()

    def source_rows(self, start: int, stop: int) -> I64:
        """Numbers in the source of rows ``start … stop - 1``."""
        if not self.sorted:
            return np.arange(start, stop)
        parts = [part.column("row").to_numpy() for part in self._parts(start, stop)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def table(self, start: int, stop: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """Ids and metadata of a range of rows, or some of their columns."""
        parts = [_shown(part) for part in self._parts(start, stop)] or [_shown(self._rows(0)).slice(0, 0)]
        return pa.concat_tables(part.select(list(columns)) if columns else part for part in parts)

    def metadata(self, rows: I64) -> pa.Table:
        """Ids and metadata of the rows of these numbers, in this order."""
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        units = self.chunks.unit_of(self.chunks.chunk_of(rows))
        order = np.argsort(units, kind="stable")
        parts = [_shown(self._rows(0)).slice(0, 0)]
        for unit in np.unique(units):
            first, _ = self.chunks.unit_rows(int(unit))
            parts.append(_shown(self._rows(int(unit))).take(pa.array(rows[order][units[order] == unit] - first)))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(pa.array(back))

    def row_of(self, name: str) -> int:
        """Number of the row with this id; raises when there is none."""
        for unit in range(self.manifest.units):
            at = self._rows(unit).column("id").index(pa.scalar(name)).as_py()
            if at >= 0:
                return self.chunks.unit_rows(unit)[0] + int(at)
        raise HilbertflowError(f"no row has the id {name!r}", where=self.url)

    @cached_property
    def _opened(self) -> tuple[RowCode, ChunkTable, dict[str, Coder]]:
        """Everything that a read goes by, in one round of requests."""
        try:
            code, table, coders = self._open()
        except HilbertflowError:
            raise
        except (KeyError, ValueError, TypeError) as error:
            raise damaged(self.place, "zarr.json") from error
        if (
            table.borders[-1] != self.count
            or not table.whole
            or set(coders) != {n for n in code.names if code.width(n)}
        ):
            raise damaged(self.place, "planes.parquet")
        return code, table, coders

    def _open(self) -> tuple[RowCode, ChunkTable, dict[str, Coder]]:
        about = self.attributes
        documents = {name: f"{name}/zarr.json" for name in about["arrays"]}
        held = self.heads([*about["code_objects"], "planes.parquet", *documents.values()])
        arrays = code_arrays.load(held, self.url)
        sizes = arrays.pop("sizes")
        lists = Lists(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), about["block"])
        planes = read_table(self.place, "planes.parquet", held["planes.parquet"])
        coders = {name: coder_of(held[key], f"{self.url}/{key}") for name, key in documents.items()}
        return RowCode.from_arrays(arrays, about["code"]), chunk_table(lists, about["per_unit"], planes), coders

    @cached_property
    def _rows(self) -> Any:
        def load(unit: int) -> pa.Table:
            key = f"rows/{unit:08d}.parquet"
            data = self.place.read(key)
            if google_crc32c.value(data) != self.chunks.crc_rows[unit * self.chunks.per_unit]:
                raise damaged(self.place, key)
            return read_table(self.place, key, data)

        return lru_cache(maxsize=64)(load)

    def _parts(self, start: int, stop: int) -> Iterator[pa.Table]:
        if start >= stop:
            return
        first, last = self.chunks.unit_of(self.chunks.chunk_of(np.array([start, stop - 1])))
        for unit in range(int(first), int(last) + 1):
            base, end = self.chunks.unit_rows(unit)
            low = max(start, base)
            yield self._rows(unit).slice(low - base, min(stop, end) - low)

    def _told(self, name: str) -> Any:
        if name not in self.attributes:
            raise damaged(self.place, "zarr.json")
        return self.attributes[name]

    def _check_rows(self, rows: I64) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= self.count):
            raise HilbertflowError(f"a row number is outside 0 … {self.count - 1}", where=self.url)

    def _lists(self, chunks: I64) -> I32 | None:
        if not self.sorted:
            return None
        return np.repeat(self.chunks.list_of[chunks], np.diff(self.chunks.first_row)[chunks])

    def _levels(
        self, names: Sequence[str], chunks: I64, fetched: Mapping[str, Sequence[bytes]] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        heights = np.diff(self.chunks.first_row)[chunks]
        stored = [name for name in names if self.code.width(name)]
        fetched = fetched or self.fetch(dict.fromkeys(stored, chunks))
        out: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            out[name] = np.zeros((int(heights.sum()), self.code.width(name)), _DTYPES.get(name, np.int16))
            at = 0
            for data, height in zip(fetched.get(name, ()), heights, strict=False):
                out[name][at : at + height] = self.symbols(name, data, int(height))
                at += height
        return out

    def _decoded(self, chunks: I64, level: Level) -> F32:
        lists = self._lists(chunks)
        if level != "exact":
            return self.code.decode(self._levels([f"level{k}" for k in range(level + 1)], chunks), lists)
        heights = np.diff(self.chunks.first_row)[chunks]
        starts = np.cumsum(heights) - heights
        rows = self.code.decode(self._levels(self.code.names, chunks), lists, starts)
        for chunk, start, height in zip(chunks, starts, heights, strict=True):
            if google_crc32c.value(rows[start : start + height].tobytes()) != self.chunks.crc[chunk]:
                raise HilbertflowError(
                    f"rows {self.chunks.first_row[chunk]} and on do not decode to their source's bytes",
                    where=self.url, remedy="`hilbertflow verify` names damaged objects",
                )  # fmt: skip
        return rows


def _shown(table: pa.Table) -> pa.Table:
    return table.drop_columns(["row"]) if "row" in table.column_names else table
