"""A search and its answer between the ingress and a shard group as bytes: two lengths, a head in JSON, then arrays."""

from __future__ import annotations

import dataclasses
import json
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from cluster.index_kind import Overrides
from cluster.query import Query
from cluster.shard_set import Answer
from cluster.vectors import F32
from operators.errors import HilbertflowError

LENGTHS = struct.Struct("<II")
"""What a message begins with: bytes of its head, and of its arrays behind that."""
MOST = 1 << 30
"""Bytes of a message; a thousand answers of ten thousand rows are an eighth of it."""
_ARRAYS = ("scores", "rows")
_PLAIN = tuple(field.name for field in dataclasses.fields(Answer) if field.name not in _ARRAYS)


class ShardFault(RuntimeError):
    """What went wrong in a shard's process, in its words."""


def search_message(vectors: F32, query: Query, version: str, rows_version: int) -> list[bytes]:
    """The call of `Shards.search` with these arguments, in pieces to be sent one after another."""
    head = {"query": _text_of(query), "version": version, "rows": rows_version, "dim": vectors.shape[1]}
    return _message(head, vectors.astype("<f4", copy=False).tobytes())


def read_search(head: bytes, body: bytearray) -> tuple[F32, Query, str, int]:
    """The arguments again; raises ValueError, TypeError or KeyError for what is no such message."""
    said = json.loads(head)
    return np.frombuffer(body, "<f4").reshape(-1, said["dim"]), _query_of(said["query"]), said["version"], said["rows"]


def answer_message(answer: Answer) -> list[bytes]:
    """An answer, in pieces."""
    head = {"shape": answer.rows.shape} | {name: getattr(answer, name) for name in _PLAIN}
    return _message(head, answer.rows.astype("<i8", copy=False).tobytes(),
                    answer.scores.astype("<f4", copy=False).tobytes())  # fmt: skip


def fault_message(error: Exception) -> list[bytes]:
    """What a search raised, in pieces."""
    said: dict[str, Any] = {"fault": type(error).__name__, "what": str(error)[:500]}
    if isinstance(error, HilbertflowError):
        said |= {"fault": "", "what": error.what, "where": error.where, "remedy": error.remedy}
    return _message(said)


def read_answer(head: bytes, body: bytearray) -> Answer:
    """The answer; raises what the search raised: HilbertflowError as it was, anything else as ShardFault."""
    said: dict[str, Any] = json.loads(head)
    if "fault" in said:
        if said["fault"]:
            raise ShardFault(f"{said['fault']}: {said['what']}")
        raise HilbertflowError(said["what"], where=said["where"], remedy=said["remedy"])
    shape = said.pop("shape")
    count = shape[0] * shape[1]
    scores = np.frombuffer(body, "<f4", count, 8 * count).reshape(shape)
    return Answer(scores, np.frombuffer(body, "<i8", count).reshape(shape), **said)


def sizes(start: bytes | bytearray) -> tuple[int, int]:
    """Bytes of head and arrays, from the first :data:`LENGTHS` of a message; ValueError for more than `MOST`."""
    head, body = LENGTHS.unpack_from(start)
    if head + body > MOST:
        raise ValueError(f"a message of {head + body} bytes")
    return head, body


def _message(head: dict[str, Any], *arrays: bytes) -> list[bytes]:
    coded, size = json.dumps(head, default=np.generic.item).encode(), sum(map(len, arrays))
    if len(coded) + size > MOST:
        raise HilbertflowError(f"a search or its answer takes {size} bytes between processes", where="search",
                               remedy=f"ask less at once: {MOST} is the most")  # fmt: skip
    return [LENGTHS.pack(len(coded), size) + coded, *arrays]


@lru_cache(maxsize=1024)
def _text_of(query: Query) -> str:
    """Clients ask in the same way again and again."""
    return json.dumps(dataclasses.asdict(query), default=np.generic.item)


@lru_cache(maxsize=1024)
def _query_of(text: str) -> Query:
    said: dict[str, Any] = json.loads(text)
    return Query(**said | {"overrides": Overrides(**said["overrides"])})
