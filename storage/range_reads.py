"""Many byte ranges at once: what a search in place waits for.

On disk they are positioned reads. S3 is read through obstore, the Rust client that Zarr and LanceDB stand on as well:
sixty small ranges took it a fifth of the time that s3fs needs, whose requests are signed and parsed in Python. It
compares the range of an answer with the one asked for, as :mod:`storage.replies` does. Where it cannot be set up or a
request fails, the file system of fsspec reads, and says what is wrong; who called repeats.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fsspec.asyn import get_loop, sync
from fsspec.implementations.local import LocalFileSystem

from storage import s3_meter
from storage.replies import READ_TIMEOUT_S

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

Range = tuple[str, int, int]
"""Path on its file system, first byte, byte behind the last."""

_KEEP = timedelta(minutes=5)  # how long credentials go unasked for
_FAULTS = 3
_broken: Counter[tuple[str, int]] = Counter()  # by bucket, how often in a row obstore failed where fsspec then did not


def read(system: Any, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range, fewer where a file ends early; raises what the file system raises."""
    if isinstance(system, LocalFileSystem):
        return _read_disk(ranges)
    if "s3" in _protocols(system) and len({path.partition("/")[0] for path, _, _ in ranges}) == 1:
        bucket = (ranges[0][0].partition("/")[0], os.getpid())
        store = None if _broken[bucket] >= _FAULTS else _s3(system, *bucket)
        if store is not None:
            try:
                found = list(sync(get_loop(), _read_store, store, ranges))
                s3_meter.ranges(bucket[0], requests(ranges))
                if any(len(part) != stop - start for part, (_, start, stop) in zip(found, ranges, strict=True)):
                    return _read_any(system, ranges)  # the object ends, or the answer was cut: s3fs can tell
                _broken.pop(bucket, None)
                return found
            except Exception as error:
                if not _is_its_own(error):
                    raise
                s3_meter.ranges(bucket[0], [(key, 0) for key, _ in requests(ranges)])
                found = _read_any(system, ranges)  # or the error, in words that the storage edge knows
                _broken[bucket] += 1
                return found
    return _read_any(system, ranges)


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


def forget() -> None:
    """Make clients anew from now on."""
    _s3.cache_clear()
    _broken.clear()


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


async def _read_store(store: S3Store, ranges: Sequence[Range]) -> list[bytes]:
    """One call an object, which asks for its ranges at the same time, ten at most: a call a range costs more."""
    import obstore

    wanted: dict[str, list[int]] = {}
    for at, (path, _, _) in enumerate(ranges):
        wanted.setdefault(path, []).append(at)

    async def one(path: str, which: Sequence[int]) -> None:
        starts, ends = [ranges[at][1] for at in which], [ranges[at][2] for at in which]
        key = path.partition("/")[2]
        parts = await obstore.get_ranges_async(store, key, starts=starts, ends=ends, coalesce=0)
        for at, part in zip(which, parts, strict=True):
            out[at] = bytes(part)

    out = [b""] * len(ranges)
    await asyncio.gather(*(one(path, which) for path, which in wanted.items()))
    return out


def _is_its_own(error: Exception) -> bool:
    """Whether obstore failed; it panics where a body is shorter than its range."""
    from obstore.exceptions import BaseError

    return isinstance(error, BaseError) or type(error).__name__ == "RustPanic"


def _protocols(system: Any) -> tuple[str, ...]:
    named = getattr(system, "protocol", ())
    return (named,) if isinstance(named, str) else tuple(named)


@functools.lru_cache(maxsize=64)
def _s3(system: Any, bucket: str, pid: int) -> S3Store | None:
    """obstore's view of a bucket that s3fs reads: the same endpoint, region and credentials."""
    try:
        import botocore.session
        from obstore.store import S3Store
    except ImportError:
        return None
    found = botocore.session.get_session().get_credentials()
    if found is None:
        return None

    def credentials() -> S3Credential:
        now = found.get_frozen_credentials()
        return {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token,
                "expires_at": datetime.now(UTC) + _KEEP}  # fmt: skip

    client = system.connect() or system.s3
    return S3Store(
        bucket, endpoint=client.meta.endpoint_url, region=client.meta.region_name, virtual_hosted_style_request=False,
        client_options={
            "allow_http": True, "read_timeout": timedelta(seconds=READ_TIMEOUT_S), "timeout": timedelta(minutes=5),
        },
        credential_provider=credentials, retry_config={"max_retries": 0},
    )  # fmt: skip
