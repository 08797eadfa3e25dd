"""The service on Ray Serve: shard groups, encoders and an HTTP ingress as deployments, from one configuration.

`serve deploy` takes the same keys as the arguments of this application; `cluster.running` starts it from Python:

    applications:
      - name: hilbertflow
        import_path: cluster.serve_app:application
        args: {collections: [{name: docs, url: s3://bucket/root/collections/docs}]}
"""

from __future__ import annotations

import inspect
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ray
import ray.serve.config
from ray import serve

from cluster.api import build_api
from cluster.auth import Keys
from cluster.config import CollectionConfig, EncoderConfig, ServeConfig, parse_config
from cluster.device import Device
from cluster.encoding import Encoder, Encoding
from cluster.gpu_share import Gpus, share
from cluster.listener import LEAVE_S, Listener
from cluster.local_backend import LocalBackend
from cluster.models import ModelService
from cluster.planner import choose
from cluster.query import Query
from cluster.remote import RemoteBackend, links_of, remote_encoding
from cluster.scaling import SEARCHES, by_searches
from cluster.service import Backend, CollectionService
from cluster.services import Services
from cluster.shard_door import Address, Door
from cluster.shard_links import Links
from cluster.shard_set import Answer, ShardSet
from cluster.vectors import F32
from cluster.versions import Version, newest, open_version
from cluster.warming import meet_rows, meet_tensors, warm
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from storage.rowlog import RowLog

Encodable = tuple[Any, bool, str, list[str]]
"""Handle of an encoder deployment, whether it takes pictures, its name, names of the collections whose rows it made."""
SMALL = {"num_cpus": 0.1}  # deployments wait more than they work; FAISS's threads are set by the configuration
OVERLAPPING: dict[str, Any] = (
    {"max_surge_percent": 100} if "max_surge_percent" in inspect.signature(serve.Deployment.options).parameters else {}
)
"""With other arguments a new replica is started before the old one stops, where Serve can do so: otherwise nobody is
answered while the only one loads."""
POLICIES = hasattr(ray.serve.config, "AutoscalingContext")
"""Whether this Serve asks a function of ours how many replicas there should be."""


class Shards:
    """One shard group of a collection: its indexes in memory, one search at a time.

    Two versions are held while one takes over from the other, so that queries end on the version they began with.
    """

    def __init__(
        self, url: str, group: int, groups: int, tier: str | None, threads: int, device: Device, cache: int
    ) -> None:
        self._url, self._group, self._groups, self._tier = url, group, groups, tier
        self._threads, self._device, self._cache = threads, device, cache
        self._lock = threading.Lock()
        self._held: OrderedDict[str, ShardSet] = OrderedDict()
        self._at("")
        self._door = Door(self.search, ray.util.get_node_ip_address())

    def address(self) -> Address:
        """Where it can be asked without Serve."""
        return self._door.address

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for `cluster.scaling`."""
        return {SEARCHES: self._door.searches}

    def _at(self, version: str) -> ShardSet:
        """The shards of this version if they are held, else of the version that lies on storage now."""
        with self._lock:
            if version in self._held:
                return self._held[version]
            now = open_version(self._url)
            if now.name not in self._held:
                shards = ShardSet(
                    now.collection,
                    now.builds,
                    self._group,
                    self._groups,
                    self._threads,
                    device=self._device,
                    cache=self._cache,
                )
                warm(shards, self._tier)
                meet_rows(now.collection, now.builds)
                self._held[now.name] = shards
                while len(self._held) > 2:
                    self._held.popitem(last=False)
            return self._held[now.name]

    def __del__(self) -> None:
        """Called by Serve when the replica goes: it knows of no search that came past it."""
        if door := getattr(self, "_door", None):
            door.close(LEAVE_S)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load what is current now, ahead of the first query that asks for it."""
        self._at("")

    def search(self, vectors: F32, query: Query, version: str, rows_version: int) -> Answer:
        """Best rows of the group, at this version of the rows or a later one."""
        return self._at(version).search(vectors, query, rows_version)

    def ready(self, version: str) -> bool:
        """Whether this version is loaded."""
        self._at(version)
        return version in self._held


@serve.ingress()
class Ingress:
    """HTTP, routing and merging; also the shards of collections placed here."""

    def __init__(self, body: dict[str, Any], groups: dict[str, list[Any]], encoders: list[Encodable]) -> None:
        self._config, self._groups, self._encoders = ServeConfig.model_validate(body), groups, encoders
        self._links = {item.name: self._links_of(item) for item in self._config.collections}
        self._services: Services | None = None
        self._app: Any = None
        self._listener: Listener | None = None

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once this replica is constructed; what could be slow at first happens here."""
        config = self._config
        services = {item.name: self._service(item, open_version(item.url)) for item in config.collections}
        encoders: dict[str, Encoding] = {}
        for handle, takes_pictures, model, names in self._encoders:
            encoders |= dict.fromkeys(names, remote_encoding(handle, takes_pictures, model))
        models = {item.name: ModelService.open(item.name, item.url) for item in config.models}
        meet_tensors(models.values())
        self._services = Services(
            services, models, config.limits, encoders, keys=Keys(config.keys) if config.keys else None,
            read_only=frozenset(item.name for item in config.collections if item.read_only),
            reopen=self._reopen, refresh_seconds=config.refresh_seconds,
            recall_seconds=config.recall_seconds, recall_rows=config.recall_rows,
        )  # fmt: skip
        self._app = build_api(self._services)
        return self._app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve what is current now; queries that have begun end on the version they began with."""
        if self._services is not None:
            for name in list(self._services.collections):
                await self._services.refresh(name)
        if self._listener is None and self._config.listen:
            self._listener = Listener(self._app, self._config.host, self._config.port, self._config.limits.head_seconds)

    async def readiness(self) -> dict[str, Any]:
        """What `/readyz` tells whoever may know all of it."""
        return (await self._services.readiness.now()).model_dump() if self._services is not None else {}

    def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises."""
        if self._listener is not None:
            self._listener.check()

    async def __del__(self) -> None:
        """Called by Serve when the replica goes: requests that have begun are answered."""
        if self._listener is not None:
            await self._listener.close()

    def _links_of(self, item: CollectionConfig) -> list[Links | None]:
        """A way past Serve to each group; none where Ray encrypts what its processes say to one another.

        None either where a Serve that takes no policy of ours (`cluster.scaling`) is to find out how many replicas
        there should be: it must carry what it counts.
        """
        most = item.max_replicas or item.replicas
        counted = most != item.replicas and not POLICIES
        private = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
        handles, queued = self._groups.get(item.name, []), self._config.limits.queued
        return [None if counted or private else links_of(handle, most, queued) for handle in handles]

    def _reopen(self, old: CollectionService) -> CollectionService | None:
        item = next(item for item in self._config.collections if item.name == old.name)
        return None if newest(item.url) == old.version else self._service(item, open_version(item.url))

    def _service(self, item: CollectionConfig, now: Version) -> CollectionService:
        tier = item.usual_tier
        log = RowLog(now.collection)
        handles = self._groups.get(item.name, [])
        ways = zip(handles, self._links[item.name], strict=True)
        backends: list[Backend] = [RemoteBackend(handle, now.name, links) for handle, links in ways]
        if not handles:
            shards = ShardSet(now.collection, now.builds, threads=item.threads, log=log, cache=item.cache_bytes)
            warm(shards, tier)
            backends = [LocalBackend(shards, tier)]
        meet_rows(now.collection, {} if handles else now.builds)  # rows are looked up here in any case
        seconds = self._config.limits.search_seconds
        return CollectionService(
            item.name, now.collection, now.builds, backends, tier, seconds, now.name, log, item.thumbnails
        )  # fmt: skip


def application(args: dict[str, Any]) -> Any:
    """The Serve application for a configuration given as plain data, as `serve deploy` passes it."""
    return build_application(parse_config(args))


def build_application(config: ServeConfig) -> Any:
    """The Serve application for a checked configuration."""
    groups, gpus = dict[str, list[Any]](), Gpus.found()
    for item in sorted(config.collections, key=lambda item: item.device != "cuda"):  # who must have one comes first
        groups[item.name], gpus = _shard_groups(item, config, gpus)
    for model in config.models:
        ModelService.open(model.name, model.url)  # refused before anything starts
    ingress: Any = serve.deployment(Ingress)
    return ingress.options(
        name="ingress",
        num_replicas=config.ingress_replicas,
        ray_actor_options=SMALL,
        max_ongoing_requests=config.limits.waiting + 64,  # the ingress itself says 503, with a problem document
        user_config={},
        **OVERLAPPING,
    ).bind(config.model_dump(mode="json"), groups, _encoders(config))


def _replicas(least: int, most: int | None) -> dict[str, Any]:
    """Serve's options for a fixed number of replicas, or for as many as the load asks for."""
    if most is None or most == least:
        return {"num_replicas": least}
    bounds = {"min_replicas": least, "initial_replicas": least, "max_replicas": most, "target_ongoing_requests": 4}
    policy = {"policy": {"policy_function": by_searches}} if POLICIES else {}
    return {"autoscaling_config": bounds | policy}


def _shard_groups(item: CollectionConfig, config: ServeConfig, there: Gpus) -> tuple[list[Any], Gpus]:
    """Bound deployments of a collection's shard groups, none when it is searched in the ingress; and GPUs left over."""
    now = open_version(item.url)
    tier = item.usual_tier
    # A tier that is not built is refused before anything starts.
    usual = choose(Query(tier=tier), now.builds, now.collection).tier
    fits = item.replicas == 1 and item.max_replicas in (None, 1) and now.index_bytes <= config.ingress_bytes
    groups = item.groups or max((len(build.shards) for build in now.builds.values()), default=1)
    gpus = share(item, usual, now.builds, groups, there)
    if item.placement == "ingress" or (item.placement == "auto" and item.groups is None and fits and not gpus):
        return [], there
    deployment: Any = serve.deployment(Shards)
    bound = [
        deployment.options(
            name=f"shards-{item.name}-{number}",
            ray_actor_options=SMALL | ({"num_gpus": gpus} if gpus else {}),
            max_ongoing_requests=8,  # of those that Serve carries: one is searched at a time, the rest waits here
            max_queued_requests=config.limits.queued,
            user_config={},
            **({} if gpus else OVERLAPPING),  # a second replica might wait for the GPU that the first one has
            **_replicas(item.replicas, item.max_replicas),
        ).bind(item.url, number, groups, tier, item.threads, item.device if gpus else "cpu", item.cache_bytes)
        for number in range(groups)
    ]
    return bound, there.less(gpus * groups * (item.max_replicas or item.replicas))


def encoder_users(config: ServeConfig) -> dict[tuple[EncoderConfig, int], list[str]]:
    """Names of the collections by the encoder of their queries, and by the tokens behind which it cuts texts."""
    users: dict[tuple[EncoderConfig, int], list[str]] = {}
    for item in config.collections:
        chosen = item.encoder or config.encoder
        if chosen is None:
            continue
        collection = open_version(item.url).collection
        if _made_by(chosen, collection):
            tokens = collection.encoder_tokens if chosen.max_tokens is None else chosen.max_tokens
            users.setdefault((chosen, tokens), []).append(item.name)
        elif item.encoder is not None:
            raise HilbertflowError(
                f"the rows of {item.name!r} were not made by {chosen.model}", where=item.url,
                remedy="name the model that made them, or leave `encoder` out",
            )  # fmt: skip
    return users


def _encoders(config: ServeConfig) -> list[Encodable]:
    """A deployment for each model that some collection's queries need."""
    from operators.encode import open_encoder
    from storage.references import local_url

    deployment: Any = serve.deployment(Encoder)
    found: list[Encodable] = []
    for number, ((chosen, tokens), names) in enumerate(encoder_users(config).items()):
        directory = local_url(chosen.model)
        bound = deployment.options(
            name=f"encoder-{number}", ray_actor_options=SMALL, max_ongoing_requests=2,
            max_queued_requests=config.limits.queued, **OVERLAPPING, **_replicas(chosen.replicas, chosen.max_replicas),
        ).bind(directory, tokens, chosen.threads)  # fmt: skip
        found.append((bound, open_encoder(directory).takes_pictures, Path(chosen.model).name, names))
    return found


def _made_by(encoder: EncoderConfig, collection: CollectionArchive) -> bool:
    """Whether this model made the collection's rows: by its place, else by its files.

    Where nobody knows what made them, it may have if its vectors are as long.
    """
    from operators.encode import open_encoder
    from storage.references import local_url
    from storage.rows import encoder_digest

    place = local_url(encoder.model)
    if not collection.encoder:
        return not Path(place).is_dir() or open_encoder(place).dim == collection.dim
    if local_url(collection.encoder) == place:
        return True
    known = collection.encoder_digest
    return bool(known) and "://" not in place and Path(place).is_dir() and encoder_digest(place) == known
