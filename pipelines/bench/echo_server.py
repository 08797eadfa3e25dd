"""A bare Serve deployment that only echoes, behind one of Ray Serve's ways in: `python echo_server.py WAY PORT`.

Prints `ready PORT` and serves until its standard input ends. Ways: `proxy` (Serve's HTTP proxy), `direct` (its direct
ingress), `haproxy`, `grpc`, `own` (the listener of `cluster.listener`).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

WAYS: dict[str, dict[str, str]] = {
    "proxy": {},
    "grpc": {},
    "direct": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1"},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
                "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0"},
    "own": {},
}  # fmt: skip


def main(way: str, port: int) -> None:
    """Serve until standard input ends."""
    os.environ.update(WAYS[way] | {"RAY_USAGE_STATS_ENABLED": "0"})
    if way == "direct":
        os.environ |= {"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
                       "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1)}  # fmt: skip
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await Response(await Request(scope, receive).body())(scope, receive, send)

    class Echo:
        async def __call__(self, request: Any) -> Any:
            if not isinstance(request, Request):
                from ray.serve.generated import serve_pb2

                messages: Any = serve_pb2
                return messages.UserDefinedResponse(greeting=request.foo)
            return Response(await request.body())

        def reconfigure(self, user_config: dict[str, Any]) -> None:
            pass

    class Listening(Echo):
        async def reconfigure(self, user_config: dict[str, Any]) -> None:  # type: ignore[override]
            from cluster.listener import Listener

            self.listener = Listener(echo, "127.0.0.1", port, 20.0)

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level=logging.ERROR,
             log_to_driver=False)  # fmt: skip
    quiet: Any = {"log_level": "WARNING", "enable_access_log": False}
    beside = port + 1 if way in ("direct", "grpc") else port
    http: Any = {"host": "127.0.0.1", "port": beside, "request_timeout_s": None}
    functions = ["ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"]
    grpc: Any = {"port": port, "grpc_servicer_functions": functions} if way == "grpc" else None
    where: Any = "Disabled" if way == "own" else "HeadOnly"
    serve.start(proxy_location=where, http_options=http, grpc_options=grpc, logging_config=quiet)
    options: Any = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}, "user_config": {}}
    deployment: Any = serve.deployment(Listening if way == "own" else Echo)
    serve.run(deployment.options(name="echo", **options).bind(), name="echo", route_prefix="/", logging_config=quiet)
    print(f"ready {port}", flush=True)
    sys.stdin.read()
    if way == "haproxy":
        serve.shutdown()  # ends HAProxy, a process of its own; all others go with Ray, without a minute of draining
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
