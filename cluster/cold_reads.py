"""What searches in place read: chunks of a collection's arrays, decoded, from memory where they are kept.

A level's rows are kept as they are scored (:mod:`cluster.level_pool`), the rest as it was read. Where the bound cannot
hold all levels, each may have half of what those before it left: coarse ones are asked for most often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cluster.chunk_cache import CACHE_BYTES, ChunkCache
from cluster.level_pool import LevelPool
from cluster.split_work import in_parts
from cluster.vectors import I64
from operators import rans_many, rowtrellis
from operators.coders import RansCoder
from operators.rans_bits import DIRECT
from operators.rans_tables import Tables
from operators.rowscan import Index
from storage.chunks import spans
from storage.collection import CollectionArchive

GAP, AHEAD = 4096, 65_536
"""Bytes between two chunks that are read over rather than asked for apart, and where all will be kept in the end."""

LEVELS_SHARE = 7 / 8
"""Of the bound, that all levels together may take and leave enough for other arrays."""


class ColdReads:
    """Reads of one collection. hits: chunks that were not read since they are kept.

    cache: bytes that may be kept.
    """

    def __init__(self, collection: CollectionArchive, cache: int = CACHE_BYTES) -> None:
        self._collection, self._limit = collection, cache
        self._level_hits = 0

    @property
    def hits(self) -> int:
        """Chunks that memory had."""
        return self._level_hits + self._others.hits

    def read(self, wanted: Mapping[str, I64], ahead: bool) -> tuple[dict[str, Index], dict[str, list[bytes]]]:
        """Chunks (ascending) of arrays by name, in one round of requests for what is not kept.

        ahead: read over more between two chunks, for later searches, where all of a level can be kept. Returns the
        lattice indices of levels, the rows of a level's chunks one below the other, and the chunks of all other arrays
        as archived.
        """
        levels = {name: chunks for name, chunks in wanted.items() if name.startswith("level")}
        others = {name: chunks for name, chunks in wanted.items() if name not in levels}
        gap = AHEAD if ahead and not others and all(self._pools[name].whole for name in levels) else GAP
        asked = {name: self._asked(name, chunks, gap) for name, chunks in levels.items()}
        lacking = self._others.absent(others)
        ask = lacking | {name: chunks for name, chunks in asked.items() if len(chunks)}
        came = self._collection.fetch(ask, gap) if ask else {}
        found = {}
        for name, chunks in levels.items():
            heights = self._heights(asked[name])
            new = self._index(name, came.get(name, ()), heights)
            found[name] = self._pools[name].complete(chunks, self._heights(chunks), asked[name], heights, new)
        return found, self._others.complete(others, lacking, came)

    @cached_property
    def _pools(self) -> dict[str, LevelPool]:
        table, code = self._collection.chunks, self._collection.code
        pools, left = {}, self._limit
        need = {
            name: table.chunks * table.block * code.width(name) * self._dtype(name).itemsize
            for name in code.names[: code.depth]
            if code.width(name)
        }
        all_fit = sum(need.values()) <= LEVELS_SHARE * left
        for name, size in need.items():
            limit = size if all_fit else min(size, left // 2)
            pools[name] = LevelPool(table.chunks, table.block, code.width(name), self._dtype(name), limit)
            left -= pools[name].limit
        return pools

    @cached_property
    def _others(self) -> ChunkCache:
        return ChunkCache(self._limit - sum(pool.limit for pool in self._pools.values()))

    def _dtype(self, name: str) -> np.dtype[Any]:
        """What holds the indices of nearly all chunks of a level."""
        tables = self._tables(name)
        return np.dtype(np.int16) if tables is None or tables.top >= DIRECT else _holds(tables.top + 1 >> 1)

    def _tables(self, name: str) -> Tables | None:
        coder = self._collection.coder(name)
        return Tables.from_bytes(coder.tables) if isinstance(coder, RansCoder) and coder.tables else None

    def _heights(self, chunks: I64) -> I64:
        first = self._collection.chunks.first_row
        return first[chunks + 1] - first[chunks]

    def _asked(self, name: str, chunks: I64, gap: int) -> I64:
        """Which chunks of a level to read: those that are not kept, and what is read over between two of them."""
        pool = self._pools[name]
        absent = pool.absent(chunks)
        self._level_hits += len(chunks) - len(absent)
        if not pool.limit or len(absent) < 2:
            return absent
        table = self._collection.chunks
        low, high = absent[:-1], absent[1:]
        hole = table.offsets[name][high] - table.offsets[name][low] - table.sizes[name][low]
        over = (table.unit_of(low) == table.unit_of(high)) & (hole <= gap)
        between = spans(low[over] + 1, high[over])
        return np.sort(np.concatenate([absent, pool.absent(between)]))

    def _index(self, name: str, parts: Sequence[bytes], heights: I64) -> Index:
        """Lattice indices (sum of heights, width) of coded chunks of a level."""
        code, coder, tables = self._collection.code, self._collection.coder(name), self._tables(name)
        block, width, usual = self._collection.chunks.block, code.width(name), self._pools[name].dtype

        def decoded(part: slice) -> Index:
            if isinstance(coder, RansCoder):
                symbols = rans_many.decode(parts[part], heights[part], block, width, tables)
            else:
                each = zip(parts[part], heights[part].tolist(), strict=True)
                symbols = np.concatenate([self._collection.symbols(name, data, rows) for data, rows in each])
            reach = max(int(symbols.max(initial=0)), -int(symbols.min(initial=0)))
            return rowtrellis.index(symbols, code.states, np.promote_types(usual, _holds(reach)))

        if not len(parts):
            return np.empty((0, width), usual)
        return np.concatenate(in_parts(decoded, len(parts), int(heights.sum()) * width))


def _holds(symbol: int) -> np.dtype[Any]:
    """The smallest signed integer for the indices of symbols within ±``symbol``."""
    return np.dtype(np.min_scalar_type(-(4 * symbol + 1)))
