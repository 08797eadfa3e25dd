"""Obstore's view of a bucket that s3fs reaches: the Rust client that Zarr and LanceDB stand on as well.

s3fs signs, hashes and parses in Python: to put half a megabyte takes it 4.8 ms of a core where obstore takes 0.9, to
read a small range 1.9 against 0.7. Obstore makes one request of one, and repeats none. What it cannot do, s3fs does,
which also says what is wrong; where it fails time and again it is left out for a while.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from storage.replies import READ_TIMEOUT_S

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

_KEEP = timedelta(minutes=10)
"""How long credentials are said to last: obstore asks anew when five minutes of them are left."""
_FAULTS, REST_S = 3, 600.0
_KNOWN = frozenset({"endpoint_url"})
"""Options of a file system that its client tells, too."""
_broken: Counter[str] = Counter()
"""By bucket, how often in a row obstore failed where s3fs then did not."""
_resting: dict[str, float] = {}
"""By bucket, until when obstore is left out, of the monotonic clock."""
_home: list[int] = []
"""The process whose threads obstore runs in: one that is forked from it has none of them, and would wait for ever."""


def of(system: Any, path: str) -> S3Store | None:
    """The bucket of ``path``; None where that is not on S3, or where s3fs must ask: nothing is known to sign with, the
    file system was made with options of its own, obstore does not work here or failed just now.
    """
    if "s3" not in _protocols(system) or not set(system.storage_options) <= _KNOWN:
        return None
    name = path.partition("/")[0]
    if time.monotonic() < _resting.get(name, 0.0) or (_home and _home[0] != os.getpid()):
        return None
    return _made(system, name) if ":" not in name else None  # the name of an access point is no bucket's


def worked(path: str) -> None:
    """Obstore did what was asked of this path."""
    _broken.pop(path.partition("/")[0], None)


def failed(path: str) -> None:
    """It did not, and s3fs did; after three times without a success between, the bucket is its own for ten minutes."""
    name = path.partition("/")[0]
    _broken[name] += 1
    if _broken[name] >= _FAULTS:
        _resting[name] = time.monotonic() + REST_S
        del _broken[name]


def is_fault(error: BaseException) -> bool:
    """Whether obstore failed, as against an object that is not there; it panics where a body is shorter than a range.

    Only a server that knows the bucket says of a key that it is none: any other 404 may be of a wrong address.
    """
    from obstore.exceptions import BaseError

    if isinstance(error, FileNotFoundError):
        return "NoSuchKey" not in str(error)
    return isinstance(error, BaseError) or type(error).__name__ in ("RustPanic", "PanicException")


def may_pass(error: BaseException) -> bool:
    """Whether a fault may be gone in a moment: all but HTTP's 4xx, which obstore tells in words only."""
    return "status code: 4" not in str(error) or "status code: 429" in str(error)


def forget() -> None:
    """Make clients anew from now on."""
    _made.cache_clear()
    _broken.clear()
    _resting.clear()


def _protocols(system: Any) -> tuple[str, ...]:
    named = getattr(system, "protocol", ())
    return (named,) if isinstance(named, str) else tuple(named)


@functools.lru_cache(maxsize=64)
def _made(system: Any, bucket: str) -> S3Store | None:
    """The same endpoint, region and credentials."""
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
    _home[:] = [os.getpid()]
    try:
        return S3Store(
            bucket, endpoint=client.meta.endpoint_url, region=client.meta.region_name,
            virtual_hosted_style_request=False, unsigned_payload=False, credential_provider=credentials,
            client_options={"allow_http": True, "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
                            "timeout": timedelta(days=1)},
            retry_config={"max_retries": 0},
        )  # fmt: skip
    except Exception as error:  # an address that obstore does not take
        if not is_fault(error) and not isinstance(error, ValueError):
            raise
        return None
