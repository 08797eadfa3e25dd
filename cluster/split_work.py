"""One step of a search on several threads, where there is enough to do: compiled code does not hold the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from operators.threads import thread_pool

_T = TypeVar("_T")

LEAST = 1 << 16
"""Numbers to work on that are worth a thread."""
MOST = 4


def in_parts(work: Callable[[slice], _T], count: int, numbers: int) -> list[_T]:
    """What ``work`` makes of slices of ``count`` things that hold so many ``numbers`` in all, in order."""
    parts = min(_cores(), count, numbers // LEAST)
    if parts < 2:
        return [work(slice(0, count))]
    edges = [count * part // parts for part in range(parts + 1)]
    return list(thread_pool("search", _cores()).map(work, (slice(low, high) for low, high in pairwise(edges))))


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MOST)
