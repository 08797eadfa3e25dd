"""A client of the endpoint, plain and asynchronous: vectors go as float32, answers come as Arrow, refusals as errors.

    with Client("http://127.0.0.1:8000") as client:
        found = client.search("docs", texts=["singular value decomposition"], k=5)
        found.ids[0], found.scores[0]

        client.upsert("docs", ["a"], vectors, metadata={"lines": [3]})

A request that did not get through, or that a busy service put off (503), is sent again: five times, after growing
pauses or as long as the service asks. Sending twice is safe: searching changes nothing, and every change carries an
idempotency key. A client's searches see its own changes, whichever replica answers.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.media import ARROW, FLOATS, JSON
from operators.errors import HilbertflowError

ATTEMPTS = 5
PAUSE_S, LONGEST_S = 0.1, 5.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Answers to q queries, best first: lists of ids, float32 scores and int64 rows, a list a query.

    partial: some shard did not answer, so that better rows may be missing. metadata: a dict a row, where asked for.
    """

    ids: list[list[Any]]
    scores: list[npt.NDArray[np.float32]]
    rows: list[npt.NDArray[np.int64]]
    partial: bool
    metadata: list[list[dict[str, Any]]] | None = None

    @classmethod
    def read(cls, reply: httpx.Response) -> Found:
        """From an Arrow or a JSON answer."""
        if reply.headers["Content-Type"].startswith(ARROW):
            hits = pa.ipc.open_stream(reply.content).read_all().to_pylist()
        else:
            hits = reply.json()["results"]
        told = [hit["metadata"] for hit in hits if hit.get("metadata") is not None]
        return cls(
            [hit["ids"] for hit in hits], [np.array(hit["scores"], np.float32) for hit in hits],
            [np.array(hit["rows"], np.int64) for hit in hits], any(hit["partial"] for hit in hits), told or None,
        )  # fmt: skip


@dataclass(frozen=True)
class Asked(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: dict[str, Any] = field(default_factory=dict)


class _Versions:
    """What both clients know: the versions that their own changes made, by collection."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}


def search(
    self: _Versions, /, collection: str, vectors: Any = None, *, texts: Sequence[str] | None = None,
    images: Sequence[bytes] | None = None, k: int = 10, metadata: bool = False, **options: Any,
) -> Asked[Found]:  # fmt: skip
    """Rows nearest to vectors (q, dim), to texts, or to JPEG or PNG files.

    metadata: return that of the rows. options: tier, filter, radius, nprobe, ef, refine, level, version.
    """
    if sum(given is not None for given in (vectors, texts, images)) != 1:
        raise HilbertflowError("give one of vectors, texts and images", where="search")
    options = {"version": self.seen.get(collection), **options, "k": k, "metadata": metadata}
    chosen = {name: value for name, value in options.items() if value is not None}
    body: dict[str, Any] = {"headers": {"Accept": JSON if metadata else ARROW}}
    if vectors is not None:
        body |= {"content": np.ascontiguousarray(np.atleast_2d(vectors), "<f4").tobytes(), "params": chosen}
        body["headers"]["Content-Type"] = FLOATS
    elif texts is not None:
        body["json"] = {"texts": list(texts), **chosen}
    else:
        body["json"] = {"images": [base64.b64encode(data).decode() for data in images or ()], **chosen}
    return Asked("POST", f"/v1/collections/{collection}/search", Found.read, body)


def upsert(
    self: _Versions, /, collection: str, ids: Sequence[str], vectors: Any = None, *, texts: Sequence[str] | None = None,
    metadata: Any = None, op: str = "upsert", key: str | None = None,
) -> Asked[int]:  # fmt: skip
    """Put rows in: vectors (n, dim) or texts, and metadata columns by name; durable when it returns their version.

    op: `upsert` replaces rows whose id exists, `append` refuses them. key: of your own, to send it again later.
    """
    if (vectors is None) == (texts is None):
        raise HilbertflowError("give either vectors or texts", where=op)
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    else:
        values = np.ascontiguousarray(np.atleast_2d(vectors), np.float32)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    sink = pa.BufferOutputStream()
    table = pa.table(columns | dict(metadata or {}))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = {"content": sink.getvalue().to_pybytes(), "params": {"op": op}, "headers": {"Content-Type": ARROW}}
    return _changed(self, "POST", collection, body, key)


def delete(self: _Versions, /, collection: str, ids: Sequence[str], key: str | None = None) -> Asked[int]:
    """Delete rows by id; durable when it returns the rows' version."""
    return _changed(self, "DELETE", collection, {"json": {"ids": list(ids)}, "headers": {}}, key)


def collections(self: _Versions, /) -> Asked[list[dict[str, Any]]]:
    """What is served."""
    return Asked("GET", "/v1/collections", lambda reply: list(reply.json()["collections"]))


def _changed(self: _Versions, method: str, collection: str, body: dict[str, Any], key: str | None) -> Asked[int]:
    def read(reply: httpx.Response) -> int:
        version = int(reply.json()["version"])
        self.seen[collection] = max(version, self.seen.get(collection, 0))
        return version

    body["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
    return Asked(method, f"/v1/collections/{collection}/rows", read, body)


def _pause(reply: httpx.Response | None, attempt: int) -> float | None:
    """Seconds until a request should be sent again; None when its answer stands."""
    if attempt + 1 >= ATTEMPTS or (reply is not None and reply.status_code not in (429, 503)):
        return None
    asked = reply.headers.get("Retry-After", "") if reply is not None else ""
    grown = PAUSE_S * 2**attempt * (0.5 + random.random())
    return min(float(asked) if asked.isdigit() else grown, LONGEST_S)


def _checked(reply: httpx.Response | None, fault: httpx.TransportError | None, url: str) -> httpx.Response:
    if reply is None:
        raise HilbertflowError(f"the service does not answer ({type(fault).__name__})", where=url)
    if reply.is_success:
        return reply
    try:
        problem = reply.json()
        what, where, remedy = problem["detail"], problem.get("where", ""), problem.get("remedy", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        what, where, remedy = f"HTTP {reply.status_code}", "", ""
    raise HilbertflowError(what, where=where or str(reply.request.url), remedy=remedy)


def _options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": False}


def _plain(ask: Callable[Concatenate[_Versions, P], Asked[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(ask)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = ask(self, *args, **kwargs)
        return asked.read(self._send(asked))

    return call


def _awaited(
    ask: Callable[Concatenate[_Versions, P], Asked[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(ask)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = ask(self, *args, **kwargs)
        return asked.read(await self._send(asked))

    return call


class Client(_Versions):
    """The endpoint at `url`; key: an API key where the service wants one; timeout: seconds a request may take."""

    search, upsert, delete, collections = _plain(search), _plain(upsert), _plain(delete), _plain(collections)

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        super().__init__()
        self._http = httpx.Client(**_options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, asked: Asked[Any]) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            reply, fault = None, None
            try:
                reply = self._http.request(asked.method, asked.path, **asked.body)
            except httpx.TransportError as error:
                fault = error
            pause = _pause(reply, attempt)
            if pause is None:
                break
            time.sleep(pause)
        return _checked(reply, fault, str(self._http.base_url))


class AsyncClient(_Versions):
    """The same for `async with` and `await`."""

    search, upsert, delete, collections = _awaited(search), _awaited(upsert), _awaited(delete), _awaited(collections)

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        super().__init__()
        self._http = httpx.AsyncClient(**_options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, asked: Asked[Any]) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            reply, fault = None, None
            try:
                reply = await self._http.request(asked.method, asked.path, **asked.body)
            except httpx.TransportError as error:
                fault = error
            pause = _pause(reply, attempt)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return _checked(reply, fault, str(self._http.base_url))
