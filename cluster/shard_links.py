"""Connections of an ingress to the replicas of one shard group, kept between searches (`cluster.shard_door`).

Which replica a new one goes to is left to the deployment's handle, and none is kept for long: so replicas that start or
stop find and lose their share. A search whose replica dies is sent again, to another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cluster.service import Unavailable
from cluster.shard_door import Address, keep_alive
from cluster.shard_set import Answer
from cluster.shard_wire import LENGTHS, read_answer, sizes

ATTEMPTS = 4
MOST = 8  # searches at a replica at once: it does one at a time, and the next should lie there
LIFE_S = 30.0
CONNECT_S = 5.0
GONE_S = 5.0  # so long after the last replica went searches wait for another; Ray Serve starts one in some seconds
LEAST_S = 0.25


class Busy(Unavailable):
    """The shard group answers, but its queue is full."""


class Links:
    """Up to ``MOST`` searches for each of ``replicas`` at once; ``queued`` more wait, beyond them it is `Busy`.

    find: asks the deployment for the address of a replica, any of those that live.
    """

    def __init__(self, find: Callable[[], Awaitable[Address]], replicas: int, queued: int) -> None:
        self._find, self._queued = find, queued
        self._free: deque[_Link] = deque()
        self._open: set[_Link] = set()
        self._lost_at: float | None = None
        self._turns = asyncio.Semaphore(MOST * replicas)
        self._waiting = 0

    @property
    def lost(self) -> bool:
        """Whether there were connections, and none is left."""
        return self._lost_at is not None

    async def search(self, message: Sequence[bytes]) -> Answer:
        """The answer to a `search_message`; raises what the search raised, Unavailable where no replica lives."""
        if self._turns.locked() and self._waiting >= self._queued:
            raise Busy("the shard is busy")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._tried(message)
        finally:
            self._turns.release()

    async def _tried(self, message: Sequence[bytes]) -> Answer:
        for attempt in range(ATTEMPTS):
            try:
                link = self._kept() or await self._opened()
                try:
                    head, body = await link.ask(message)
                except BaseException:  # its answer may still come, and is not the next one's
                    link.transport.abort()
                    raise
            except OSError as error:
                if attempt + 1 == ATTEMPTS:
                    raise Unavailable("the shard's replicas died") from error
                await asyncio.sleep(0.05 * 4**attempt if attempt else 0)
                continue
            self._free.append(link)
            return read_answer(head, body)
        raise AssertionError("the last attempt returns or raises")

    def _kept(self) -> _Link | None:
        while self._free:
            link = self._free.popleft()
            if not link.transport.is_closing() and time.monotonic() < link.until:
                return link
            link.transport.close()
        return None

    async def reach(self, seconds: float | None = None) -> bool:
        """Whether a replica can be reached this way, within so many seconds; the connection is kept."""
        try:
            async with asyncio.timeout(seconds):
                self._free.append(self._kept() or await self._opened())
        except (OSError, Unavailable):
            return False
        return True

    async def _opened(self) -> _Link:
        gone = None if self._lost_at is None else time.monotonic() - self._lost_at
        try:
            async with asyncio.timeout(None if gone is None else max(LEAST_S, GONE_S - gone)):
                address = await self._find()
        except TimeoutError:
            raise Unavailable("no replica of the shard lives") from None
        async with asyncio.timeout(CONNECT_S):
            loop = asyncio.get_running_loop()
            _, link = await loop.create_connection(lambda: _Link(self._ended), address.host, address.port)
        self._open.add(link)
        self._lost_at = None
        link.transport.write(address.token)
        return link

    def _ended(self, link: _Link) -> None:
        if link in self._open:
            self._open.discard(link)
            if not self._open:
                self._lost_at = time.monotonic()


class _Link(asyncio.Protocol):
    """One connection: a search at a time."""

    transport: asyncio.Transport

    def __init__(self, ended: Callable[[_Link], None]) -> None:
        self.until, self._ended = time.monotonic() + LIFE_S, ended
        self._data = bytearray()
        self._answer: asyncio.Future[tuple[bytes, bytearray]] | None = None

    async def ask(self, message: Sequence[bytes]) -> tuple[bytes, bytearray]:
        """Head and arrays of the answer; raises OSError when the connection ends first."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.writelines(message)
        return await self._answer

    def connection_made(self, transport: Any) -> None:
        """As asyncio has it."""
        self.transport = transport
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        self._data += data
        if len(self._data) < LENGTHS.size:
            return
        try:
            head, body = sizes(self._data)
        except ValueError:
            self.transport.abort()
            return
        begin = LENGTHS.size + head
        if len(self._data) >= begin + body and self._answer is not None and not self._answer.done():
            whole, self._data = self._data, bytearray()
            self._answer.set_result((bytes(whole[LENGTHS.size : begin]), whole[begin : begin + body]))

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._ended(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the replica ended the connection"))
