"""Chunks of a collection that searches of it in place have read, kept in memory up to a bound.

An archive's chunks never change: a compaction writes another archive. What is kept was checked when it was read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from cluster.vectors import I64

CACHE_BYTES = 128 << 20
ENTRY_BYTES = 200  # of the objects of Python's around a chunk


class ChunkCache:
    """The chunks used last, of ``limit`` bytes together; 0 keeps none. hits: chunks that were not read again."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.hits = limit, 0
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def absent(self, wanted: Mapping[str, I64]) -> dict[str, I64]:
        """Those of the chunks, by array, that are not kept; only arrays that lack any."""
        lacking = {
            name: [chunk for chunk in chunks.tolist() if (name, chunk) not in self._kept]
            for name, chunks in wanted.items()
        }
        return {name: np.array(chunks, np.int64) for name, chunks in lacking.items() if chunks}

    def complete(
        self, wanted: Mapping[str, I64], read: Mapping[str, I64], came: Mapping[str, list[bytes]]
    ) -> dict[str, list[bytes]]:
        """Chunks of arrays in the order wanted: kept ones, and those that were just ``read`` and ``came``."""
        new = {
            (name, chunk): part
            for name, chunks in read.items()
            for chunk, part in zip(chunks.tolist(), came[name], strict=True)
        }
        found = {name: [self._part((name, chunk), new) for chunk in chunks.tolist()] for name, chunks in wanted.items()}
        for key, part in new.items() if self.limit else ():
            self._kept[key] = part
            self._bytes += len(part) + ENTRY_BYTES
        while self._bytes > self.limit:
            _, part = self._kept.popitem(last=False)
            self._bytes -= len(part) + ENTRY_BYTES
        return found

    def _part(self, key: tuple[str, int], new: Mapping[tuple[str, int], bytes]) -> bytes:
        if (part := new.get(key)) is not None:
            return part
        self.hits += 1
        self._kept.move_to_end(key)
        return self._kept[key]
