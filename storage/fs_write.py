"""Writing a file so that it is seen whole or not at all, on disk and on an object store."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, BinaryIO, Protocol

from fsspec.implementations.local import LocalFileSystem

from operators.errors import HilbertflowError
from operators.threads import thread_pool
from storage import s3_objects

TEMPORARY = ".hfpart"
_IN_MEMORY = 64 << 20
_FLUSHED = 8 << 20
"""Bytes after which what was written begins to be flushed."""


class UnconditionalStoreError(HilbertflowError):
    """A store that can only replace objects, not create them where there is none."""


class Part(Protocol):
    """A file on its way: begun, written, then committed or abandoned."""

    def begin(self) -> None:
        """Make room for it."""

    def write(self, data: Any) -> int:
        """Append bytes and return their number."""

    def commit(self) -> None:
        """Let it appear under its name."""

    def abandon(self) -> None:
        """Leave nothing behind."""


class LocalPart:
    """A temporary file in the same directory, flushed to the device, then renamed over the name.

    A long file is flushed while it is written, by a thread, so that its end does not wait for all of it.
    ``fresh``: linked to the name instead, which fails with `FileExistsError` where something has it.
    """

    def __init__(self, path: str, durable: bool = True, fresh: bool = False) -> None:
        self._path, self._durable, self._fresh = path, durable, fresh
        self._part = ""
        self._file: BinaryIO | None = None
        self._since = 0  # bytes since the last flush began
        self._flush: Future[None] | None = None

    def begin(self) -> None:
        """Create the temporary file, and the directory when there is none."""
        folder, name = os.path.split(self._path)
        if os.path.isdir(self._path):
            raise IsADirectoryError(self._path)
        self._part = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}{TEMPORARY}")
        try:
            self._file = _created(self._part)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            self._file = _created(self._part)

    def write(self, data: Any) -> int:
        """Append bytes."""
        assert self._file is not None
        written = self._file.write(data)
        self._since += written
        if self._durable and self._since >= _FLUSHED and (self._flush is None or self._flush.done()):
            self._flushed()
            self._file.flush()
            self._flush, self._since = thread_pool("flush", 2).submit(os.fdatasync, self._file.fileno()), 0
        return written

    def commit(self) -> None:
        """Sync, rename, sync the directory; without ``durable`` only rename."""
        assert self._file is not None
        self._flushed()
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        self._file.close()
        if self._fresh:
            os.link(self._part, self._path)
            os.unlink(self._part)
        else:
            os.replace(self._part, self._path)
        if self._durable:
            _sync_folder(os.path.dirname(self._path))

    def abandon(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):
            self._flushed()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        if self._part:
            with contextlib.suppress(OSError):
                os.unlink(self._part)

    def _flushed(self) -> None:
        """Wait for the flush under way; what it failed with is told once, here."""
        flush, self._flush = self._flush, None
        if flush is not None:
            flush.result()


class RemotePart:
    """Held in memory up to 64 MiB, beyond that in a local temporary file, and put as one object at the end.

    Parameters
    ----------
    attempt: runs a request ``put(file system, path)`` with retries; the whole put is repeated, never a part of it.
    """

    def __init__(self, attempt: Callable[[Callable[[Any, str], None]], None]) -> None:
        self._attempt = attempt
        self._parts: list[bytes] = []  # as they came: an object that is written at once is not copied
        self._held = 0
        self._spool: Any = None

    def begin(self) -> None:
        """Nothing to do: the store makes prefixes by itself."""

    def write(self, data: Any) -> int:
        """Append bytes."""
        size = memoryview(data).nbytes
        if self._spool is None and self._held + size > _IN_MEMORY:
            self._spool = tempfile.NamedTemporaryFile(suffix=TEMPORARY)  # noqa: SIM115 - abandon() closes it
            self._spool.writelines(self._parts)
            self._parts = []
        if self._spool is not None:
            return int(self._spool.write(data))
        self._parts.append(bytes(data))
        self._held += size
        return size

    def commit(self) -> None:
        """Put the object."""

        def put_file(system: Any, path: str) -> None:
            self._spool.flush()
            system.put_file(self._spool.name, path)

        if self._spool is not None:
            self._attempt(put_file)
        else:
            self._attempt(s3_objects.writing(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)))
        self.abandon()

    def abandon(self) -> None:
        """Forget the bytes."""
        self._parts, self._held = [], 0
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def put_new(system: Any, path: str, data: bytes) -> bool:
    """Write a whole file, durably, under a name that nothing has; False, and nothing written, where something has it.

    On disk a hard link, on an object store a conditional put (S3: ``If-None-Match: *``): of several writers at once one
    succeeds. Raises for a store that has neither.
    """
    if isinstance(system, LocalFileSystem):
        part = LocalPart(path, fresh=True)
        try:
            part.begin()
            part.write(data)
            try:
                part.commit()
            except FileExistsError:
                return False
            _sync_folder(os.path.dirname(os.path.dirname(path)))  # the folder itself may be new
            return True
        finally:
            part.abandon()
    try:
        system.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except (TypeError, NotImplementedError):
        what = "this kind of store cannot create an object only where none is"
        remedy = "keep collections that change on a disk, S3 or GCS"
        raise UnconditionalStoreError(what, where=path, remedy=remedy) from None
    except OSError as error:
        code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if code != "PreconditionFailed":
            raise
        return False
    return True


def _created(path: str) -> BinaryIO:
    # Not mkstemp: its mode 0600 would hide an archive from the other users of a shared disk.
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
