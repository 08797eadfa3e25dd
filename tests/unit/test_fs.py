"""Locations: the same behaviour on every file system, atomic writes, retries, and errors that name the place."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from operators.errors import HilbertflowError
from storage import fs_write
from storage.fs import Location
from storage.fs_errors import MissingFileError, explained, is_transient


@pytest.fixture(params=["plain", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location(
        {"plain": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    )


def test_round_trip(place: Location) -> None:
    place.write_atomic("a/b/x.bin", b"0123456789")
    assert place.exists("a/b/x.bin") and place.exists("a") and not place.exists("a/y")
    assert place.is_dir("a/b") and not place.is_dir("a/b/x.bin")
    assert place.size("a/b/x.bin") == 10
    assert place.read("a/b/x.bin") == b"0123456789"
    assert place.read("a/b/x.bin", 2, 5) == b"234"
    assert place.read("a/b/x.bin", 8) == b"89"
    assert place.read("a/b/x.bin", 4, 4) == b""
    assert place.join("a", "b").read("x.bin", 0, 1) == b"0"
    assert place.read_ranges([("a/b/x.bin", 1, 2), ("a/b/x.bin", 0, 3)]) == (b"1", b"012")
    place.write_atomic("a/b/x.bin", b"new")
    assert place.read("a/b/x.bin") == b"new"


def test_list_and_delete(place: Location) -> None:
    for name in ("b/2", "a/1", "b/c/3", "top"):
        place.write_atomic(name, name.encode())
    assert place.list() == ("a/1", "b/2", "b/c/3", "top")
    assert place.list("b") == ("b/2", "b/c/3")
    assert place.sizes("b") == {"b/2": 3, "b/c/3": 5}
    assert place.list("nothing") == ()
    place.delete("a/1")
    place.delete("a/1")
    place.delete("b", recursive=True)
    place.delete("b", recursive=True)
    assert place.list() == ("top",)


def test_short_reads_and_missing_files(place: Location) -> None:
    place.write_atomic("x", b"12345")
    for ask in (lambda: place.read("x", 2, 9), lambda: place.read_ranges([("x", 0, 2), ("x", 4, 8)])):
        with pytest.raises(HilbertflowError, match="truncated") as caught:
            ask()
        assert f"{place.url}/x" in str(caught.value)
    for call in (place.read, place.size, place.open):
        with pytest.raises(MissingFileError, match="does not exist") as missing:
            call("no/such")
        assert f"{place.url}/no/such" in str(missing.value)
    with pytest.raises(HilbertflowError, match="no such byte range"):
        place.read("x", 3, 2)


def test_file_object_reads_ranges(place: Location) -> None:
    place.write_atomic("x", bytes(range(256)) * 1000)
    with place.open("x") as file:
        assert file.seek(-4, os.SEEK_END) == 255_996
        assert file.read() == bytes([252, 253, 254, 255])
        file.seek(256_000 + 5)
        assert file.read(3) == b""
        file.seek(300)
        assert file.read(2) == bytes([44, 45])


def test_traffic_is_shared_by_joined_locations(place: Location) -> None:
    place.join("a").write_atomic("x", b"12345")
    before = place.traffic.requests
    place.join("a", "x").read("", 1, 3)
    assert (place.traffic.bytes_read, place.traffic.bytes_written) == (2, 5)
    assert place.traffic.requests == before + 1
    threads = [threading.Thread(target=lambda: [place.read("a/x", 0, 1) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.traffic.bytes_read == 202


def test_pickles_as_its_url(place: Location) -> None:
    place.write_atomic("x", b"1")
    assert len(pickle.dumps(place)) < 300
    copy = pickle.loads(pickle.dumps(place))
    assert copy == place and copy.traffic.bytes_written == 0


def test_failed_write_leaves_the_old_file_and_no_rubbish(place: Location) -> None:
    place.write_atomic("x", b"old")
    with pytest.raises(RuntimeError), place.create("x") as file:
        file.write(b"half of the new")
        raise RuntimeError("the writer died")
    assert place.read("x") == b"old"
    assert place.list() == ("x",)
    if place.local_path:
        assert os.listdir(place.local_path) == ["x"]


def test_relative_paths_are_pinned_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Location("data/x")
    monkeypatch.chdir("/")
    assert place.url == str(tmp_path / "data/x")


def test_local_files_get_the_mode_of_the_umask(tmp_path: Path) -> None:
    Location(str(tmp_path)).write_atomic("x", b"1")
    plain = tmp_path / "y"
    plain.write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: str, *rest: Any) -> int:  # the kernel itself says ENOSPC
        return real("/dev/full", os.O_WRONLY) if path.endswith(fs_write.TEMPORARY) else real(path, *rest)

    monkeypatch.setattr(fs_write.os, "open", full)
    with pytest.raises(HilbertflowError, match="no space left on the device") as caught:
        Location(str(tmp_path)).write_atomic("deep/x", b"1" * 100_000)
    assert str(tmp_path / "deep/x") in str(caught.value) and "free space" in str(caught.value)


def test_a_long_file_is_flushed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, lengths, begun = os.fdatasync, list[int](), threading.Event()

    def counted(handle: int) -> None:
        lengths.append(os.fstat(handle).st_size)
        begun.set()
        sync(handle)

    monkeypatch.setattr(os, "fdatasync", counted)
    piece, place = os.urandom(1 << 20), Location(str(tmp_path))
    with place.create("long.bin") as file:
        for _ in range(8):
            file.write(piece)
        assert begun.wait(60)  # by a thread, which a busy machine lets wait
        for _ in range(16):
            file.write(piece)
    assert (tmp_path / "long.bin").read_bytes() == 24 * piece
    assert lengths and 8 << 20 <= lengths[0] < 24 << 20
    lengths.clear()
    place.write_atomic("short.bin", piece)
    assert not lengths


def test_a_flush_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(HilbertflowError, match="space"), Location(str(tmp_path)).create("long.bin") as file:
        for _ in range(12):
            file.write(bytes(1 << 20))
    assert not list(tmp_path.iterdir())


def test_unwritable_and_misplaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    place = Location(str(tmp_path))
    with pytest.raises(HilbertflowError, match="a file stands where a directory is needed"):
        place.write_atomic("file/x", b"1")
    (tmp_path / "dir").mkdir()
    with pytest.raises(HilbertflowError, match="is a directory"):
        place.write_atomic("dir", b"1")
    with pytest.raises(HilbertflowError, match="is a directory"):
        place.read("dir")
    with pytest.raises(HilbertflowError, match="is a directory"):
        place.size("dir")
    assert "permission denied" in str(explained(PermissionError(errno.EACCES, "no"), "/x", "written"))
    assert "read-only" in str(explained(OSError(errno.EROFS, "no"), "/x", "written"))
    with pytest.raises(HilbertflowError, match="may not climb"):
        place.read("../x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nosuch://bucket/x", "unknown protocol nosuch://"),
        ("", "names nothing"),
        ("a\0b", "names nothing"),
        ("package://no-such-distribution-here/x", "pip install --no-deps no-such-distribution-here"),
        ("package://numpy/numpy/no_such_file", "has no numpy/no_such_file"),
        ("package://numpy/../x", "not of the form"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(HilbertflowError) as caught:
        Location(url).exists()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_missing_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(HilbertflowError, match="pip install gcsfs"):
        Location(f"gs://{uuid.uuid4().hex}/x").exists()


def test_package_reference_reads_a_file_without_importing_it() -> None:
    import sys

    before = set(sys.modules)
    assert Location("package://constriction/constriction").exists()

    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "constriction"}


class Flaky(MemoryFileSystem):
    """A memory file system whose reads fail ``failures`` times first."""

    protocol = "flaky"
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures: list[BaseException] = []  # noqa: RUF012

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self.failures:
            raise self.failures.pop()
        return bytes(super().cat_file(path, start, end, **kwargs))


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


ClientError.__module__ = "botocore.exceptions"


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Location:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("storage.fs._TIMEOUT_S", 20.0)
    place = Location(f"flaky://{uuid.uuid4().hex}")
    place.write_atomic("x", b"12345")
    return place


def test_transient_faults_are_tried_again(flaky: Location) -> None:
    Flaky.failures[:] = [ConnectionResetError("reset"), ClientError("SlowDown", 503)]
    assert flaky.read("x", 0, 3) == b"123"
    assert not Flaky.failures


def test_lasting_faults_are_not_tried_again(flaky: Location) -> None:
    Flaky.failures[:] = [PermissionError("no")] * 2
    with pytest.raises(HilbertflowError, match="permission denied"):
        flaky.read("x")
    assert len(Flaky.failures) == 1
    Flaky.failures.clear()


def test_retries_are_bounded(flaky: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.fs._ATTEMPTS", 2)
    Flaky.failures[:] = [TimeoutError("slow")] * 9
    with pytest.raises(HilbertflowError, match="does not answer"):
        flaky.read("x")
    assert len(Flaky.failures) == 7
    Flaky.failures.clear()


def test_programming_errors_are_not_dressed_up(flaky: Location) -> None:
    Flaky.failures[:] = [KeyError("a bug")]
    with pytest.raises(KeyError):
        flaky.read("x")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (OSError(errno.ECONNRESET, ""), True),
        (OSError(errno.EBUSY, "Slow down"), True),
        (ClientError("InternalError", 500), True),
        (ClientError("AccessDenied", 403), False),
        (OSError(errno.ENOSPC, ""), False),
        (FileNotFoundError(), False),
        (HilbertflowError("x"), False),
        (KeyError("status"), False),
    ],
)
def test_which_faults_may_pass(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected
