"""Read and write single objects of S3: through obstore where it can, through the file system of fsspec where not.

A request may be sent several times (:mod:`storage.fs`). Obstore's turn is the first; when it fails, the same request is
one of s3fs, whose errors the storage edge knows: at once where the server refused, else in the next turn, so that one
that is overloaded is asked no sooner and no more often than its budget says.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from storage import s3_meter, s3_store
from storage.fs_errors import EXPIRED
from storage.replies import WrongReplyError

if TYPE_CHECKING:
    from obstore.store import S3Store

_T = TypeVar("_T")
MOST = 16 << 20
"""Bytes of the largest object that obstore puts: its limit of time begins with a request, not when all is sent."""


def reading(start: int, stop: int | None) -> Callable[[Any, str], bytes]:
    """A request for the bytes ``start`` to ``stop`` of a path, to be called with its file system until it succeeds."""

    def slow(system: Any, path: str) -> bytes:
        whole = start == 0 and stop is None
        return bytes(system.cat_file(path) if whole else system.cat_file(path, start=start, end=stop))

    return _Request(lambda store, bucket, key: _get(store, bucket, key, start, stop), slow)


def writing(data: bytes) -> Callable[[Any, str], None]:
    """A request that puts a whole object, to be called with its file system and path until it succeeds."""

    def slow(system: Any, path: str) -> None:
        system.pipe_file(path, data)

    if len(data) > MOST:
        return slow
    return _Request(lambda store, bucket, key: _put(store, bucket, key, data), slow)


class RefusedError(PermissionError):
    """The server says why it refuses for good: asking it again, through s3fs, would tell no more."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}  # where botocore's errors have it


class _Request(Generic[_T]):
    def __init__(self, fast: Callable[[S3Store, str, str], _T], slow: Callable[[Any, str], _T]) -> None:
        self._fast, self._slow = fast, slow
        self._asked = self._failed = False

    def __call__(self, system: Any, path: str) -> _T:
        store = None if self._asked else s3_store.of(system, path)
        if store is None:
            found = self._slow(system, path)
            if self._failed:
                s3_store.failed(path)
            return found
        self._asked = True
        bucket, _, key = path.partition("/")
        try:
            found = self._fast(store, bucket, key)
        except BaseException as error:  # a panic of Rust is no Exception
            if not s3_store.is_fault(error) and not isinstance(error, WrongReplyError):
                raise
            self._failed = "status code: 416" not in str(error)  # of an empty object: no fault of obstore's
            if code := next((code for code in EXPIRED if f"<Code>{code}</Code>" in str(error)), ""):
                raise RefusedError(code) from error
            if not s3_store.may_pass(error):
                return self(system, path)
            raise OSError(errno.EREMOTEIO, str(error).partition("\n")[0]) from error
        s3_store.worked(path)
        return found


def _get(store: S3Store, bucket: str, key: str, start: int, stop: int | None) -> bytes:
    """The whole is asked for as a range, too: only then the answer tells how much that is."""
    import obstore

    asked = {"Bucket": bucket, "Key": key}
    s3_meter.sent("get_object", asked)
    reply = obstore.get(store, key, options={"range": {"offset": start} if stop is None else (start, stop)})
    data = reply.bytes().to_bytes()
    s3_meter.received(asked, len(data))
    size = reply.meta["size"]
    end = size if stop is None else min(stop, size)
    if (*reply.range, len(data)) != (start, end, end - start):
        raise WrongReplyError(f"the server sent {len(data)} bytes where {end - start} from {start} were asked for")
    return data


def _put(store: S3Store, bucket: str, key: str, data: bytes) -> None:
    import obstore

    s3_meter.sent("put_object", {"Bucket": bucket, "Key": key, "Body": data})
    obstore.put(store, key, data, use_multipart=False)
