"""Chunks of a collection that searches of it in place have read, kept in memory up to a bound.

An archive's chunks never change: a compaction writes another archive. What is kept was checked when it was read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from cluster.vectors import I64

CACHE_BYTES = 128 << 20
ENTRY_BYTES = 200  # of the objects of Python's around a chunk

Fetch = Callable[[Mapping[str, I64]], dict[str, list[bytes]]]


class ChunkCache:
    """The chunks used last, of ``limit`` bytes together; 0 keeps none. hits: chunks that were not read again."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.hits = limit, 0
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def fetched(self, wanted: Mapping[str, I64], fetch: Fetch) -> dict[str, list[bytes]]:
        """Chunks of arrays by name, in the order wanted; ``fetch`` is asked, once, for those that are not kept."""
        if not self.limit:
            return fetch(wanted)
        names = {name: [(name, chunk) for chunk in chunks.tolist()] for name, chunks in wanted.items()}
        absent = {name: [key for key in keys if key not in self._kept] for name, keys in names.items()}
        asked = {name: np.array([chunk for _, chunk in keys], np.int64) for name, keys in absent.items() if keys}
        came = fetch(asked) if asked else {}
        new = {key: part for name, parts in came.items() for key, part in zip(absent[name], parts, strict=True)}
        found = {name: [self._part(key, new) for key in keys] for name, keys in names.items()}
        for key, part in new.items():
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
