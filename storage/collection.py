"""A collection in the archive: rows of vectors with ids and metadata, read by range or by row number, at any level."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import HilbertflowError
from operators.scales import loaded
from storage.archive import Archive, Level

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class CollectionArchive(Archive):
    """Rows by number, their position in the archive."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.attributes["rows"])

    def __len__(self) -> int:
        return self.count

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.attributes["dim"])

    @property
    def metric(self) -> Literal["ip", "l2", "cosine"]:
        """How rows are compared."""
        metric: Literal["ip", "l2", "cosine"] = self.attributes["metric"]
        return metric

    @property
    def encoder(self) -> str:
        """The model directory that embedded the texts, as the recipe names it; empty for a source of vectors."""
        return str(self.attributes.get("encoder", ""))

    def read(self, start: int, stop: int, level: Level = "exact") -> F32:
        """Rows ``start … stop - 1`` as (stop - start, dim) float32."""
        level = self.check_level(level)
        if not 0 <= start <= stop <= self.count:
            raise HilbertflowError(f"rows {start} to {stop} of {self.count}", where=self.url)
        parts = [block for _, block in self._blocks(start, stop, level)]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def take(self, rows: I64, level: Level = "exact") -> F32:
        """The rows of these numbers, in this order; each block that holds any is fetched once."""
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        out = np.empty((len(rows), self.dim), np.float32)
        height = self._height
        blocks = rows // height
        for block in np.unique(blocks):
            members = np.flatnonzero(blocks == block)
            values = self.read(int(block) * height, min(self.count, (int(block) + 1) * height), level)
            out[members] = values[rows[members] - block * height]
        return out

    def iter_batches(self, level: Level = "exact", batch_rows: int = 4096) -> Iterator[F32]:
        """All rows in order, at most ``batch_rows`` at a time."""
        step = max(self._height, batch_rows - batch_rows % self._height)
        for start in range(0, self.count, step):
            yield self.read(start, min(self.count, start + step), level)

    def ids(self, start: int, stop: int) -> pa.Array:
        """Ids of rows ``start … stop - 1``."""
        return self.table(start, stop, ("id",)).column("id").combine_chunks()

    def table(self, start: int, stop: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """Ids and metadata of a range of rows, or some of their columns."""
        per_unit, parts = self._per_unit, []
        for unit in range(start // per_unit, -(-stop // per_unit)):
            base = unit * per_unit
            low, high = max(start, base) - base, min(stop, base + per_unit) - base
            part = self._rows(unit)
            parts.append((part.select(list(columns)) if columns else part).slice(low, high - low))
        return pa.concat_tables(parts) if parts else self._rows(0).slice(0, 0)

    def metadata(self, rows: I64) -> pa.Table:
        """Ids and metadata of the rows of these numbers, in this order."""
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        units = rows // self._per_unit
        order = np.argsort(units, kind="stable")
        parts = [
            self._rows(int(unit)).take(pa.array(rows[order][units[order] == unit] - unit * self._per_unit))
            for unit in np.unique(units)
        ]
        if not parts:
            return self._rows(0).slice(0, 0)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(pa.array(back))

    def row_of(self, name: str) -> int:
        """Number of the row with this id; raises when there is none."""
        for unit in range(-(-self.count // self._per_unit)):
            at = self._rows(unit).column("id").index(pa.scalar(name)).as_py()
            if at >= 0:
                return unit * self._per_unit + int(at)
        raise HilbertflowError(f"no row has the id {name!r}", where=self.url)

    @property
    def _height(self) -> int:
        return int(self.attributes["block"])

    @property
    def _per_unit(self) -> int:
        return int(self.attributes["per_unit"]) * self._height

    @cached_property
    def _rows(self) -> Any:
        def load(unit: int) -> pa.Table:
            return pq.read_table(io.BytesIO(self.place.read(f"rows/{unit:08d}.parquet")))

        return lru_cache(maxsize=64)(load)

    @cached_property
    def _checksums(self) -> npt.NDArray[np.uint32]:
        table = pq.read_table(io.BytesIO(self.place.read("planes.parquet")), columns=["crc"])
        return np.asarray(table.column("crc").to_numpy(), np.uint32)

    def _check_rows(self, rows: I64) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= self.count):
            raise HilbertflowError(f"a row number is outside 0 … {self.count - 1}", where=self.url)

    def _blocks(self, start: int, stop: int, level: Level) -> Iterator[tuple[int, F32]]:
        ladder, height = self.ladder, self._height
        depth = ladder.refinements + 1 if level == "exact" else int(level) + 1
        first, last = start // height, -(-stop // height)
        if first >= last:
            return
        span = slice(first * height, min(last * height, self.count))
        arrays = [self.part(f"level{k}", span) for k in range(depth)]
        exact = self.part("exact", span) if level == "exact" else None
        codes = loaded(self.part("scales", slice(first, last)))
        for block in range(first, last):
            rows = slice((block - first) * height, (block - first + 1) * height)
            levels = [_padded(array[rows], height) for array in arrays]
            if exact is None:
                values = ladder.values(levels, codes[block - first], "F32")
            else:
                words = ladder.bits(levels, codes[block - first], _padded(exact[rows], height), "F32")
                if google_crc32c.value(words.tobytes()) != self._checksums[block]:
                    raise HilbertflowError(
                        f"rows {block * height} and on do not decode to their source's bytes", where=self.url,
                        remedy="`hilbertflow verify` names damaged objects",
                    )  # fmt: skip
                values = words.view(np.float32).reshape(height, self.dim)
            base = block * height
            yield block, values[max(start - base, 0) : min(stop - base, height)]


def _padded(rows: npt.NDArray[Any], height: int) -> npt.NDArray[Any]:
    if len(rows) == height:
        return rows
    full = np.zeros((height, rows.shape[1]), rows.dtype)
    full[: len(rows)] = rows
    return full
