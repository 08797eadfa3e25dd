"""Where a shard group is asked without Ray Serve: its replica listens itself, a thread a connection.

A call through a deployment's handle passes a router, two pickles and the replica's event loop, which costs several
times what a small search does (`bench serve`). Who connects shows a token that only the handle gives out: the port is
for the ingress replicas of the same service, on whichever node they are.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cluster.query import Query
from cluster.shard_set import Answer
from cluster.shard_wire import LENGTHS, answer_message, fault_message, read_search, sizes
from cluster.vectors import F32

TOKEN_BYTES = 32
GREET_S = 5.0  # a connection that does not show the token so soon is closed
BACKLOG = 128


@dataclass(frozen=True)
class Address:
    """Where a door is, and what it opens for."""

    host: str
    port: int
    token: bytes


class Door:
    """Answers searches of who has the token until the process ends; `search` is called by a thread a connection."""

    def __init__(self, search: Callable[[F32, Query, str, int], Answer], host: str) -> None:
        self._search = search
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        self.address = Address(host, self._listening.getsockname()[1], secrets.token_bytes(TOKEN_BYTES))
        threading.Thread(target=self._accept, daemon=True, name="door").start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="asked").start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(GREET_S)
                if not hmac.compare_digest(_received(connection, TOKEN_BYTES), self.address.token):
                    return
                connection.settimeout(None)
                while True:
                    head, body = sizes(_received(connection, LENGTHS.size))
                    asked = read_search(bytes(_received(connection, head)), _received(connection, body))
                    for piece in self._answered(*asked):
                        connection.sendall(piece)
            except (OSError, EOFError, ValueError, TypeError, KeyError):  # gone, or none of ours
                return

    def _answered(self, vectors: F32, query: Query, version: str, rows_version: int) -> list[bytes]:
        try:
            return answer_message(self._search(vectors, query, version, rows_version))
        except Exception as error:
            return fault_message(error)


def _received(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        got = connection.recv_into(left)
        if not got:
            raise EOFError
        left = left[got:]
    return data
