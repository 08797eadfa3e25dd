"""What one ingress process serves, who may ask for it, and how newer versions take the place of older ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from fastapi import Request

from cluster.auth import COOKIE, Key, Keys
from cluster.config import Limits
from cluster.encoding import Encoding
from cluster.metrics import Metrics
from cluster.models import ModelService
from cluster.picture_wire import check_pictures
from cluster.problems import Refused
from cluster.readiness import Readiness
from cluster.recall_watch import estimated_recall
from cluster.service import CollectionService, Unavailable
from cluster.vectors import F32
from operators.errors import HilbertflowError

Reopen = Callable[[CollectionService], CollectionService | None]

_T = TypeVar("_T")
_log = logging.getLogger("hilbertflow.serve")


@dataclass
class Services:
    """Collections and models by name, with the limits and keys that guard them.

    encoders: the way to the model that made a collection's rows, by collection; some may share one.
    read_only: those whose rows may not be changed.
    reopen: blocking; gives a service for what lies on storage now, None when that is what is served. refresh_seconds:
    between two looks; 0 never looks by itself. recall_seconds: between two estimates of recall, of collections of at
    most recall_rows.
    """

    collections: dict[str, CollectionService]
    models: dict[str, ModelService] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    encoders: dict[str, Encoding] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()
    keys: Keys | None = None
    metrics: Metrics = field(default_factory=Metrics)
    active: int = 0
    reopen: Reopen | None = None
    refresh_seconds: float = 0.0
    recall_seconds: float = 0.0
    recall_rows: int = 1_000_000

    def __post_init__(self) -> None:
        self.pictures = asyncio.Semaphore(self.limits.pictures)
        self.readiness = Readiness(self.collections, self.encoders)
        self._swapping = asyncio.Lock()
        for service in self.collections.values():
            self.metrics.describe(service)

    async def refresh(self, name: str) -> bool:
        """Serve the newest version of a collection; True when it is another one than before.

        The newer one takes over when all its shards are loaded; queries in flight end on the version they began with.
        """
        if self.reopen is None:
            return False
        async with self._swapping:
            old = self.collections[name]
            new = await asyncio.to_thread(self.reopen, old)
            if new is None:
                return False
            missing = await new.missing()
            if missing and not await old.missing():
                _log.warning("%s: groups %s did not load the new version; the old one stays", name, missing)
                return False
            self.collections[name] = new
            self.metrics.describe(new, old)
            return True

    async def watch(self) -> None:
        """Refresh every collection again and again; a fault is logged and the old version goes on."""
        while self.refresh_seconds:
            await asyncio.sleep(self.refresh_seconds)
            for name in list(self.collections):
                try:
                    if not await self.refresh(name):
                        await self.collections[name].follow()
                except Exception as error:
                    _log.warning("%s was not refreshed: %s", name, error)

    async def watch_recall(self) -> None:
        """Estimate the recall of every collection again and again, from what was asked meanwhile."""
        while self.recall_seconds:
            await asyncio.sleep(self.recall_seconds)
            for service in list(self.collections.values()):
                if service.view.count > self.recall_rows:
                    continue
                try:
                    self.metrics.estimated(service.name, await estimated_recall(service))
                except Exception as error:
                    _log.warning("the recall of %s was not estimated: %s", service.name, type(error).__name__)

    def key(self, request: Request, action: str = "read") -> Key | None:
        """The caller's key; None where keys are not used. Raises 401 for a missing or unknown one.

        A browser's cookie (`cluster.page.key`) only reads: what changes something needs the header, which no other site
        can make a browser send.
        """
        if self.keys is None:
            return None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme and action == "read":
            scheme, token = "bearer", unquote(request.cookies.get(COOKIE, ""))
        key = self.keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            bearer = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "no valid key", remedy="send Authorization: Bearer KEY", headers=bearer)
        return key

    def collection(self, request: Request, name: str, action: str = "read") -> CollectionService:
        """The collection, if the caller may do this to it; raises 401, 403 or 404."""
        key = self.key(request, action)
        if key is not None and not key.allows(action, name):
            raise _forbidden(key, action, name)
        service = self.collections.get(name)
        if service is None:
            raise Refused(404, f"there is no collection {name[:80]!r}", remedy="GET /v1/collections lists them")
        return service

    def changeable(self, request: Request, name: str) -> CollectionService:
        """The collection, if the caller may change its rows and it may be changed; raises 401, 403 or 404."""
        service = self.collection(request, name, "write")
        if name in self.read_only:
            raise Refused(403, f"collection {name!r} is read-only here", remedy="serve it without read_only")
        return service

    def measurable(self, request: Request) -> None:
        """Raises 401 or 403 unless the caller may read the metrics, which name every collection."""
        key = self.key(request)
        if key is not None and not key.allows("metrics", "*"):
            raise Refused(
                403, f"key {key.name!r} may not read metrics", remedy="use a key with the scope metrics:* or read:*"
            )

    @contextlib.contextmanager
    def admitted(self, before: bool = False) -> Iterator[None]:
        """Count a request that does work; raises 503 when there are too many at once, unless it was let in before."""
        if self.active >= self.limits.waiting and not before:
            raise Refused(503, "too many requests at once", remedy="send it again", headers={"Retry-After": "1"})
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def at_work(self, work: Callable[[], _T]) -> _T:
        """Do what reads or draws models in a thread, a few at a time."""
        async with self.pictures:
            return await asyncio.to_thread(work)

    def model(self, request: Request, name: str) -> ModelService:
        """The model, if the caller may read it; raises 401, 403 or 404."""
        key = self.key(request)
        if key is not None and not key.allows("read", name):
            raise _forbidden(key, "read", name)
        if name not in self.models:
            raise Refused(404, f"there is no model {name[:80]!r}", remedy="GET /v1/models lists them")
        return self.models[name]

    def readable_models(self, request: Request) -> list[ModelService]:
        """The models that the caller may read."""
        key = self.key(request)
        return [item for item in self.models.values() if key is None or key.allows("read", item.name)]

    def readable(self, request: Request) -> list[CollectionService]:
        """The collections that the caller may read."""
        key = self.key(request)
        return [item for item in self.collections.values() if key is None or key.allows("read", item.name)]

    def by_text(self, name: str) -> bool:
        """Whether a collection can be searched by text."""
        return name in self.encoders

    def by_picture(self, name: str) -> bool:
        """Whether a collection can be searched by picture."""
        return name in self.encoders and self.encoders[name].takes_pictures

    async def picture_vectors(self, name: str, files: list[bytes]) -> F32:
        """Query vectors (n, dim) of JPEG and PNG files, whose sizes are judged first."""
        encoding = self._encoding(name, "images")
        await asyncio.to_thread(check_pictures, files, self.limits)
        return await self._in_time(encoding.pictures(files))

    async def vectors(self, name: str, texts: list[str]) -> F32:
        """Query vectors (n, dim) of texts."""
        if not texts:
            raise HilbertflowError("texts is empty", where="body")
        encoding = self._encoding(name, "texts")
        longest = max(map(len, texts))
        if longest > self.limits.text_chars:
            raise Refused(
                413, f"a text has {longest} characters; the limit is {self.limits.text_chars}", remedy="shorten it"
            )  # fmt: skip
        return await self._in_time(encoding.texts(texts))

    async def _in_time(self, encoded: Coroutine[Any, Any, F32]) -> F32:
        """What an encoder gives, as long as a shard may take; a request that waited for ever would keep its place."""
        try:
            async with asyncio.timeout(self.limits.search_seconds):
                return await encoded
        except TimeoutError:
            raise Unavailable("the encoder did not answer in time") from None

    def _encoding(self, name: str, where: str) -> Encoding:
        if name not in self.encoders:
            raise HilbertflowError(
                f"the rows of {name!r} were not made by an encoder of this service", where=where,
                remedy="send vectors, or configure `encoder`",
            )  # fmt: skip
        return self.encoders[name]


def _forbidden(key: Key, action: str, name: str) -> Refused:
    return Refused(
        403, f"key {key.name!r} may not {action} {name[:80]!r}",
        remedy=f"use a key with the scope {action}:{name[:80]}, which its file on the server can give",
    )  # fmt: skip
