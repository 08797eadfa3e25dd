"""The HTTP server of a replica that goes: nobody who has sent a request is left without an answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cluster.listener import Listener
from cluster.running import _free_port

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers after a moment."""
    await asyncio.sleep(0.7)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


def test_a_server_that_goes_answers_what_is_under_way() -> None:
    """On a connection that waited, and on one whose answer is due; both are told that it was the last."""

    async def run() -> None:
        port = _free_port("127.0.0.1", 0)
        listener = Listener(app, "127.0.0.1", port, 20.0)
        await asyncio.sleep(0.2)
        idle, due = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        idle[1].write(ASK)
        assert b"connection: close" not in await answer(idle[0])
        due[1].write(ASK)
        await asyncio.sleep(0.03)
        began = time.monotonic()
        closing = asyncio.create_task(listener.close())
        with pytest.raises(ConnectionRefusedError):
            while True:  # until it has stopped to listen
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                await asyncio.sleep(0.01)
        idle[1].write(ASK)
        for reader, writer in (idle, due):
            assert b"connection: close" in await answer(reader)
            assert await reader.read() == b""
            writer.close()
        await closing
        assert time.monotonic() - began < 10

    asyncio.run(run())


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body; to /broken with a head that no body follows."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    if scope["path"] == "/broken":
        raise ValueError("the body failed")
    await send({"type": "http.response.body", "body": body or b"no"})


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ((b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",), b"\r\n\r\nhi"),
        ((b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",), b"\r\n\r\n"),
        ((b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n",), b"\r\n\r\n"),
        ((b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", b"hi"), b"\r\n\r\nhi"),
    ],
    ids=["with its body", "without one", "whose body failed", "behind the word to go on"],
)
def test_a_head_is_sent_in_one_piece_with_what_follows(sent: tuple[bytes, ...], answered: bytes) -> None:
    """Nobody waits for a head, whatever follows it; a body that is there comes with it."""

    async def run() -> None:
        port = _free_port("127.0.0.1", 0)
        listener = Listener(echo, "127.0.0.1", port, 20.0)
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in sent[:-1]:
            writer.write(piece)
            assert (await asyncio.wait_for(reader.read(4096), 10)).startswith(b"HTTP/1.1 100 ")
        writer.write(sent[-1])
        whole = await asyncio.wait_for(reader.read(4096), 10)
        assert whole.startswith(b"HTTP/1.1 200 ") and whole.endswith(answered)
        writer.close()
        await listener.close()

    asyncio.run(run())
