"""Start and stop the service from Python or the command line, with a Ray of its own or on one that runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

from cluster.auth import Keys
from cluster.config import ServeConfig, load_config, parse_config
from cluster.ray_start import ray_starts
from operators.errors import HilbertflowError

APP = "hilbertflow"
OBJECT_STORE = 256 * 1024 * 1024
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # access logs would hold the addresses of who asks what


@dataclass(frozen=True)
class Running:
    """A started service. url: where it listens."""

    url: str
    own_ray: bool

    def stop(self) -> None:
        """Take the service down, and Ray with it if the service started it."""
        _stop_serve()
        if self.own_ray:
            ray.shutdown()


def start(config: ServeConfig | dict[str, Any] | str, *, address: str | None = None, timeout: float = 120.0) -> Running:
    """Start the service and return when it is ready.

    config: parsed, as plain data, or the path of a YAML file. address: of a running Ray; None takes the Ray of this
    process, or starts a local one. Raises `HilbertflowError` when the configuration cannot be served, the port is
    taken, or the service is not ready in `timeout` seconds.
    """
    if isinstance(config, str):
        config = load_config(config)
    elif isinstance(config, dict):
        config = parse_config(config)
    if config.keys:
        Keys(config.keys)  # one that cannot be read is told now, in one line
    from ray import serve

    from cluster.serve_app import build_application

    config = config.model_copy(update={"port": _free_port(config.host, config.port)})
    own_ray = not ray.is_initialized()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if own_ray and address:  # its GPUs are to be known
        with ray_starts(address):
            ray.init(address=address, **quiet)
    try:
        app = build_application(config)
    except BaseException:
        if own_ray:
            ray.shutdown()
        raise
    if not ray.is_initialized():
        with ray_starts(None):
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    running = Running(f"http://{_bracketed(config.host)}:{config.port}", own_ray)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        http: dict[str, Any] = {"host": config.host, "port": config.port, "request_timeout_s": None}
        where: Any = "Disabled" if config.listen else "HeadOnly"
        serve.start(proxy_location=where, http_options=None if config.listen else http, logging_config=QUIET)
        serve.run(app, name=APP, route_prefix="/", logging_config=QUIET)
        _wait_ready(running.url, timeout)
    except BaseException as error:
        running.stop()
        if isinstance(error, RuntimeError) and not isinstance(error, HilbertflowError):
            last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise HilbertflowError(f"the service did not start ({last})", where=running.url) from error
        raise
    return running


def run_forever(path: str) -> None:
    """Serve a configuration file until SIGINT or SIGTERM: what `hilbertflow serve` does."""
    running = start(path)
    print(f"serving on {running.url}  (Ctrl-C stops)", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    gcs = ray.get_runtime_context().gcs_address
    ended = threading.Thread(target=running.stop, daemon=True)
    ended.start()
    while ended.is_alive() and _listens(gcs):
        ended.join(0.5)
    if ended.is_alive():
        # Who told us to end told all processes of Ray too, as `timeout` does: nothing is left to take down, and Ray's
        # own client would try to reach it for a minute and then end this process with a failure.
        ended.join(5)
        os._exit(0)


def _listens(address: str) -> bool:
    """Whether the head of a Ray is still there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _stop_serve(patience: float = 60.0) -> None:
    """Shut Serve down as `serve.shutdown` does, but without waiting inside a call that the controller's end breaks off.

    Ray reports every call that is broken off on the driver's stderr, as if something had gone wrong.
    """
    try:
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    ray.get(controller.graceful_shutdown.remote(wait=False), timeout=patience)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            break
        time.sleep(0.05)
    from ray import serve

    serve.shutdown()  # forgets the handle that this process keeps


def _wait_ready(url: str, timeout: float) -> None:
    import httpx
    from ray import serve

    end, last = time.monotonic() + timeout, "no answer"
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end:
            try:
                reply = client.get(f"{url}/readyz", timeout=10)
                if reply.status_code == 200:
                    return
                last = reply.text[:200]
                state = serve.get_app_handle(APP).readiness.remote().result(timeout_s=30)  # with keys, HTTP tells less
                _refuse_broken(state.get("encoders", []), url)
            except httpx.HTTPError as error:
                last = type(error).__name__
            time.sleep(0.1)
    raise HilbertflowError(f"the service was not ready in {timeout:.0f} s ({last})", where=url)


def _refuse_broken(encoders: list[dict[str, Any]], url: str) -> None:
    """A service that is started with an encoder that does not load is not started."""
    for item in encoders:
        if item["state"] == "failed":
            raise HilbertflowError(
                f"the encoder {item['model']} failed: {item['reason']}", where=url,
                remedy=f"mend the model directory, or leave `encoder` out of {', '.join(item['collections'])}",
            )  # fmt: skip


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise HilbertflowError(
                f"cannot listen on port {port} ({os.strerror(error.errno or 0)})",
                where=host,
                remedy="choose another port",
            ) from None
        return int(probe.getsockname()[1])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
