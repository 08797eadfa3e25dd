"""Concurrent queries of the same kind are answered together, without anybody waiting for company.

While one batch is being searched, queries that arrive are gathered; when it returns, they go as the next batch. A query
that finds nothing in flight goes at once, so that a lone query is not delayed, and under load batches grow by
themselves. "At once" is when requests that lie in the sockets by then have been read as well: a few turns of the event
loop, which take an idle one some ten microseconds and make the batches of a busy one twice as large.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

TURNS = 4  # of the event loop, from the bytes of a request to its query
ENOUGH = 64  # queries that need no company
K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)
R = TypeVar("R")


@dataclass
class _Lane(Generic[V, R]):
    """Queries of one kind: those waiting, and how many batches are in flight."""

    waiting: deque[tuple[V, asyncio.Future[tuple[R, slice]]]] = field(default_factory=deque)
    flying: int = 0


class Batcher(Generic[K, V, R]):
    """Runs `search(key, items)` on gathered batches of at most `rows` items, `flights` of a key at a time.

    join: puts what several callers gave behind one another; arrays along their first axis unless it says otherwise.
    """

    def __init__(
        self, search: Callable[[K, V], Awaitable[R]], rows: int = 1024, flights: int = 1,
        join: Callable[[list[Any]], Any] = np.concatenate,
    ) -> None:  # fmt: skip
        self._search, self._rows, self._flights, self._join = search, rows, flights, join
        self._lanes: dict[K, _Lane[V, R]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, key: K, items: V) -> tuple[R, slice]:
        """The result of a batch that these items were part of, and their place in it."""
        lane = self._lanes.setdefault(key, _Lane())
        future: asyncio.Future[tuple[R, slice]] = asyncio.get_running_loop().create_future()
        lane.waiting.append((items, future))
        if lane.flying < self._flights:
            lane.flying += 1
            task = asyncio.create_task(self._fly(key, lane))
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _fly(self, key: K, lane: _Lane[V, R]) -> None:
        while lane.waiting:
            for _ in range(TURNS):
                if sum(len(items) for items, _ in lane.waiting) < ENOUGH:
                    await asyncio.sleep(0)
            batch = self._gather(lane)
            if not batch:
                continue
            try:
                given = [items for items, _ in batch]
                result = await self._search(key, given[0] if len(given) == 1 else self._join(given))
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            at = 0
            for items, future in batch:
                if not future.done():
                    future.set_result((result, slice(at, at + len(items))))
                at += len(items)
        lane.flying -= 1
        if not lane.flying:
            self._lanes.pop(key, None)

    def _gather(self, lane: _Lane[V, R]) -> list[tuple[V, asyncio.Future[tuple[R, slice]]]]:
        batch: list[tuple[V, asyncio.Future[tuple[R, slice]]]] = []
        rows = 0
        while lane.waiting and (not batch or rows + len(lane.waiting[0][0]) <= self._rows):
            items, future = lane.waiting.popleft()
            if not future.done():  # its client has left
                batch.append((items, future))
                rows += len(items)
        return batch
