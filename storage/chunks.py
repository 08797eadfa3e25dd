"""Where the rows of a collection lie: lists, chunks of rows, and the bytes of every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lists:
    """How rows fall into lists and chunks: a list begins with a chunk, its last chunk may be short.

    Parameters
    ----------
    borders: int64 (K + 1,), the first row of every list, in archive order, and the number of rows.
    block: rows of a whole chunk.
    """

    borders: I64
    block: int

    @cached_property
    def first_chunk(self) -> I64:
        """(K + 1,), the first chunk of every list, and the number of chunks."""
        chunks = -(-np.diff(self.borders) // self.block)
        return np.concatenate([[0], np.cumsum(chunks)]).astype(np.int64)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return int(self.first_chunk[-1])

    @cached_property
    def list_of(self) -> I32:
        """(C,), the list of every chunk."""
        return np.repeat(np.arange(len(self.borders) - 1, dtype=np.int32), np.diff(self.first_chunk))

    @cached_property
    def first_row(self) -> I64:
        """(C + 1,), the first row of every chunk, and the number of rows."""
        within = np.arange(self.chunks) - self.first_chunk[self.list_of]
        return np.append(self.borders[self.list_of] + within * self.block, self.borders[-1])

    def chunk_of(self, rows: npt.NDArray[np.integer[Any]]) -> I64:
        """The chunk of each row."""
        return np.asarray(np.searchsorted(self.first_row, rows, "right") - 1, np.int64)


@dataclass(frozen=True, eq=False)
class ChunkTable(Lists):
    """The chunks of a finished collection, without one look at a shard's own index.

    Parameters
    ----------
    per_unit: chunks in one object of every array.
    sizes: int32 (C,) by array: bytes of each chunk, its crc32c included.
    crc: uint32 (C,), CRC-32C of the chunk's rows as float32.
    residual: float32 (C,), squared distance of the chunk's rows to their centroid, summed.
    crc_rows: uint32 (C,), CRC-32C of the table of ids and metadata of the chunk's unit.
    """

    per_unit: int
    sizes: dict[str, I32]
    crc: npt.NDArray[np.uint32]
    residual: npt.NDArray[np.float32]
    crc_rows: npt.NDArray[np.uint32]

    @cached_property
    def offsets(self) -> dict[str, I64]:
        """(C,) by array: where each chunk begins in its unit's object."""
        return {name: self._offsets(sizes) for name, sizes in self.sizes.items()}

    @property
    def whole(self) -> bool:
        """Whether there is a row of the table for every chunk, and every list has its rows."""
        counts = {len(self.crc), len(self.crc_rows), len(self.residual), *map(len, self.sizes.values())}
        return counts == {self.chunks} and bool((np.diff(self.borders) >= 0).all()) and self.per_unit > 0

    def unit_of(self, chunks: npt.NDArray[np.integer[Any]]) -> I64:
        """The unit of each chunk."""
        return np.asarray(chunks, np.int64) // self.per_unit

    def unit_rows(self, unit: int) -> tuple[int, int]:
        """First row of a unit, and of the next."""
        low = min(unit * self.per_unit, self.chunks)
        return int(self.first_row[low]), int(self.first_row[min(low + self.per_unit, self.chunks)])

    def _offsets(self, sizes: I32) -> I64:
        ends = np.cumsum(sizes, dtype=np.int64)
        before = ends - sizes
        return before - before[np.arange(len(sizes)) // self.per_unit * self.per_unit]


def chunk_table(lists: Lists, per_unit: int, planes: pa.Table) -> ChunkTable:
    """From the lists and what ``planes.parquet`` holds, a row a chunk."""
    sizes = {
        name.removeprefix("bytes_"): planes.column(name).to_numpy().astype(np.int32)
        for name in planes.column_names
        if name.startswith("bytes_")
    }
    return ChunkTable(
        borders=lists.borders, block=lists.block, per_unit=per_unit, sizes=sizes,
        crc=planes.column("crc").to_numpy().astype(np.uint32),
        residual=planes.column("residual").to_numpy().astype(np.float32),
        crc_rows=planes.column("crc_rows").to_numpy().astype(np.uint32),
    )  # fmt: skip


def spans(starts: I64, stops: I64) -> I64:
    """Whole numbers of ranges, one range after the other."""
    sizes = stops - starts
    shift: I64 = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    return np.arange(int(sizes.sum()), dtype=np.int64) + shift
