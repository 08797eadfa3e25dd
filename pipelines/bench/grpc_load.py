"""Closed-loop gRPC clients against `echo_server.py grpc`: `python grpc_load.py PORT CLIENTS SECONDS BYTES`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any


async def load(port: int, clients: int, seconds: float, size: int) -> dict[str, float]:
    """Requests a second and latencies in milliseconds."""
    import grpc
    from ray.serve.generated import serve_pb2, serve_pb2_grpc

    messages: Any = serve_pb2

    taken: list[float] = []
    began = time.perf_counter()
    end = began + seconds

    async def client() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = serve_pb2_grpc.UserDefinedServiceStub(channel)
            message = messages.UserDefinedMessage(foo="x" * size)
            await stub.__call__(message)
            while (start := time.perf_counter()) < end:
                await stub.__call__(message)
                taken.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    whole = time.perf_counter() - began
    taken.sort()
    return {
        "rate": len(taken) / whole,
        "p50": 1000 * taken[len(taken) // 2],
        "p99": 1000 * taken[int(0.99 * len(taken))],
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(asyncio.run(load(int(given[0]), int(given[1]), float(given[2]), int(given[3])))))
