"""Contenders side by side, each in a process of its own, timed in turns.

Libraries with threads and allocators of their own disturb each other in one process; apart, the memory that each holds
can be read, and turns taken one after another meet the same weather.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from pipelines.bench.contenders import CONTENDERS, Setting

I64 = npt.NDArray[np.int64]
WAIT = 1200.0  # seconds for the slowest build
WARM_ROWS = 2000


@dataclass(frozen=True)
class Built:
    """seconds: of building; resident: anonymous bytes that the process gained; stored: bytes of the index's files."""

    seconds: float
    resident: int
    stored: int


class Corner:
    """The process of one contender."""

    def __init__(self, name: str, vectors: Path, queries: Path, metric: str, url: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        seconds = 0.0
        if CONTENDERS[name].ours:  # by one process, to be opened by another, as it is used
            with ProcessPoolExecutor(1, context) as builder:
                seconds = builder.submit(CONTENDERS[name].build, url).result()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, str(vectors), str(queries), metric, url), daemon=True
        )
        self._process.start()
        theirs.close()
        built: Built = self._answer()
        self.built = replace(built, seconds=seconds or built.seconds)

    def timed(self, setting: Setting, threads: int, k: int = 10) -> float:
        """Seconds of one batch of all queries."""
        seconds: float = self._ask(("time", setting, threads, k))
        return seconds

    def found(self, setting: Setting, k: int = 10) -> I64:
        """Rows (q, k) found."""
        rows: I64 = self._ask(("rows", setting, 1, k))
        return rows

    def singly(self, setting: Setting, count: int, k: int = 10) -> float:
        """Median seconds of a query sent alone, over `count` of them."""
        seconds: float = self._ask(("single", setting, count, k))
        return seconds

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Any) -> Any:
        self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(WAIT):
                raise EOFError
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.close()
            raise HilbertflowError(f"{self.name} ended without an answer", where="bench search") from None
        if kind == "error":
            self.close()
            raise HilbertflowError(f"{self.name} failed ({answer})", where="bench search")
        return answer


def corners(
    names: Iterable[str], vectors: Path, queries: Path, metric: str, url: str, stack: ExitStack
) -> tuple[list[Corner], list[str]]:
    """Open them one after another; those that fail are named and left out."""
    opened, failed = [], []
    for name in names:
        try:
            opened.append(stack.enter_context(Corner(name, vectors, queries, metric, url)))
        except HilbertflowError as error:
            failed.append(str(error))
    return opened, failed


def _serve(pipe: Any, name: str, vectors: str, queries: str, metric: str, url: str) -> None:
    """In the process: build, then answer until the other side is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of themselves; errors go through the pipe
    try:
        contender = CONTENDERS[name]
        train, test = np.load(vectors, mmap_mode="r"), np.load(queries)  # pages of a file are not counted as memory
        contender.warm(np.array(train[:WARM_ROWS]), metric)
        before, began = _anonymous(), time.perf_counter()
        searcher = contender.open(train, metric, url)
        seconds = time.perf_counter() - began
        searcher.search(test, 10, contender.settings[0], 1)
        with tempfile.TemporaryDirectory() as folder:
            stored = searcher.save(Path(folder))
        pipe.send(("built", Built(seconds, _anonymous() - before, stored)))
        while True:
            what, setting, extra, k = pipe.recv()
            if what == "single":
                taken = [_seconds(searcher, test[i : i + 1], setting, 1, k) for i in range(extra)]
                pipe.send(("single", float(np.median(taken))))
            elif what == "time":
                pipe.send(("time", _seconds(searcher, test, setting, extra, k)))
            else:
                pipe.send(("rows", searcher.rows(searcher.search(test, k, setting, extra))))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}" if str(error) else traceback.format_exc(limit=1)))


def _seconds(searcher: Any, queries: Any, setting: Setting, threads: int, k: int) -> float:
    began = time.perf_counter()
    searcher.search(queries, k, setting, threads)
    return time.perf_counter() - began


def _anonymous() -> int:
    """Bytes of memory of this process that are not a file's, after the allocator has given back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise HilbertflowError("no RssAnon", where="/proc/self/status")
