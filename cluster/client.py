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
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.wire import ARROW, FLOATS
from operators.errors import HilbertflowError

ATTEMPTS = 5
PAUSE_S, LONGEST_S = 0.1, 5.0


@dataclass(frozen=True)
class Found:
    """Answers to q queries, best first: lists of ids, float32 scores and int64 rows, a list a query.

    partial: some shard did not answer, so that better rows may be missing.
    """

    ids: list[list[Any]]
    scores: list[npt.NDArray[np.float32]]
    rows: list[npt.NDArray[np.int64]]
    partial: bool


def _search(
    collection: str, vectors: Any, texts: Sequence[str] | None, options: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """Method, path and body of a search."""
    if (vectors is None) == (texts is None):
        raise HilbertflowError("give either vectors or texts", where="search")
    headers = {"Accept": ARROW}
    path = f"/v1/collections/{collection}/search"
    chosen = {name: value for name, value in options.items() if value is not None}
    if texts is not None:
        return "POST", path, {"json": {"texts": list(texts), **chosen}, "headers": headers}
    queries = np.atleast_2d(np.ascontiguousarray(vectors, "<f4"))
    return "POST", path, {"content": queries.tobytes(), "params": chosen, "headers": headers | {"Content-Type": FLOATS}}


def _change(
    collection: str,
    ids: Sequence[str],
    vectors: Any,
    texts: Sequence[str] | None,
    metadata: Any,
    op: str,
    key: str | None,
) -> tuple[str, str, dict[str, Any]]:
    """Method, path and body of a change of rows: Arrow for those that are put in."""
    path, headers = f"/v1/collections/{collection}/rows", {"Idempotency-Key": key or uuid.uuid4().hex}
    if op == "delete":
        return "DELETE", path, {"json": {"ids": list(ids)}, "headers": headers}
    if (vectors is None) == (texts is None):
        raise HilbertflowError("give either vectors or texts", where=op)
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    else:
        values = np.atleast_2d(np.ascontiguousarray(vectors, np.float32))
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    sink = pa.BufferOutputStream()
    table = pa.table(columns | dict(metadata or {}))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers["Content-Type"] = ARROW
    return "POST", path, {"content": sink.getvalue().to_pybytes(), "params": {"op": op}, "headers": headers}


def _found(body: bytes) -> Found:
    table = pa.ipc.open_stream(body).read_all()
    scores, rows = table.column("scores").to_pylist(), table.column("rows").to_pylist()
    return Found(
        table.column("ids").to_pylist(),
        [np.array(item, np.float32) for item in scores],
        [np.array(item, np.int64) for item in rows],
        any(table.column("partial").to_pylist()),
    )


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


class Client:
    """The endpoint at `url`; key: an API key where the service wants one; timeout: seconds a request may take."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        self._seen: dict[str, int] = {}  # versions that own changes made
        self._http = httpx.Client(**_options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def search(
        self, collection: str, vectors: Any = None, *, texts: Sequence[str] | None = None, k: int = 10, **options: Any
    ) -> Found:
        """Rows nearest to vectors (q, dim) or texts. options: tier, filter, nprobe, ef, refine, version."""
        options = {"version": self._seen.get(collection), **options}
        method, path, body = _search(collection, vectors, texts, {"k": k, **options})
        return _found(self._send(method, path, body).content)

    def upsert(
        self, collection: str, ids: Sequence[str], vectors: Any = None, *, texts: Sequence[str] | None = None,
        metadata: Any = None, op: str = "upsert", key: str | None = None,
    ) -> int:  # fmt: skip
        """Put rows in: vectors (n, dim) or texts, and metadata columns by name; durable when it returns their version.

        op: `upsert` replaces rows whose id exists, `append` refuses them. key: of your own, to send it again later.
        """
        return self._changed(collection, _change(collection, ids, vectors, texts, metadata, op, key))

    def delete(self, collection: str, ids: Sequence[str], key: str | None = None) -> int:
        """Delete rows by id; durable when it returns the rows' version."""
        return self._changed(collection, _change(collection, ids, None, None, None, "delete", key))

    def _changed(self, collection: str, asked: tuple[str, str, dict[str, Any]]) -> int:
        version = int(self._send(*asked).json()["version"])
        self._seen[collection] = max(version, self._seen.get(collection, 0))
        return version

    def collections(self) -> list[dict[str, Any]]:
        """What is served."""
        listed: list[dict[str, Any]] = self._send("GET", "/v1/collections", {}).json()["collections"]
        return listed

    def _send(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            reply, fault = None, None
            try:
                reply = self._http.request(method, path, **body)
            except httpx.TransportError as error:
                fault = error
            pause = _pause(reply, attempt)
            if pause is None:
                break
            time.sleep(pause)
        return _checked(reply, fault, str(self._http.base_url))


class AsyncClient:
    """The same for `async with` and `await`."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        self._seen: dict[str, int] = {}
        self._http = httpx.AsyncClient(**_options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def search(
        self, collection: str, vectors: Any = None, *, texts: Sequence[str] | None = None, k: int = 10, **options: Any
    ) -> Found:
        """Rows nearest to vectors (q, dim) or texts. options: tier, filter, nprobe, ef, refine, version."""
        options = {"version": self._seen.get(collection), **options}
        method, path, body = _search(collection, vectors, texts, {"k": k, **options})
        return _found((await self._send(method, path, body)).content)

    async def upsert(
        self, collection: str, ids: Sequence[str], vectors: Any = None, *, texts: Sequence[str] | None = None,
        metadata: Any = None, op: str = "upsert", key: str | None = None,
    ) -> int:  # fmt: skip
        """Put rows in: vectors (n, dim) or texts, and metadata columns by name; durable when it returns their version.

        op: `upsert` replaces rows whose id exists, `append` refuses them. key: of your own, to send it again later.
        """
        return await self._changed(collection, _change(collection, ids, vectors, texts, metadata, op, key))

    async def delete(self, collection: str, ids: Sequence[str], key: str | None = None) -> int:
        """Delete rows by id; durable when it returns the rows' version."""
        return await self._changed(collection, _change(collection, ids, None, None, None, "delete", key))

    async def _changed(self, collection: str, asked: tuple[str, str, dict[str, Any]]) -> int:
        version = int((await self._send(*asked)).json()["version"])
        self._seen[collection] = max(version, self._seen.get(collection, 0))
        return version

    async def collections(self) -> list[dict[str, Any]]:
        """What is served."""
        listed: list[dict[str, Any]] = (await self._send("GET", "/v1/collections", {})).json()["collections"]
        return listed

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            reply, fault = None, None
            try:
                reply = await self._http.request(method, path, **body)
            except httpx.TransportError as error:
                fault = error
            pause = _pause(reply, attempt)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return _checked(reply, fault, str(self._http.base_url))
