"""The service on Ray Serve: shard groups, an encoder and an HTTP ingress as deployments, started from one
configuration.

`serve deploy` takes the same keys as the arguments of this application:

    applications:
      - name: hilbertflow
        import_path: cluster.serve_app:application
        args: {collections: [{name: docs, url: s3://bucket/root/collections/docs}]}
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from cluster.api import build_api
from cluster.auth import Keys
from cluster.build import open_collection
from cluster.config import CollectionConfig, ServeConfig, load_config, parse_config
from cluster.index_store import Build, current_builds, indexes_of
from cluster.planner import choose, fresh
from cluster.query import Query
from cluster.service import Backend, CollectionService, LocalBackend, Unavailable
from cluster.services import Encode, Services
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

APP = "hilbertflow"
ATTEMPTS = 3
OBJECT_STORE = 256 * 1024 * 1024
SMALL = {"num_cpus": 0.1}  # deployments wait more than they work; FAISS's threads are set by the configuration


class Shards:
    """One shard group of a collection: its indexes in memory, one search at a time."""

    def __init__(self, url: str, group: int, groups: int, tier: str | None, threads: int) -> None:
        self._url, self._group, self._groups, self._tier, self._threads = url, group, groups, tier, threads
        self._set = self._open()

    def _open(self) -> ShardSet:
        collection = open_collection(self._url)
        builds = fresh(collection, current_builds(indexes_of(collection)))
        shards = ShardSet(collection, builds, self._group, self._groups, self._threads)
        shards.load(choose(Query(tier=self._tier), builds, self._url).tier)
        return shards

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the indexes that are current now; queries that have begun end on the version they began with."""
        if user_config.get("version"):
            self._set = self._open()

    def search(self, vectors: F32, query: Query) -> Answer:
        """Best rows of the group."""
        return self._set.search(vectors, query)

    def ready(self) -> bool:
        """True: a replica exists once its constructor has loaded the shards."""
        return True


class Encoder:
    """The text encoder, loaded once a replica; Torch lives here and in no process that runs FAISS."""

    def __init__(self, model: str, max_tokens: int, threads: int) -> None:
        from operators.encode import open_encoder

        self._encoder = open_encoder(model, max_tokens, threads)
        self._encoder.encode(["ready"])

    def encode(self, texts: list[str]) -> F32:
        """(len(texts), dim) float32."""
        return self._encoder.encode(texts)


class RemoteBackend:
    """A shard group behind a deployment handle; a replica that dies is replaced by another for the same query."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def search(self, query: Query, vectors: F32) -> Answer:
        """Ask any replica; again when it died under the query."""
        answer: Answer = await _asked(lambda: self._handle.search.remote(vectors, query))
        return answer

    async def ready(self) -> bool:
        """Whether a replica answers."""
        return bool(await _asked(lambda: self._handle.ready.remote()))


async def _asked(call: Callable[[], Any]) -> Any:
    for attempt in range(ATTEMPTS):
        try:
            return await call()
        except BackPressureError as error:
            raise Unavailable("the shard is busy") from error
        except RayActorError as error:
            if attempt + 1 == ATTEMPTS:
                raise Unavailable("the shard's replicas died") from error
            await asyncio.sleep(0.05 * 4**attempt)
    raise AssertionError("the last attempt returns or raises")


@serve.ingress()
class Ingress:
    """HTTP, routing and merging; also the shards of collections placed here."""

    def __init__(self, body: dict[str, Any], groups: dict[str, list[Any]], encoder: Any) -> None:
        self._config, self._groups, self._encoder = ServeConfig.model_validate(body), groups, encoder

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once this replica is constructed."""
        config = self._config
        services = {item.name: self._service(item) for item in config.collections}
        encodable = frozenset(
            name for name, service in services.items() if _same_encoder(config, service.collection)
        )  # fmt: skip
        encode: Encode | None = None
        if self._encoder is not None:
            encode = self._encode
        keys = Keys(config.keys) if config.keys else None
        return build_api(Services(services, config.limits, encode, encodable, keys))

    async def _encode(self, texts: list[str]) -> F32:
        vectors: F32 = await _asked(lambda: self._encoder.encode.remote(texts))
        return vectors

    def _service(self, item: CollectionConfig) -> CollectionService:
        collection = open_collection(item.url)
        builds = fresh(collection, current_builds(indexes_of(collection)))
        tier = None if item.tier == "auto" else item.tier
        backends: list[Backend] = [RemoteBackend(handle) for handle in self._groups.get(item.name, [])]
        if not backends:
            shards = ShardSet(collection, builds, threads=item.threads)
            shards.load(choose(Query(tier=tier), builds, item.url).tier)
            backends = [LocalBackend(shards, tier)]
        return CollectionService(item.name, collection, builds, backends, tier, self._config.limits.search_seconds)


def application(args: dict[str, Any]) -> Any:
    """The Serve application for a configuration given as plain data, as `serve deploy` passes it."""
    return _application(parse_config(args))


def _application(config: ServeConfig) -> Any:
    groups = {item.name: _shard_groups(item, config) for item in config.collections}
    encoder = None
    if config.encoder is not None:
        from storage.references import local_url

        deployment: Any = serve.deployment(Encoder)
        encoder = deployment.options(
            name="encoder", num_replicas=config.encoder.replicas, ray_actor_options=SMALL, max_ongoing_requests=64
        ).bind(local_url(config.encoder.model), config.encoder.max_tokens, config.encoder.threads)
    ingress: Any = serve.deployment(Ingress)
    return ingress.options(
        name="ingress",
        num_replicas=config.ingress_replicas,
        ray_actor_options=SMALL,
        max_ongoing_requests=config.limits.waiting + 64,  # the ingress itself says 503, with a problem document
    ).bind(config.model_dump(mode="json"), groups, encoder)


def _shard_groups(item: CollectionConfig, config: ServeConfig) -> list[Any]:
    """Bound deployments of a collection's shard groups; none when it is searched in the ingress."""
    collection = open_collection(item.url)
    builds = fresh(collection, current_builds(indexes_of(collection)))
    tier = None if item.tier == "auto" else item.tier
    choose(Query(tier=tier), builds, item.url)  # a tier that is not built is refused before anything starts
    fits = item.replicas == 1 and sum(build.bytes for build in builds.values()) <= config.ingress_bytes
    if item.placement == "ingress" or (item.placement == "auto" and item.groups is None and fits):
        return []
    groups = item.groups or max((len(build.shards) for build in builds.values()), default=1)
    deployment: Any = serve.deployment(Shards)
    return [
        deployment.options(
            name=f"shards-{item.name}-{number}",
            num_replicas=item.replicas,
            ray_actor_options=SMALL,
            max_ongoing_requests=64,
            user_config={"version": _version(builds)},
        ).bind(item.url, number, groups, tier, item.threads)
        for number in range(groups)
    ]


def _version(builds: dict[str, Build]) -> str:
    return "+".join(sorted(build.build for build in builds.values()))


def _same_encoder(config: ServeConfig, collection: CollectionArchive) -> bool:
    """Whether the configured encoder is the one that made the collection's rows (or nobody knows what did)."""
    from storage.references import local_url

    if config.encoder is None:
        return False
    return not collection.encoder or local_url(collection.encoder) == local_url(config.encoder.model)


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
    port = _free_port(config.host, config.port)
    app = _application(config)
    own_ray = not ray.is_initialized()
    if own_ray:
        logs: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        local: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        ray.init(**logs, **({"address": address} if address else local))
    running = Running(f"http://{_bracketed(config.host)}:{port}", own_ray)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        http: dict[str, Any] = {"host": config.host, "port": port, "request_timeout_s": None}
        serve.start(
            proxy_location="HeadOnly",
            http_options=http,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(app, name=APP, route_prefix="/", logging_config={"log_level": "WARNING", "enable_access_log": False})
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
    running.stop()


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
    serve.shutdown()  # forgets the handle that this process keeps


def _wait_ready(url: str, timeout: float) -> None:
    import httpx

    end, last = time.monotonic() + timeout, "no answer"
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end:
            try:
                reply = client.get(f"{url}/readyz", timeout=10)
                if reply.status_code == 200:
                    return
                last = reply.text[:200]
            except httpx.HTTPError as error:
                last = type(error).__name__
            time.sleep(0.1)
    raise HilbertflowError(f"the service was not ready in {timeout:.0f} s ({last})", where=url)


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


__all__: Sequence[str] = ("Running", "application", "run_forever", "start")
