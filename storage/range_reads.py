"""Many byte ranges at once: what a search in place waits for.

On disk they are positioned reads. S3 is read through obstore (:mod:`storage.s3_store`): sixty small ranges took it a
fifth of the time that s3fs needs. It compares the range of an answer with the one asked for, as :mod:`storage.replies`
does. Where it cannot be set up or a request fails, the file system of fsspec reads, and says what is wrong; who called
repeats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from operators.threads import thread_pool
from storage import s3_meter, s3_store

if TYPE_CHECKING:
    from obstore.store import S3Store

Range = tuple[str, int, int]
"""Path on its file system, first byte, byte behind the last."""


def read(system: Any, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range, fewer where a file ends early; raises what the file system raises."""
    if isinstance(system, LocalFileSystem):
        return _read_disk(ranges)
    path = ranges[0][0]
    bucket = path.partition("/")[0]
    store = s3_store.of(system, path)
    if store is None or any(name.partition("/")[0] != bucket for name, _, _ in ranges):
        return _read_any(system, ranges)
    try:
        found = _read_store(store, ranges)
    except BaseException as error:  # a panic of Rust is no Exception
        if not s3_store.is_fault(error):
            raise
        s3_meter.ranges(bucket, [(key, 0) for key, _ in requests(ranges)])
        found = _read_any(system, ranges)  # or the error, in words that the storage edge knows
        s3_store.failed(path)
        return found
    s3_meter.ranges(bucket, requests(ranges))
    if any(len(part) != stop - start for part, (_, start, stop) in zip(found, ranges, strict=True)):
        return _read_any(system, ranges)  # the object ends, or the answer was cut: s3fs can tell
    s3_store.worked(path)
    return found


def requests(ranges: Sequence[Range]) -> list[tuple[str, int]]:
    """Key and bytes of each request that obstore makes of these ranges: those that touch or overlap are one."""
    made: list[tuple[str, int]] = []
    path, end = "", 0
    for name, start, stop in sorted(ranges):
        if name == path and start <= end:
            made[-1] = (made[-1][0], made[-1][1] + max(0, stop - end))
            end = max(end, stop)
        else:
            made.append((name.partition("/")[2], stop - start))
            path, end = name, stop
    return made


def _read_any(system: Any, ranges: Sequence[Range]) -> list[bytes]:
    paths, starts, stops = [list(part) for part in zip(*ranges, strict=True)]
    return [bytes(part) for part in system.cat_ranges(paths, starts, stops, on_error="raise")]


def _read_disk(ranges: Sequence[Range]) -> list[bytes]:
    files: dict[str, int] = {}
    try:
        for path, _, _ in ranges:
            if path not in files:
                files[path] = os.open(path, os.O_RDONLY)
        return [_pread(files[path], start, stop) for path, start, stop in ranges]
    finally:
        for file in files.values():
            os.close(file)


def _pread(file: int, start: int, stop: int) -> bytes:
    found = os.pread(file, stop - start, start)
    if len(found) == stop - start or not found:
        return found
    parts = [found]  # beyond 2 GiB, or interrupted
    while start + sum(map(len, parts)) < stop and parts[-1]:
        at = start + sum(map(len, parts))
        parts.append(os.pread(file, stop - at, at))
    return b"".join(parts)


def _read_store(store: S3Store, ranges: Sequence[Range]) -> list[bytes]:
    """One call an object, which asks for its ranges at the same time, ten at most: a call a range costs more.

    Objects are asked for side by side by threads: an event loop would take the processor half as long again.
    """
    import obstore

    wanted: dict[str, list[int]] = {}
    for at, (path, _, _) in enumerate(ranges):
        wanted.setdefault(path, []).append(at)
    out = [b""] * len(ranges)

    def one(path: str) -> None:
        which = wanted[path]
        starts, ends = [ranges[at][1] for at in which], [ranges[at][2] for at in which]
        parts = obstore.get_ranges(store, path.partition("/")[2], starts=starts, ends=ends, coalesce=0)
        for at, part in zip(which, parts, strict=True):
            out[at] = bytes(part)

    first, *others = wanted
    waiting = [thread_pool("ranges", 16).submit(one, path) for path in others]
    try:
        one(first)
        for each in waiting:
            each.result()
    finally:  # after a fault nothing is on its way while another client asks
        for each in waiting:
            each.cancel()
        wait(waiting)
    return out
