"""What this process has asked of S3: requests by kind, bytes either way, apart for the source of a run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "get_object": "get", "head_object": "head", "head_bucket": "head", "put_object": "put", "upload_part": "put",
    "list_objects_v2": "list", "list_objects": "list", "delete_object": "delete", "delete_objects": "delete",
}  # fmt: skip
"""Kinds of requests as a bill has them, by the name of the call; any other call is ``other``."""


@dataclass(frozen=True)
class Used:
    """What was asked of S3.

    Parameters
    ----------
    requests: by kind: ``get``, ``head``, ``put``, ``list``, ``delete``, ``other``; a repeated one counts again.
    read, written: bytes of objects, either way.
    source_requests, source_read: that part of them which read below the source of a run.
    """

    requests: Mapping[str, int] = field(default_factory=dict)
    read: int = 0
    written: int = 0
    source_requests: int = 0
    source_read: int = 0

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    def __add__(self, other: Used) -> Used:
        return self._with(other, 1)

    def __sub__(self, other: Used) -> Used:
        return self._with(other, -1)

    def _with(self, other: Used, sign: int) -> Used:
        kinds = {kind: self.requests.get(kind, 0) + sign * other.requests.get(kind, 0)
                 for kind in {*self.requests, *other.requests}}  # fmt: skip
        return Used(
            {kind: count for kind, count in sorted(kinds.items()) if count}, self.read + sign * other.read,
            self.written + sign * other.written, self.source_requests + sign * other.source_requests,
            self.source_read + sign * other.source_read,
        )  # fmt: skip


_lock = threading.Lock()
_source = ""
_requests: Counter[str] = Counter()
_bytes: Counter[str] = Counter()


def watch(source: str) -> None:
    """From now on what is read below this URL counts as the source, too."""
    global _source
    _source = source.removeprefix("s3://") if source.startswith("s3://") else ""


def used() -> Used:
    """What this process has asked of S3 since it began."""
    with _lock:
        return Used(dict(_requests), _bytes["read"], _bytes["written"], _bytes["source requests"],
                    _bytes["source read"])  # fmt: skip


def sent(method: str, asked: Mapping[str, Any]) -> None:
    """Count a request of s3fs."""
    body = asked.get("Body")
    with _lock:
        _requests[KINDS.get(method, "other")] += 1
        _bytes["written"] += len(body) if isinstance(body, bytes | bytearray | memoryview) else 0
        _bytes["source requests"] += _of_source(asked)


def received(asked: Mapping[str, Any], size: int) -> None:
    """Count bytes of an object that came."""
    with _lock:
        _bytes["read"] += size
        _bytes["source read"] += size * _of_source(asked)


def ranges(bucket: str, keys_and_sizes: list[tuple[str, int]]) -> None:
    """Count ranges that another client asked for: one request each."""
    with _lock:
        for key, size in keys_and_sizes:
            mine = _of_source({"Bucket": bucket, "Key": key})
            _requests["get"] += 1
            _bytes["read"] += size
            _bytes["source requests"] += mine
            _bytes["source read"] += size * mine


def _of_source(asked: Mapping[str, Any]) -> bool:
    key = asked.get("Key", asked.get("Prefix", ""))
    return bool(_source) and f"{asked.get('Bucket', '')}/{key}".startswith(_source)
