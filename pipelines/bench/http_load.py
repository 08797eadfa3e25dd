"""Closed-loop HTTP clients in a process of their own: `python http_load.py < SPEC` prints what they saw as JSON.

SPEC: {"port", "path", "headers": {…}, "bodies": FILE, "offsets": [0, …], "clients", "seconds"}. Every client has one
connection and sends its next request when the last one is answered. Nothing but asyncio and httptools stands between
the socket and the clock, so that the clients cost the server's cores as little as Python allows.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httptools


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def connection_made(self, transport: Any) -> None:
        """Keep the way to write."""
        self._transport = transport
        self._parser: Any = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser of the request in flight."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears of it."""
        if self._parser is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("closed"))

    def on_message_complete(self) -> None:
        """Give the status to who asked."""
        self._answer.set_result(self._parser.get_status_code())

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; its status."""
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


async def load(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the clients; requests a second, latencies in milliseconds, how many replies had each status."""
    with open(spec["bodies"], "rb") as file:
        data = file.read()
    head = f"POST {spec['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in spec["headers"].items())
    cuts = list(zip(spec["offsets"][:-1], spec["offsets"][1:], strict=True))
    requests = [f"{head}Content-Length: {high - low}\r\n\r\n".encode() + data[low:high] for low, high in cuts]
    taken: list[float] = []
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()

    async def opened(number: int) -> Connection:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", spec["port"])
        await connection.ask(requests[number % len(requests)])  # warms, is not counted
        return connection

    async def client(number: int, connection: Connection) -> None:
        at = number
        while (began := time.perf_counter()) < end:
            status = await connection.ask(requests[at % len(requests)])
            taken.append(time.perf_counter() - began)
            statuses[status] = statuses.get(status, 0) + 1
            at += spec["clients"]

    connections = await asyncio.gather(*(opened(number) for number in range(spec["clients"])))
    began = time.perf_counter()
    end = began + spec["seconds"]
    await asyncio.gather(*(client(number, connection) for number, connection in enumerate(connections)))
    whole = time.perf_counter() - began
    taken.sort()
    at = {name: 1000 * taken[min(len(taken) - 1, int(share * len(taken)))] for name, share in
          (("p50", 0.5), ("p99", 0.99))}  # fmt: skip
    return {"rate": len(taken) / whole, "statuses": statuses, **at}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.load(sys.stdin)))))
