"""What one ingress process serves, and who may ask for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from cluster.auth import Key, Keys
from cluster.config import Limits
from cluster.metrics import Metrics
from cluster.problems import Refused
from cluster.service import CollectionService
from cluster.vectors import F32
from operators.errors import HilbertflowError

Encode = Callable[[list[str]], Awaitable[F32]]


@dataclass
class Services:
    """Collections by name, with the limits and keys that guard them.

    encode: texts to (n, dim) query vectors; None without an encoder. encodable: collections whose rows it made.
    """

    collections: Mapping[str, CollectionService]
    limits: Limits = field(default_factory=Limits)
    encode: Encode | None = None
    encodable: frozenset[str] = frozenset()
    keys: Keys | None = None
    metrics: Metrics = field(default_factory=Metrics)
    active: int = 0

    def __post_init__(self) -> None:
        for service in self.collections.values():
            self.metrics.describe(service)

    def key(self, request: Request) -> Key | None:
        """The caller's key; None where keys are not used. Raises 401 for a missing or unknown one."""
        if self.keys is None:
            return None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        key = self.keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            bearer = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "no valid key", remedy="send Authorization: Bearer KEY", headers=bearer)
        return key

    def collection(self, request: Request, name: str, action: str = "read") -> CollectionService:
        """The collection, if the caller may do this to it; raises 401, 403 or 404."""
        key = self.key(request)
        if key is not None and not key.allows(action, name):
            raise Refused(403, f"key {key.name!r} may not {action} {name[:80]!r}")
        service = self.collections.get(name)
        if service is None:
            raise Refused(404, f"there is no collection {name[:80]!r}", remedy="GET /v1/collections lists them")
        return service

    def readable(self, request: Request) -> list[CollectionService]:
        """The collections that the caller may read."""
        key = self.key(request)
        return [item for item in self.collections.values() if key is None or key.allows("read", item.name)]

    def by_text(self, name: str) -> bool:
        """Whether a collection can be searched by text."""
        return self.encode is not None and name in self.encodable

    async def vectors(self, name: str, texts: list[str]) -> Any:
        """Query vectors of texts."""
        if not texts:
            raise HilbertflowError("texts is empty", where="body")
        if self.encode is None:
            raise HilbertflowError(
                "this service has no encoder", where="texts", remedy="send vectors, or configure `encoder`"
            )
        if name not in self.encodable:
            raise HilbertflowError(
                f"the rows of {name!r} were not made by this service's encoder", where="texts", remedy="send vectors"
            )
        longest = max(map(len, texts))
        if longest > self.limits.text_chars:
            raise Refused(413, f"a text has {longest} characters; the limit is {self.limits.text_chars}")
        return await self.encode(texts)
