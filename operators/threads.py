"""Threads that a process keeps: to start one costs more than what it is often asked for, and a fork has none."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def thread_pool(name: str, count: int, begin: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """The threads of this name in this process, made when they are first asked for.

    name: of what they do, which a debugger shows. count: at most so many. begin: called in each before its first work.
    """
    return _made(os.getpid(), name, count, begin)


@cache
def _made(process: int, name: str, count: int, begin: Callable[[], None] | None) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, f"{name}-{process}", initializer=begin)
