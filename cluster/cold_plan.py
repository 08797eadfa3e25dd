"""How a search in place goes about it: what each step reads, how many lists by default, and what it tells of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 3


@dataclass(frozen=True)
class Effort:
    """What a search read: lists and rows of all queries together; requests, rounds of them that had to wait for one
    another, and bytes; chunks that were not read since they are kept."""

    lists_probed: int = 0
    rows_scanned: int = 0
    rounds: int = 0
    requests: int = 0
    bytes_read: int = 0
    cache_hits: int = 0
    level: str = ""


def together(efforts: Sequence[Effort]) -> Effort:
    """Of groups of queries that were answered one after the other, each in its own rounds at the same level."""
    if not efforts:
        return Effort()
    return Effort(
        sum(e.lists_probed for e in efforts), sum(e.rows_scanned for e in efforts),
        max(e.rounds for e in efforts), sum(e.requests for e in efforts), sum(e.bytes_read for e in efforts),
        sum(e.cache_hits for e in efforts), efforts[0].level,
    )  # fmt: skip


def plan(level: int, depth: int) -> tuple[tuple[str, ...], ...]:
    """Arrays that each step reads to answer from `level` of an archive of `depth` lossy levels; at `depth` exactly.

    Never more than three steps: the last one takes all that is left.
    """
    names = [f"level{k}" for k in range(min(level, depth - 1) + 1)]
    steps = [(name,) for name in names[: STEPS - 1]] + ([tuple(names[STEPS - 1 :])] if len(names) >= STEPS else [])
    if level < depth:
        return tuple(steps)
    exact = ("cells", "exact")
    return (*steps, exact) if len(steps) < STEPS else (*steps[:-1], (*steps[-1], *exact))


def usual_nprobe(lists: int) -> int:
    """Lists to read of so many when nothing was tuned: what recall@10 of .95 took on sentence embeddings."""
    return min(lists, max(8, round(2.1 * math.sqrt(lists))))
