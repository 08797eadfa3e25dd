"""Files and objects by URL: the one place that knows fsspec."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import fsspec.core
import stamina
from fsspec.implementations.local import LocalFileSystem

from operators.errors import HilbertflowError
from storage import range_reads, s3_objects, s3_store
from storage.fs_errors import EXTRAS, explained, is_storage_fault, is_transient
from storage.fs_write import TEMPORARY, LocalPart, Part, RemotePart, UnconditionalStoreError, put_new
from storage.references import package_path

_T = TypeVar("_T")
_ATTEMPTS, _TIMEOUT_S = 5, 15.0


@dataclass
class Traffic:
    """Requests and bytes that went through a location and everything joined from it; safe to share between threads.

    hits: reads that memory answered in their place.
    """

    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, requests: int = 1, read: int = 0, written: int = 0, hits: int = 0) -> None:
        """Count one or more requests and the bytes they moved, or reads that memory answered."""
        with self._lock:
            self.requests += requests
            self.bytes_read += read
            self.bytes_written += written
            self.hits += hits


@dataclass(frozen=True)
class Entry:
    """A file in a listing: its bytes, and when it was last written in seconds since 1970 (None where unknown)."""

    size: int
    modified: float | None


@dataclass(frozen=True)
class Location:
    """A file, an object or a prefix, named by URL.

    A plain path (made absolute, so that a worker with another working directory means the same file), ``file://``,
    ``s3://``, ``memory://``, ``hf://`` or any protocol that fsspec knows, and ``package://NAME/path`` for files that an
    installed package carries. The file system behind it is made on first use, in the process and thread group that
    uses it (s3fs does not survive a fork); a pickled location is its URL. ``path`` arguments are relative, with ``/``.

    Every method raises `HilbertflowError` naming the URL, `MissingFileError` when there is no such file. Timeouts,
    broken connections, HTTP 5xx and throttling are tried again up to 5 times within 15 seconds.
    """

    url: str
    traffic: Traffic = field(default_factory=Traffic, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = os.fspath(self.url)
        if not url or "\0" in url:
            raise HilbertflowError("an empty path or one with a NUL character names nothing", where=repr(url))
        if "://" not in url and "::" not in url:
            url = os.path.abspath(os.path.expanduser(url))
        object.__setattr__(self, "url", url if url.endswith("://") or url == "/" else url.rstrip("/"))

    def __reduce__(self) -> tuple[object, ...]:
        return Location, (self.url,)

    def __str__(self) -> str:
        return self.url

    def join(self, *path: str) -> Location:
        """The location of ``path`` below this one; its traffic counts here too."""
        return Location(self._url("/".join(path)), self.traffic)

    @property
    def name(self) -> str:
        """Last component of the URL."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def local_path(self) -> str | None:
        """Path on this machine's file system, for memory maps; None for an object store."""
        system, path = self._at("")
        return path if isinstance(system, LocalFileSystem) else None

    def exists(self, path: str = "") -> bool:
        """True when there is a file, an object or a prefix of this name."""
        return bool(self._try(path, "read", lambda fs, p: (fs.invalidate_cache(), fs.exists(p))[1]))

    def is_dir(self, path: str = "") -> bool:
        """True for a directory or a non-empty prefix."""
        return bool(self._try(path, "read", lambda fs, p: (fs.invalidate_cache(), fs.isdir(p))[1]))

    def size(self, path: str = "") -> int:
        """Bytes of a file or an object."""

        def ask(fs: Any, where: str) -> int:
            fs.invalidate_cache()
            info = fs.info(where)
            if info.get("type") == "directory":
                raise HilbertflowError("is a directory where a file is expected", where=self._url(path))
            if info.get("size") is None:
                raise HilbertflowError("the server does not tell its size", where=self._url(path))
            return int(info["size"])

        return self._try(path, "read", ask)

    def read(self, path: str = "", start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` (included) to ``stop`` (excluded, default the end); raises when fewer are there."""
        if start < 0 or (stop is not None and stop < start):
            raise HilbertflowError(f"no such byte range: {start} to {stop}", where=f"{self._url(path)}: byte {start}")
        if stop == start:
            return b""
        data = self._try(path, "read", s3_objects.reading(start, stop))
        self.traffic.add(0, read=len(data))
        if stop is not None and len(data) != stop - start:
            raise self._short(path, start, stop, len(data))
        return data

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> tuple[bytes, ...]:
        """Many ``(path, start, stop)`` at once, concurrently where the store allows it, in the order asked."""
        if not ranges:
            return ()
        asked = [(self._at(path)[1], start, stop) for path, start, stop in ranges]
        self.traffic.add(len(ranges) - 1)
        parts = self._try(ranges[0][0], "read", lambda system, _: range_reads.read(system, asked))
        for (path, start, stop), part in zip(ranges, parts, strict=True):
            if len(part) != stop - start:
                raise self._short(path, start, stop, len(part))
        self.traffic.add(0, read=sum(map(len, parts)))
        return tuple(parts)

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Whole files by path, fetched at once where the store allows it."""
        if not paths:
            return {}
        system, _ = self._at("")
        names = {self._at(path)[1]: path for path in paths}
        self.traffic.add(len(names) - 1)
        found = self._try(paths[0], "read", lambda *_: system.cat(list(names), on_error="raise"))
        if not isinstance(found, dict):  # what fsspec gives for a single name
            found = dict.fromkeys(names, found)
        self.traffic.add(0, read=sum(map(len, found.values())))
        return {path: bytes(found[name]) for name, path in names.items()}

    def open(self, path: str = "") -> BinaryIO:
        """A seekable, read-only file of ranged reads, for libraries that want a file object."""
        return cast("BinaryIO", io.BufferedReader(_RangeFile(self, path), 1 << 16))

    def write_atomic(self, path: str, data: bytes | bytearray | memoryview, *, durable: bool = True) -> None:
        """Write a whole file or object; a reader sees the old bytes or the new ones, never a part.

        ``durable=False`` leaves out the wait for the disk: the file survives the death of the process, not that of
        the machine.
        """
        with self.create(path, durable=durable) as file:
            file.write(data)

    def create_new(self, path: str, data: bytes) -> bool:
        """Write a whole file, durably, where there is none; False where there is one: of two writers one succeeds.

        When an answer of the store is lost the request is sent again, so that False may also mean that these very bytes
        are there; who must know reads them.
        """
        made = self._try(path, "written", lambda fs, p: put_new(fs, p, data))
        self.traffic.add(0, written=len(data) if made else 0)
        return made

    def create_if_new(self, path: str, data: bytes) -> bool:
        """The same; on a store that cannot do so in one step, it looks first and then writes."""
        try:
            return self.create_new(path, data)
        except UnconditionalStoreError:
            if self.exists(path):
                return False
            self.write_atomic(path, data)
            return True

    @contextlib.contextmanager
    def create(self, path: str = "", *, durable: bool = True) -> Iterator[BinaryIO]:
        """Write a file of any length in a stream; it appears, whole, when the block ends without an error.

        On disk: a temporary file in the same directory, fsync, rename. On an object store: one put, or one multipart
        upload that is completed at the end.
        """
        system, where = self._at(path)
        part: Part
        if isinstance(system, LocalFileSystem):
            part = LocalPart(where, durable)
        else:
            part = RemotePart(lambda put: self._try(path, "written", put))
        try:
            self._guarded(path, "written", part.begin)
            yield cast("BinaryIO", _Writer(self, path, part))
            self._guarded(path, "written", part.commit)
        except BaseException:
            part.abandon()
            raise
        if isinstance(part, LocalPart):
            self.traffic.add()

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Paths of all files below a prefix, relative to this location, sorted; none when there is no such prefix."""
        return tuple(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file below a prefix, by path relative to this location, sorted."""
        return {name: entry.size for name, entry in self.entries(prefix).items() if not name.endswith(TEMPORARY)}

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Every file below a prefix by path, sorted; also what a write that was killed left behind."""
        root = self._at("")[1].rstrip("/")
        found = self._try(prefix, "listed", lambda fs, p: (fs.invalidate_cache(), fs.find(p, detail=True))[1])
        pairs = ((str(name)[len(root) :].lstrip("/"), info) for name, info in found.items())
        return {
            name: Entry(int(info.get("size") or 0), _modified(info))
            for name, info in sorted(pairs, key=lambda pair: pair[0])
            if name and info.get("type") != "directory"  # some stores keep empty folders
        }

    def children(self, prefix: str = "") -> tuple[str, ...]:
        """Names directly below a prefix, files and folders, sorted; none when there is no such prefix."""

        def ask(fs: Any, where: str) -> tuple[str, ...]:
            fs.invalidate_cache()
            try:
                found = fs.ls(where, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return ()
            return tuple(sorted({str(name).rstrip("/").rsplit("/", 1)[-1] for name in found}))

        return self._try(prefix, "listed", ask)

    def delete(self, path: str = "", *, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` all below a prefix; not an error when there is nothing."""

        def remove(fs: Any, where: str) -> None:
            fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                fs.rm(where, recursive=True) if recursive else fs.rm_file(where)

        self._try(path, "deleted", remove)

    def _url(self, path: str) -> str:
        path = _relative(path)
        if not path:
            return self.url
        return self.url + path if self.url.endswith("/") else f"{self.url}/{path}"

    def _at(self, path: str) -> tuple[Any, str]:
        system, root = _resolve(self.url, os.getpid())
        path = _relative(path)
        if not path:
            return system, root
        return system, f"{root.rstrip('/')}/{path}" if root else path

    def _short(self, path: str, start: int, stop: int, got: int) -> HilbertflowError:
        return HilbertflowError(
            f"ends after byte {start + got}, bytes {start} to {stop} are expected", where=self._url(path),
            remedy="the file is truncated: copy it again",
        )  # fmt: skip

    def _try(self, path: str, doing: str, action: Callable[[Any, str], _T]) -> _T:
        """Run a request: tried again while the fault may pass, explained when it does not."""

        def attempt() -> _T:
            system, where = self._at(path)
            for retry in tries():
                with retry:
                    self.traffic.add()
                    return action(system, where)
            raise AssertionError("a retry context ends by a result or by an error")

        return self._guarded(path, doing, attempt)

    def _guarded(self, path: str, doing: str, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except Exception as error:
            if isinstance(error, HilbertflowError) or not is_storage_fault(error):
                raise
            raise explained(error, self._url(path), doing) from error


# An error is one line: without this, Python prints a bare "stamina.retry_scheduled" for every try before it.
logging.getLogger("stamina").addHandler(logging.NullHandler())


def tries() -> Any:
    """The budget of a request, for ``for retry in tries(): with retry:``; also for ``async for``."""
    return stamina.retry_context(
        on=is_transient, attempts=_ATTEMPTS, timeout=_TIMEOUT_S, wait_initial=0.1, wait_max=4.0
    )


def _modified(info: dict[str, Any]) -> float | None:
    """When a file was written, under the name that its file system gives it."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _relative(path: str) -> str:
    path = path.strip("/")
    if ".." in path.split("/"):  # a name from a file must not lead out of the place the user named
        raise HilbertflowError("a path may not climb with '..'", where=path)
    return path


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The file system of fsspec behind a URL, and the path in it; those of S3 and HTTP check what servers answer.

    Not where URLs are chained with ``::``: there it is fsspec's own.
    """
    protocol = url.partition("://")[0] if "::" not in url else ""
    if protocol in ("s3", "s3a"):
        from storage.s3_system import S3

        return S3(**options), S3._strip_protocol(url)
    if protocol in ("http", "https"):
        from storage.http_system import Http

        return Http(**options), Http._strip_protocol(url)
    system, path = fsspec.core.url_to_fs(url, **options)
    return system, path


@functools.lru_cache(maxsize=256)
def _resolve(url: str, pid: int) -> tuple[Any, str]:
    """The file system and the path in it; ``pid`` keeps a forked worker from using its parent's connections."""
    if url.startswith("package://"):
        url = package_path(url)
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        system, path = file_system(url)
    except ImportError as error:
        remedy = f"pip install {EXTRAS[protocol]}" if protocol in EXTRAS else str(error)
        raise HilbertflowError(f"{protocol}:// needs a missing package", where=url, remedy=remedy) from error
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("file", "s3", "gs", "abfs", "http", "hf", "memory", "package"))
        raise HilbertflowError(f"unknown protocol {protocol}:// ({error})", where=url, remedy=f"use {known}") from error
    except Exception as error:
        if not is_storage_fault(error):
            raise
        raise explained(error, url, "read") from error
    return system, str(path)


def forget_connections() -> None:
    """Make file systems anew from now on: the settings of an object store have changed."""
    _resolve.cache_clear()
    s3_store.forget()
    for module, name in (("storage.s3_system", "S3"), ("storage.http_system", "Http")):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()


class _RangeFile(io.RawIOBase):
    """A read-only file whose every read is one ranged request."""

    def __init__(self, location: Location, path: str) -> None:
        super().__init__()
        self._location, self._path, self._at = location, path, 0
        self._size = location.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a seek before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        data = self._location.read(self._path, self._at, stop)
        view[: len(data)] = data
        self._at = stop
        return len(data)


class _Writer(io.RawIOBase):
    """What `Location.create` hands out: counts what is written and explains a full disk."""

    def __init__(self, location: Location, path: str, part: Part) -> None:
        super().__init__()
        self._location, self._path, self._part = location, path, part

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        done = self._location._guarded(self._path, "written", lambda: self._part.write(data))
        self._location.traffic.add(0, written=done)
        return done
