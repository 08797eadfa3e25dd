"""Whether all that the configuration names has loaded: asked at most once a second, however many want to know.

A part that takes long to answer (a busy one answers behind its requests) keeps its last answer for a while; nobody who
asks waits for longer than a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from cluster.encoding import Encoding
from cluster.service import CollectionService

FRESH_S = 1.0  # an answer that is younger is given again
WAIT_S = 1.0  # so long a question waits for a part
PATIENCE_S = 10.0  # after so long without an answer the last one holds no more

_T = TypeVar("_T")


class EncoderState(BaseModel):
    """A model that turns texts or pictures into query vectors."""

    model: str = Field(description="Its name: the last part of its place.", examples=["all-MiniLM-L6-v2"])
    collections: list[str] = Field(description="Collections whose queries it encodes.", examples=[["docs"]])
    state: Literal["loaded", "loading", "failed"] = Field(
        description="failed is tried again every few seconds; searches by vector go on.", examples=["loaded"]
    )
    reason: str = Field(description="Why it failed; empty otherwise.", examples=[""])


class Ready(BaseModel):
    """Whether every shard group of every collection answers, and every encoder has loaded."""

    ready: bool = Field(description="True when none is missing.")
    missing_groups: dict[str, list[int]] = Field(
        description="Numbers of the groups that do not answer, by collection.", examples=[{"docs": [1]}]
    )
    encoders: list[EncoderState] = Field(description="All that the configuration names and a collection needs.")


class _Kept(Generic[_T]):
    """The last answer to a question: asked again when it is old, never twice at once."""

    def __init__(self, ask: Callable[[], Awaitable[_T]], unknown: _T) -> None:
        self._ask, self._answer, self._unknown = ask, unknown, unknown
        self._task: asyncio.Future[_T] | None = None
        self._asked = self._told = float("-inf")

    async def get(self) -> _T:
        if self._task is None:
            if time.monotonic() - self._told < FRESH_S:
                return self._answer
            self._task = asyncio.ensure_future(self._ask())
            self._task.add_done_callback(self._done)
            self._asked = time.monotonic()
        await asyncio.wait([self._task], timeout=WAIT_S)
        if self._task is not None and time.monotonic() - self._asked > PATIENCE_S:
            self._answer = self._unknown
        return self._answer

    def _done(self, task: asyncio.Future[_T]) -> None:
        self._task, self._told = None, time.monotonic()
        if not task.cancelled() and task.exception() is None:
            self._answer = task.result()


class Readiness:
    """Of these collections, as they are at the time, and of these encoders by collection."""

    def __init__(self, collections: Mapping[str, CollectionService], encoders: Mapping[str, Encoding]) -> None:
        def asked(name: str, group: int) -> _Kept[bool]:
            return _Kept(lambda: collections[name].ready(group), False)

        self._groups = {name: [asked(name, g) for g in range(item.groups)] for name, item in collections.items()}
        self._users: dict[Encoding, list[str]] = {}
        for name, encoding in encoders.items():
            self._users.setdefault(encoding, []).append(name)
        self._faults: dict[Encoding, _Kept[str | None]] = {item: _Kept(item.fault, None) for item in self._users}

    async def missing(self, name: str) -> list[int]:
        """Numbers of a collection's groups that do not answer."""
        states = await asyncio.gather(*(kept.get() for kept in self._groups[name]))
        return [number for number, state in enumerate(states) if not state]

    async def encoders(self) -> list[EncoderState]:
        """Every encoder once."""
        faults = await asyncio.gather(*(kept.get() for kept in self._faults.values()))
        return [
            EncoderState(
                model=item.model, collections=names, reason=fault or "",
                state="loading" if fault is None else "failed" if fault else "loaded",
            )
            for (item, names), fault in zip(self._users.items(), faults, strict=True)
        ]  # fmt: skip

    async def now(self) -> Ready:
        """All of it."""
        states = asyncio.gather(*map(self.missing, self._groups))
        encoders = await self.encoders()
        missing = {name: groups for name, groups in zip(self._groups, await states, strict=True) if groups}
        ready = not missing and all(item.state == "loaded" for item in encoders)
        return Ready(ready=ready, missing_groups=missing, encoders=encoders)
