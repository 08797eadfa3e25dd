"""What a search over HTTP found, as `cluster.client` gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from cluster.media import ARROW


@dataclass(frozen=True)
class Found:
    """Answers to q queries, best first: lists of ids, float32 scores and int64 rows, a list a query.

    partial: a shard did not answer, better rows may be missing. metadata: a dict a row, where asked for.
    """

    ids: list[list[Any]]
    scores: list[np.ndarray[Any, np.dtype[np.float32]]]
    rows: list[np.ndarray[Any, np.dtype[np.int64]]]
    partial: bool
    metadata: list[list[dict[str, Any]]] | None = None

    @classmethod
    def read(cls, reply: httpx.Response) -> Found:
        """From an Arrow or a JSON answer."""
        arrow = reply.headers["Content-Type"].startswith(ARROW)
        hits = pa.ipc.open_stream(reply.content).read_all().to_pylist() if arrow else reply.json()["results"]
        scores = [np.array(hit["scores"], np.float32) for hit in hits]
        rows = [np.array(hit["rows"], np.int64) for hit in hits]
        told = [hit["metadata"] for hit in hits if hit.get("metadata") is not None]
        return cls([hit["ids"] for hit in hits], scores, rows, any(hit["partial"] for hit in hits), told or None)
