"""The HTTP server of an ingress replica: it listens itself, on the service's port, beside whatever Serve offers.

Between a client and a replica that listens there is no other process. `bench serve` compares it with Serve's HTTP
proxy, its direct ingress, HAProxy and gRPC. Replicas on one node share the port (SO_REUSEPORT): the kernel spreads
connections over them, and during an update old and new ones listen side by side, so that nobody is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BACKLOG = 2048
KEEP_ALIVE_S = 75
LEAVE_S = 20.0  # requests that have begun are answered so long after the server closes
LINGER_S = 5.0  # so long a client may go on sending a body that was answered before its end
IDLE_S = 1.0  # so long a connection without a request waits for one that is under way, and ends with its answer


class Listener:
    """Serves an ASGI application from the running event loop until it is closed."""

    def __init__(self, app: Any, host: str, port: int, head_seconds: float) -> None:
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its own lines could hold addresses
        protocol: Any = type("_Timed", (_Protocol,), {"head_seconds": head_seconds})
        self._server = _Server(
            uvicorn.Config(
                app, http=protocol, lifespan="off", log_config=None, access_log=False, server_header=False,
                backlog=BACKLOG, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=int(LEAVE_S),
                h11_max_incomplete_event_size=1 << 16,
            )
        )  # fmt: skip
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))

    def check(self) -> None:
        """Raises when the server is gone."""
        if self._task.done() and not self._server.should_exit:
            raise RuntimeError("the HTTP server ended")

    async def close(self) -> None:
        """Take no more connections, end requests that have begun."""
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._task, LEAVE_S + 2)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's own business."""
        yield


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, with limits on the time to send the head of a request and a refused body.

    uvicorn times the pause between requests but neither of these, so that a client that sends a byte a minute would
    keep its connection for ever. `whole_body` times a body that is wanted.
    """

    head_seconds = 20.0
    _head_timer: asyncio.TimerHandle | None = None
    _unread = False
    _leaving = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def on_message_begin(self) -> None:
        self._watch_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()
        if self.cycle.scope["method"] != "HEAD":
            together: Any = _Together(self.transport)
            self.cycle.transport = together
        if self._leaving:
            self._last_answer()

    def on_message_complete(self) -> None:
        self._unread = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._unread = self.cycle.more_body
        super().on_response_complete()
        if self._unread:
            self.loop.call_later(LINGER_S, self._drop_unread, self.cycle)

    def _drop_unread(self, answered: Any) -> None:
        """End the connection when the body of the request that was answered is still on its way."""
        if self._unread and self.cycle is answered:
            self.transport.close()

    def shutdown(self) -> None:
        """The server goes: the answer that is due, or the next one, says that it is the last on this connection."""
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(IDLE_S, super().shutdown)
        else:
            self._last_answer()
            super().shutdown()

    def _last_answer(self) -> None:
        self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        self._forget_head()
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Together:
    """The transport of one answer, whose head is sent with the first of its body: one call, and one waking of a client.

    uvicorn writes them apart, which for a short answer is a tenth of its time. An answer to HEAD has no body to wait
    for; every other has one, be it empty.
    """

    def __init__(self, transport: Any) -> None:
        self._transport, self._head, self._begun = transport, b"", False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send; the head with what comes next."""
        if not self._begun and not data.startswith(b"HTTP/1.1 100 "):
            self._head, self._begun = data, True
            return
        self._transport.write(self._head + data)
        self._head = b""

    def close(self) -> None:
        """End the connection; a head whose body failed goes alone."""
        if self._head:
            self.write(b"")
        self._transport.close()
