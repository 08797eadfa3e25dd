"""Searches that pass Ray Serve: what goes over the wire, who may ask, what happens when a replica goes."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from cluster import shard_door, shard_links
from cluster.index_kind import Overrides
from cluster.query import Query
from cluster.remote import RemoteBackend, links_of
from cluster.service import Unavailable
from cluster.shard_door import Address, Door
from cluster.shard_links import MOST, Busy, Links
from cluster.shard_set import Answer
from cluster.shard_wire import LENGTHS, ShardFault, read_answer, search_message, sizes
from cluster.vectors import F32
from operators.errors import HilbertflowError

QUERY = Query(
    k=np.int64(3), tier="hnsw", filter='name == "a\\"b" and é > 1', overrides=Overrides(ef=7),  # type: ignore[arg-type]
    radius=np.float32(0.5),  # type: ignore[arg-type]
)  # fmt: skip
VECTORS = np.arange(8, dtype=np.float32).reshape(2, 4)


def answer(vectors: F32, rows: int = 3, version: int = 5) -> Answer:
    """One that tells its vectors apart; an odd number of rows leaves the scores unaligned if they come first."""
    numbers = np.arange(len(vectors) * rows).reshape(len(vectors), rows)
    return Answer(vectors.sum(axis=1, keepdims=True) + numbers.astype(np.float32), numbers.astype(np.int64), "print",
                  np.int64(4), 5, 6, {"scan": np.float32(0.25)}, version, level="exact")  # type: ignore[arg-type]  # fmt: skip


def door(search: Callable[[F32, Query, str, int], Answer]) -> Door:
    return Door(search, "127.0.0.1")


def links(*doors: Door, replicas: int = 1, queued: int = 100) -> tuple[Links, list[Address]]:
    """Links that are sent to each of the doors in turn, and what they were sent to."""
    found: list[Address] = []

    async def find() -> Address:
        found.append(doors[len(found) % len(doors)].address)
        return found[-1]

    return Links(find, replicas, queued), found


def nobody() -> Address:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return Address("127.0.0.1", listening.getsockname()[1], b"t" * 32)


def test_a_search_arrives_as_it_was_sent_and_so_does_its_answer() -> None:
    seen = []

    def search(vectors: F32, query: Query, version: str, rows: int) -> Answer:
        seen.append((vectors.copy(), query, version, rows))
        return answer(vectors)

    async def ask() -> list[Answer]:
        asked, found = links(door(search))
        replies = [await asked.search(search_message(VECTORS * n, QUERY, "v-1", 9)) for n in (1, 2)]
        assert len(found) == 1  # the connection is kept
        return replies

    for n, reply in enumerate(asyncio.run(ask()), 1):
        vectors, query, version, rows = seen[n - 1]
        np.testing.assert_array_equal(vectors, VECTORS * n)
        assert (query, version, rows) == (QUERY, "v-1", 9)
        expected = answer(VECTORS * n)
        np.testing.assert_array_equal(reply.rows, expected.rows)
        np.testing.assert_array_equal(reply.scores, expected.scores)
        assert (reply.rows.dtype, reply.scores.dtype) == (np.int64, np.float32)
        assert (reply.fingerprint, reply.version, reply.level) == ("print", 5, "exact")
        assert (reply.lists_probed, reply.seconds) == (4, {"scan": 0.25})


def test_many_at_once_get_their_own_answers() -> None:
    """Also those that nothing was found for, and large ones, which arrive in many pieces."""
    doors = [door(lambda vectors, query, version, rows: answer(vectors, rows)) for _ in range(2)]

    async def ask() -> list[Answer]:
        asked, found = links(*doors, replicas=2)
        many = (asked.search(search_message(VECTORS + n, QUERY, "", 1000 * n)) for n in range(40))
        replies = await asyncio.gather(*many)
        assert 2 <= len(found) <= 2 * MOST
        return replies

    for n, reply in enumerate(asyncio.run(ask())):
        assert reply.rows.shape == (2, 1000 * n)
        np.testing.assert_array_equal(reply.scores, answer(VECTORS + n, 1000 * n).scores)


def test_what_a_search_raises_is_raised() -> None:
    def search(vectors: F32, query: Query, version: str, rows: int) -> Answer:
        if rows:
            raise HilbertflowError("no such level", where="search", remedy="levels are 0, 1")
        raise MemoryError("gone")

    async def ask() -> None:
        asked, found = links(door(search))
        with pytest.raises(HilbertflowError, match="search: no such level; levels are 0, 1"):
            await asked.search(search_message(VECTORS, QUERY, "", 1))
        with pytest.raises(ShardFault, match="MemoryError: gone"):
            await asked.search(search_message(VECTORS, QUERY, "", 0))
        assert len(found) == 1  # a fault of the search is none of the connection

    asyncio.run(ask())


def test_who_does_not_show_the_token_is_not_answered() -> None:
    mine = door(lambda vectors, query, version, rows: answer(vectors))
    for shown in (b"\0" * 32, b"GET / HTTP/1.1\r\n\r\n".ljust(32)):
        with socket.create_connection((mine.address.host, mine.address.port), timeout=10) as connection:
            connection.sendall(shown)
            connection.sendall(b"".join(search_message(VECTORS, QUERY, "", 1)))
            with pytest.raises((ConnectionError, AssertionError)):
                assert connection.recv(1), "closed without a word"
                pytest.fail("it was answered")


def test_a_stranger_that_takes_its_time_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it spreads what it sends."""
    monkeypatch.setattr(shard_door, "GREET_S", 0.5)
    mine = door(lambda vectors, query, version, rows: answer(vectors))
    with socket.create_connection((mine.address.host, mine.address.port), timeout=10) as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 10:
                connection.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began < 5


def test_nobody_is_searched_for_who_has_left() -> None:
    go, searched = threading.Event(), []

    def search(vectors: F32, query: Query, version: str, rows: int) -> Answer:
        searched.append(rows)
        go.wait(30)
        return answer(vectors)

    async def ask() -> None:
        asked, _ = links(door(search))
        one, other, last = (
            asyncio.create_task(asked.search(search_message(VECTORS, QUERY, "", rows))) for rows in (1, 2, 3)
        )
        while not searched:
            await asyncio.sleep(0.01)
        others = {1: one, 2: other, 3: last}
        first = others.pop(searched[0])
        left, stays = others.popitem(), others.popitem()
        await asyncio.sleep(0.2)  # both lie at the door
        left[1].cancel()
        await asyncio.sleep(0.2)
        go.set()
        await asyncio.gather(first, stays[1])
        assert left[0] not in searched

    asyncio.run(ask())


@pytest.mark.parametrize("message", [LENGTHS.pack(2, 0) + b"{}", LENGTHS.pack(1, 0) + b"x"])
def test_what_is_no_search_is_said(message: bytes) -> None:
    mine = door(lambda vectors, query, version, rows: answer(vectors))
    with socket.create_connection((mine.address.host, mine.address.port), timeout=10) as connection:
        connection.sendall(mine.address.token + message)
        head, body = sizes(connection.recv(LENGTHS.size))
        assert body == 0
        with pytest.raises(ShardFault, match="Error"):
            read_answer(connection.recv(head), bytearray())


def test_a_message_too_long_ends_the_connection() -> None:
    mine = door(lambda vectors, query, version, rows: answer(vectors))
    with socket.create_connection((mine.address.host, mine.address.port), timeout=10) as connection:
        connection.sendall(mine.address.token + LENGTHS.pack(1 << 31, 1 << 31))
        assert connection.recv(1) == b""


def test_a_search_is_sent_again_where_its_replica_goes() -> None:
    """One takes the search and ends; another is not there any more; the third answers."""
    ended = socket.create_server(("127.0.0.1", 0))

    def end() -> None:
        connection, _ = ended.accept()
        connection.recv(100)
        connection.close()

    threading.Thread(target=end, daemon=True).start()
    there = door(lambda vectors, query, version, rows: answer(vectors))
    addresses = iter([Address("127.0.0.1", ended.getsockname()[1], b"t" * 32), nobody(), there.address])

    async def find() -> Address:
        return next(addresses)

    async def ask() -> Answer:
        return await Links(find, 1, 10).search(search_message(VECTORS, QUERY, "", 3))

    np.testing.assert_array_equal(asyncio.run(ask()).rows, answer(VECTORS).rows)


def test_no_replica_at_all_is_said() -> None:
    async def find() -> Address:
        return nobody()

    async def ask() -> None:
        await Links(find, 1, 10).search(search_message(VECTORS, QUERY, "", 3))

    with pytest.raises(Unavailable, match="the shard's replicas died"):
        asyncio.run(ask())


def test_a_full_queue_is_said_and_who_leaves_frees_a_place() -> None:
    go = threading.Event()

    def search(vectors: F32, query: Query, version: str, rows: int) -> Answer:
        go.wait(30)
        return answer(vectors)

    async def ask() -> None:
        asked, found = links(door(search), queued=2)
        message = search_message(VECTORS, QUERY, "", 3)
        waiting = [asyncio.create_task(asked.search(message)) for _ in range(MOST + 2)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy):
            await asked.search(message)
        waiting.pop().cancel()
        waiting.pop(0).cancel()  # one that waits for its turn and one that is under way
        await asyncio.sleep(0.05)
        waiting += [asyncio.create_task(asked.search(message)) for _ in range(2)]
        await asyncio.sleep(0.05)
        go.set()
        for reply in await asyncio.gather(*waiting):
            np.testing.assert_array_equal(reply.rows, answer(VECTORS).rows)
        assert len(found) >= MOST + 1  # the answer to who left is nobody else's: its connection is not used again

    asyncio.run(ask())


def test_a_shard_group_is_asked_past_its_handle() -> None:
    """Serve says once where a replica is; with no way past it, it carries every search."""

    class Method:
        def __init__(self, call: Callable[..., object]) -> None:
            self.call = call
            self.called = 0

        async def remote(self, *given: object) -> object:
            self.called += 1
            return self.call(*given)

    class Handle:
        address = Method(lambda: mine.address)
        search = Method(lambda vectors, query, version, rows: answer(vectors))

        ready = Method(lambda version: True)

    mine, handle = door(lambda vectors, query, version, rows: answer(vectors)), Handle()

    async def ask() -> list[Answer]:
        past, nowhere = (RemoteBackend(handle, "v", links_of(handle, 1, 10)) for _ in range(2))
        replies = [await backend.search(QUERY, VECTORS, 3) for backend in (past, past, RemoteBackend(handle, "v"))]
        assert (handle.address.called, handle.search.called) == (1, 1)
        there, handle.address = handle.address, Method(nobody)
        assert await nowhere.ready()  # through Serve, since nobody is there
        replies.append(await nowhere.search(QUERY, VECTORS, 3))
        assert handle.search.called == 2
        handle.address = there
        assert await nowhere.ready()
        replies.append(await nowhere.search(QUERY, VECTORS, 3))
        assert handle.search.called == 2
        return replies

    for reply in asyncio.run(ask()):
        np.testing.assert_array_equal(reply.scores, answer(VECTORS).scores)


def test_a_group_whose_last_replica_went_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not ready at once, its searches end soon, and both change when another replica is there."""
    monkeypatch.setattr(shard_links, "GONE_S", 0.4)
    ended = socket.create_server(("127.0.0.1", 0))
    go, there = threading.Event(), door(lambda vectors, query, version, rows: answer(vectors))
    addresses: list[Address] = [Address("127.0.0.1", ended.getsockname()[1], b"t" * 32)]

    def end() -> None:
        connection, _ = ended.accept()
        go.wait(30)
        connection.close()
        ended.close()

    threading.Thread(target=end, daemon=True).start()

    class Handle:
        """Of a group that is started again: Serve keeps who asks waiting."""

        class address:
            @staticmethod
            async def remote() -> Address:
                while not addresses:
                    await asyncio.sleep(0.01)
                return addresses[0]

        class ready:
            @staticmethod
            async def remote(version: str) -> bool:
                return True

    async def ask() -> None:
        known = links_of(Handle, 1, 10)
        backend = RemoteBackend(Handle, "v", known)
        assert await backend.ready() and not known.lost
        addresses.clear()
        go.set()
        while not known.lost:
            await asyncio.sleep(0.01)
        for _ in range(2):
            async with asyncio.timeout(5):
                assert not await backend.ready()
                with pytest.raises(Unavailable, match="no replica of the shard lives"):
                    await backend.search(QUERY, VECTORS, 3)
        addresses.append(there.address)
        assert await backend.ready() and not known.lost
        np.testing.assert_array_equal((await backend.search(QUERY, VECTORS, 3)).rows, answer(VECTORS).rows)

    asyncio.run(ask())
