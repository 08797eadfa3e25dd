"""What a search returns, how partial answers merge into one, and how an answer is judged against the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

NO_ROW = -1  # pads an answer that has fewer candidates than places


@dataclass(frozen=True)
class Results:
    """Answers to q queries, best first.

    ids: (q, w) objects (str or int); rows: (q, w) int64, position in the archive; scores: (q, w) float32, the
    similarity for `ip` and `cosine` (higher is better), the squared distance for `l2` (lower is better). w = min(k,
    rows that match); equal scores are ordered by row number. partial: some shard did not answer. explain: lists probed,
    rows scanned, bytes read, seconds by step.
    """

    ids: npt.NDArray[np.object_]
    rows: I64
    scores: F32
    partial: bool = False
    explain: dict[str, Any] = field(default_factory=dict)


def similarity(metric: str) -> bool:
    """Whether a higher score is the better one."""
    if metric not in ("l2", "ip", "cosine"):
        raise HilbertflowError(f"unknown metric {metric!r}", remedy="choose l2, ip or cosine")
    return metric != "l2"


def merge(parts: Sequence[tuple[F32, I64]], k: int, metric: str) -> tuple[F32, I64]:
    """Best k of several candidate lists a query: parts of (q, w_i) scores and rows, `NO_ROW` where there is none.

    Returns (q, min(k, sum w_i)) scores and rows, ties by row number, padding last.
    """
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    absent = rows == NO_ROW
    cost = np.where(absent, np.float32(np.inf), -scores if similarity(metric) else scores)
    tie = np.where(absent, np.iinfo(np.int64).max, rows)
    order = np.lexsort((tie, cost), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def recall(results: Results | I64, oracle: Results | I64) -> float:
    """Set recall: the share of the oracle's rows found, order aside; both (q, w) row numbers of the same queries."""
    found, true = (item.rows if isinstance(item, Results) else item for item in (results, oracle))
    if found.shape[0] != true.shape[0]:
        raise HilbertflowError(
            f"recall of {found.shape[0]} answers against {true.shape[0]}", remedy="give both the same queries"
        )
    wanted = true != NO_ROW
    if not wanted.any():
        return 1.0
    span = np.int64(max(int(true.max()), int(found.max(initial=0))) + 1)
    offset = np.arange(true.shape[0], dtype=np.int64)[:, None] * span
    return float(np.isin((true + offset)[wanted], (found + offset)[found != NO_ROW]).sum() / wanted.sum())
