"""Where a shard group is asked without Ray Serve: its replica listens itself, a thread a connection.

A call through a deployment's handle passes a router, two pickles and the replica's event loop, which costs several
times what a small search does (`bench serve`). Who connects shows a token that only the handle gives out: the port is
for the ingress replicas of the same service, on whichever node they are.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.query import Query
from cluster.shard_set import Answer
from cluster.shard_wire import LENGTHS, answer_message, fault_message, read_search, sizes
from cluster.vectors import F32
from operators.errors import HilbertflowError

TOKEN_BYTES = 32
GREET_S = 5.0  # a connection that does not show the token by then is closed
STRANGERS = 64  # connections that have not shown it yet; more wait to be accepted
BACKLOG = 128
REFUSED_S = 0.1  # after a connection that the system could not give

_log = logging.getLogger("hilbertflow.serve")


@dataclass(frozen=True)
class Address:
    """Where a door is, and what it opens for."""

    host: str
    port: int
    token: bytes


class Door:
    """Answers searches of who has the token until the process ends; a thread a connection, one search at a time."""

    def __init__(self, search: Callable[[F32, Query, str, int], Answer], host: str) -> None:
        self._search, self._turn, self._closed = search, threading.Lock(), False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        self._strangers = threading.Semaphore(STRANGERS)
        self._held: set[socket.socket] = set()
        self.address = Address(host, self._listening.getsockname()[1], secrets.token_bytes(TOKEN_BYTES))
        threading.Thread(target=self._accept, daemon=True, name="door").start()

    @property
    def searches(self) -> int:
        """How many have come and are not answered yet."""
        return len(self._held)

    def close(self, seconds: float) -> None:
        """Let the search under way end within so many seconds; those that wait are for another replica."""
        if not self._closed:
            self._closed = True
            self._turn.acquire(timeout=seconds)

    def _accept(self) -> None:
        while True:
            self._strangers.acquire()
            try:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True, name="asked").start()
            except (OSError, RuntimeError) as error:  # no file, no thread: both may come back
                self._strangers.release()
                _log.warning("a search could not connect: %s", error)
                time.sleep(REFUSED_S)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                keep_alive(connection)
                known = self._greeted(connection)
            except OSError:
                known = False
            finally:
                self._strangers.release()
            try:
                while known:
                    head, body = sizes(_received(connection, LENGTHS.size))
                    connection.sendall(self._answered(connection, _received(connection, head + body), head))
            except (OSError, EOFError, ValueError):  # gone, or none of ours
                return

    def _greeted(self, connection: socket.socket) -> bool:
        until = time.monotonic() + GREET_S
        shown = b""
        while len(shown) < TOKEN_BYTES:
            connection.settimeout(max(0.001, until - time.monotonic()))
            if not (more := connection.recv(TOKEN_BYTES - len(shown))):
                return False
            shown += more
        connection.settimeout(None)
        return hmac.compare_digest(shown, self.address.token)

    def _answered(self, connection: socket.socket, message: bytearray, head: int) -> bytes:
        self._held.add(connection)
        try:
            asked = read_search(bytes(message[:head]), message[head:])
            with self._turn:
                if _left(connection):  # after a long wait: the turn is for who is still there
                    raise _Gone
                return b"".join(answer_message(self._search(*asked)))
        except _Gone:
            raise
        except Exception as error:
            if not isinstance(error, HilbertflowError):
                _log.exception("a search failed")
            return b"".join(fault_message(error))
        finally:
            self._held.discard(connection)


class _Gone(ConnectionError):
    """Who asked is not there any more."""


def keep_alive(connection: socket.socket) -> None:
    """Send at once what is written, and notice within half a minute when the other machine is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _left(connection: socket.socket) -> bool:
    """Whether the other end has closed; it sends nothing while it waits for an answer."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _received(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        got = connection.recv_into(left)
        if not got:
            raise EOFError
        left = left[got:]
    return data
