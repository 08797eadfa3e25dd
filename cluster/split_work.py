"""One step of a search on several threads, where there is enough to do: compiled code does not hold the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

_T = TypeVar("_T")

LEAST = 1 << 16
"""Numbers to work on that are worth a thread."""
MOST = 4


def in_parts(work: Callable[[slice], _T], count: int, numbers: int) -> list[_T]:
    """What ``work`` makes of slices of ``count`` things that hold so many ``numbers`` in all, in order."""
    threads = min(_cores(), count, numbers // LEAST)
    if threads < 2:
        return [work(slice(0, count))]
    edges = [count * part // threads for part in range(threads + 1)]
    return list(_pool(os.getpid()).map(work, (slice(low, high) for low, high in pairwise(edges))))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(_cores(), f"search-{process}")


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MOST)
