"""Shard groups and encoders in other processes, asked through the handles of their deployments or past them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from cluster.encoding import Encoded, Encoding, NotLoaded
from cluster.query import Query
from cluster.service import Unavailable
from cluster.shard_door import Address
from cluster.shard_links import Busy, Links
from cluster.shard_set import Answer
from cluster.shard_wire import search_message
from cluster.vectors import F32

ATTEMPTS = 3
REACH_S = 0.5  # a group whose last replica went is not ready unless another is found at once
_log = logging.getLogger("hilbertflow.serve")


async def _answer(call: Callable[[], Any], who: str = "shard") -> Any:
    for attempt in range(ATTEMPTS):
        try:
            return await call()
        except BackPressureError as error:
            raise Busy(f"the {who} is busy") from error
        except RayActorError as error:
            if attempt + 1 == ATTEMPTS:
                raise Unavailable(f"the {who}'s replicas died") from error
            await asyncio.sleep(0.05 * 4**attempt)
    raise AssertionError("the last attempt returns or raises")


class RemoteBackend:
    """A shard group in replicas of its own; one that dies is replaced by another for the same query.

    links: the way past Serve; without them the handle is asked.
    """

    def __init__(self, handle: Any, version: str, links: Links | None = None) -> None:
        self._handle, self._version, self._links, self._past = handle, version, links, True

    async def search(self, query: Query, vectors: F32, version: int) -> Answer:
        """Ask any replica; again when it died under the query."""
        if self._links is not None and self._past:
            return await self._links.search(search_message(vectors, query, self._version, version))
        answer: Answer = await _answer(lambda: self._handle.search.remote(vectors, query, self._version, version))
        return answer

    async def ready(self) -> bool:
        """Whether a replica has this version; one that is too busy to say so has it."""
        if self._links is not None and self._links.lost and not await self._links.reach(REACH_S):
            return False
        try:
            loaded = bool(await _answer(lambda: self._handle.ready.remote(self._version)))
            if loaded and self._links is not None:
                self._past, before = await self._links.reach(), self._past
                if before and not self._past:
                    _log.warning("a shard group cannot be reached past Ray Serve, which carries its searches: slower")
            return loaded
        except Busy:
            return True


def links_of(handle: Any, replicas: int, queued: int) -> Links:
    """Connections to the replicas of a shard group that a deployment handle leads to."""

    async def find() -> Address:
        address: Address = await _answer(lambda: handle.address.remote())
        return address

    return Links(find, replicas, queued)


def remote_encoding(handle: Any, takes_pictures: bool, model: str) -> Encoding:
    """The way to an encoder deployment."""

    async def asked(call: Callable[[], Any]) -> Any:
        try:
            return await _answer(call, "encoder")
        except NotLoaded as error:
            raise Unavailable("the encoder has not loaded; GET /readyz says why") from error

    async def texts(some: list[str]) -> F32:
        vectors: F32 = await asked(lambda: handle.encode.remote(some))
        return vectors

    async def pictures(some: list[bytes]) -> Encoded:
        encoded: Encoded = await asked(lambda: handle.encode_pictures.remote(some))
        return encoded

    async def fault() -> str:
        try:
            return str(await _answer(lambda: handle.fault.remote(), "encoder"))
        except Busy:
            return ""
        except Exception as error:
            return str(error) if isinstance(error, Unavailable) else type(error).__name__

    return Encoding(texts, pictures if takes_pictures else None, model, fault)
