"""A shard group in the process that answers HTTP."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from cluster.graph import QUERIES_A_THREAD
from cluster.query import Query
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32
from cluster.warming import warm

SHORT_S = 0.003  # what is expected to take less is searched on the event loop: handing it to a thread costs as much
FORGET = 0.2  # weight of the newest search in the expectation


class LocalBackend:
    """One search at a time: long ones in a thread, so that the event loop stays free, short ones at once.

    How long a search takes is learned from those before, a query kind at a time.
    """

    def __init__(self, shards: ShardSet, tier: str | None) -> None:
        self._shards, self._tier = shards, tier
        self._thread = ThreadPoolExecutor(1, "search")
        self._expected: dict[tuple[Query, int], float] = {}
        self._busy = 0

    async def search(self, query: Query, vectors: F32, version: int) -> Answer:
        """Search at `version` of the rows, or a later one."""
        # The cost of a batch grows slower than its size; sizes of one power of two are alike.
        kind = (query, len(vectors).bit_length())
        if not self._busy and self._expected.get(kind, SHORT_S) < SHORT_S and self._shards.at(version):
            return self._timed(kind, vectors, version)
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._timed, kind, vectors, version)
        finally:
            self._busy -= 1

    async def ready(self) -> bool:
        """Load what queries that name no tier will need."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm)
        return True

    def _timed(self, kind: tuple[Query, int], vectors: F32, version: int) -> Answer:
        began, worked = time.perf_counter(), time.thread_time()
        answer = self._shards.search(vectors, kind[0], version)
        taken, worked = time.perf_counter() - began, time.thread_time() - worked
        read = answer.requests or answer.cache_hits or answer.bytes_read
        if not read and len(vectors) < 2 * QUERIES_A_THREAD:
            # This thread did all the work: the rest of the time it waited for Python's lock or for other processes,
            # which would be so on the event loop as well. Counted, one busy second would send searches to the thread
            # for ever, as it is there that they wait for the lock.
            taken = worked
        if len(self._expected) > 1000:  # filters make as many kinds as there are queries
            self._expected.clear()
        self._expected[kind] = taken + (1 - FORGET) * (self._expected.get(kind, taken) - taken)
        return answer

    def _warm(self) -> None:
        warm(self._shards, self._tier)
