"""A client of the endpoint, plain and asynchronous: vectors go as float32, refusals come as errors.

    with Client("http://127.0.0.1:8000") as client:
        found = client.search("docs", texts=["singular value decomposition"], k=5)
        client.upsert("docs", ["a"], vectors, metadata={"lines": [3]})

A request that did not get through, or that a busy service put off (503), is sent again: five times, after growing
pauses or as long as the service asks. Sending twice is safe: every change carries an idempotency key. A client's
searches see its own changes, whichever replica answers.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import httpx
import numpy as np
import pyarrow as pa

from cluster.found import Found
from cluster.media import ARROW, FLOATS, JSON
from operators.errors import HilbertflowError

ATTEMPTS, PAUSE_S, LONGEST_S = 5, 0.1, 5.0
FEW = 64  # so many rows are sooner written and read as JSON than as Arrow
FoundT = TypeVar("FoundT")
VersionT = TypeVar("VersionT")
ListT = TypeVar("ListT")


def _pause(came: Any, attempt: int) -> float | None:
    """Seconds until a request is sent again, None when its answer stands; raises what was refused."""
    if (answered := isinstance(came, httpx.Response)) and came.is_success:
        return None
    if attempt + 1 < ATTEMPTS and (not answered or came.status_code in (429, 503)):
        wanted = came.headers.get("Retry-After", "") if answered else ""
        grown: float = 2**attempt * random.random()  # at random: those refused together must not come back together
        return min(float(wanted) * (1 + grown) if wanted.isdigit() else PAUSE_S * (0.5 + grown), LONGEST_S)
    what = f"HTTP {came.status_code}" if answered else f"the service does not answer ({type(came).__name__})"
    told = came.json() if answered and "problem+json" in came.headers.get("Content-Type", "") else {}
    where, remedy = told.get("where", str(came.request.url)), told.get("remedy", "")
    raise HilbertflowError(told.get("detail", what), where=where, remedy=remedy)


class _Requests(Generic[FoundT, VersionT, ListT]):
    """What can be asked, and how answers are read; how a request is sent is a client's own."""

    _transport: Any
    _send: Any  # takes a reader, method, path and what `httpx` takes; gives what the reader makes of the answer

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: Any = self._transport(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self._seen: dict[str, int] = {}  # versions that our own changes made, by collection

    def search(
        self, collection: str, vectors: Any = None, *, texts: Sequence[str] | str | None = None,
        images: Sequence[bytes] | None = None, k: int = 10, metadata: bool = False, **options: Any,
    ) -> FoundT:  # fmt: skip
        """Rows nearest to vectors (q, dim), to texts, or to JPEG or PNG files.

        metadata: return that of the rows. options: tier, filter, radius, nprobe, ef, refine, level, version.
        """
        if sum(given is not None for given in (vectors, texts, images)) != 1:
            raise HilbertflowError("give one of vectors, texts and images", where="search")
        texts = [texts] if isinstance(texts, str) else texts
        options = {"version": self._seen.get(collection), **options, "k": k, "metadata": metadata}
        chosen = {name: value for name, value in options.items() if value is not None}
        headers = {}
        if vectors is not None:
            matrix = np.atleast_2d(np.asarray(vectors, "<f4"))
            chosen["dim"] = matrix.shape[1]
            queries, body = len(matrix), {"content": matrix.tobytes(), "params": chosen}
            headers["Content-Type"] = FLOATS
        else:
            files = [base64.b64encode(data).decode() for data in images or ()]
            given = {"images": files} if texts is None else {"texts": list(texts)}
            queries, body = len(texts or files), {"json": chosen | given}
        headers["Accept"] = JSON if metadata or queries * k <= FEW else ARROW
        asked: FoundT = self._send(Found.read, "POST", f"/v1/collections/{collection}/search", headers=headers, **body)
        return asked

    def upsert(
        self, collection: str, ids: Sequence[str], vectors: Any = None, *, texts: Sequence[str] | None = None,
        metadata: Any = None, op: str = "upsert", key: str | None = None,
    ) -> VersionT:  # fmt: skip
        """Put rows in: vectors (n, dim) or texts, and metadata columns by name; durable when it returns their version.

        op: `upsert` replaces rows whose id exists, `append` refuses them. key: of your own, to send it again later.
        """
        if (vectors is None) == (texts is None):
            raise HilbertflowError("give either vectors or texts", where=op)
        columns = {"id": pa.array(ids, pa.string())}
        if texts is None:
            values = np.atleast_2d(np.asarray(vectors, np.float32))
            columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        else:
            columns["text"] = pa.array(texts, pa.string())
        table, sink = pa.table(columns | dict(metadata or {})), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue().to_pybytes()
        return self._change("POST", collection, key, {"Content-Type": ARROW}, content=content, params={"op": op})

    def delete(self, collection: str, ids: Sequence[str], key: str | None = None) -> VersionT:
        """Delete rows by id; durable when it returns the rows' version."""
        return self._change("DELETE", collection, key, {}, json={"ids": list(ids)})

    def collections(self) -> ListT:
        """What is served."""
        answer: ListT = self._send(lambda reply: reply.json()["collections"], "GET", "/v1/collections")
        return answer

    def _change(self, method: str, collection: str, key: str | None, headers: Any, **body: Any) -> VersionT:
        def read(reply: httpx.Response) -> int:
            version = int(reply.json()["version"])
            self._seen[collection] = max(version, self._seen.get(collection, 0))
            return version

        headers["Idempotency-Key"] = key or uuid.uuid4().hex
        answer: VersionT = self._send(read, method, f"/v1/collections/{collection}/rows", headers=headers, **body)
        return answer


class Client(_Requests[Found, int, list[Any]]):
    """The endpoint at `url`; key: an API key where the service wants one; timeout: seconds a request may take."""

    _transport = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, read: Callable[[httpx.Response], Any], method: str, path: str, **body: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                came = self._http.request(method, path, **body)
            except httpx.TransportError as error:
                came = error
            if (pause := _pause(came, attempt)) is None:
                return read(came)
            time.sleep(pause)


class AsyncClient(_Requests[Awaitable[Found], Awaitable[int], Awaitable[list[Any]]]):
    """The same for `async with` and `await`."""

    _transport = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, read: Callable[[httpx.Response], Any], method: str, path: str, **body: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                came = await self._http.request(method, path, **body)
            except httpx.TransportError as error:
                came = error
            if (pause := _pause(came, attempt)) is None:
                return read(came)
            await asyncio.sleep(pause)
