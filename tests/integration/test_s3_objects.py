"""Single objects of S3 go through obstore; where it fails s3fs does the same, and says what is wrong."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator

import numpy as np
import pytest
from obstore.exceptions import GenericError

from operators.errors import HilbertflowError
from pipelines.bench.s3_server import server
from storage import fs_write, s3_meter, s3_objects, s3_store
from storage.fs import Location, file_system, forget_connections
from storage.fs_errors import MissingFileError, UnreachableError
from tests.faults.proxy import Fault, Proxy, proxy

PLACE = "s3://objects/a place"
SIZES = (0, 1, 4096, 1_000_003)


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that counts, before a server."""
    patch = pytest.MonkeyPatch()
    with server(tmp_path_factory.mktemp("s3"), "objects") as settings, proxy(settings["AWS_ENDPOINT_URL"], 2.0) as it:
        patch.setenv("AWS_ENDPOINT_URL", it.url)
        patch.setattr(s3_store, "READ_TIMEOUT_S", 5.0)
        forget_connections()
        Location(PLACE).write_atomic("first", b"1")  # the server makes room for it, which takes seconds
        yield it
    patch.undo()
    forget_connections()


@pytest.fixture
def place(between: Proxy) -> Iterator[Location]:
    """A prefix with nothing wrong before it."""
    between.begin()
    s3_store.forget()
    yield Location(PLACE)
    between.begin()
    s3_store.forget()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that s3fs is asked for, as they come."""
    asked: list[str] = []
    from storage.s3_system import S3

    for name in ("_cat_file", "_pipe_file"):
        before = getattr(S3, name)

        async def told(self: S3, path: str, *more: object, before: object = before, **options: object) -> object:
            asked.append(path)
            return await before(self, path, *more, **options)  # type: ignore[operator]

        monkeypatch.setattr(S3, name, told)
    forget_connections()  # a file system binds its methods when it is made
    return asked


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def other() -> tuple[object, str]:
    """A file system of s3fs alone, and the prefix on it."""
    return file_system(PLACE, skip_instance_cache=True)


def test_both_clients_write_and_read_the_same_bytes(place: Location, slow: list[str]) -> None:
    for size in SIZES:
        place.write_atomic(f"by obstore/{size}%é", noise(size))
        if size:
            assert place.read(f"by obstore/{size}%é") == noise(size)
    assert slow == []
    system, root = other()
    for size in SIZES:
        assert system.cat_file(f"{root}/by obstore/{size}%é") == noise(size)  # type: ignore[attr-defined]
        system.pipe_file(f"{root}/by s3fs/{size}", noise(size))  # type: ignore[attr-defined]
    slow.clear()
    assert place.read("by s3fs/1000003", 5, 70_000) == noise(1_000_003)[5:70_000]
    assert place.read("by s3fs/1000003", 1_000_000) == noise(1_000_003)[1_000_000:]
    assert slow == []
    assert place.read("by obstore/0%é") == b""  # an empty object has no range, which s3fs finds out
    assert len(slow) == 1
    assert sorted(place.list("by obstore")) == sorted(f"by obstore/{size}%é" for size in SIZES)


def test_what_is_counted_is_what_the_server_saw(place: Location, between: Proxy) -> None:
    before, data = s3_meter.used(), noise(300_000)
    s3_meter.watch(f"{PLACE}/counted")
    try:
        place.write_atomic("counted", data)
        assert place.read("counted") == data and place.read("counted", 10, 20) == data[10:20]
    finally:
        s3_meter.watch("")
    used = s3_meter.used() - before
    assert used.requests == {"get": 2, "put": 1} and sum(between.asked.values()) == 3
    assert (used.read, used.written) == (300_010, 300_000)
    assert (used.source_requests, used.source_read) == (3, 300_010)
    assert (place.traffic.requests, place.traffic.bytes_read, place.traffic.bytes_written) == (3, 300_010, 300_000)


def test_a_large_object_stays_with_s3fs(place: Location, slow: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_objects, "MOST", 1000)
    place.write_atomic("large", noise(1001))
    assert len(slow) == 1
    place.write_atomic("small", noise(1000))
    assert len(slow) == 1 and place.read("large") == noise(1001)


def test_a_stream_is_put_whole_from_memory_or_from_a_file(
    place: Location, slow: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fs_write, "_IN_MEMORY", 5000)
    data = noise(9000)
    for name, size in (("streamed", 4500), ("spooled", 9000)):
        with place.create(name) as file:
            for at in range(0, size, 1000):
                part = bytearray(data[at : min(at + 1000, size)])
                assert file.write(part) == len(part)
                part[:] = bytes(len(part))  # it was taken, not looked at later
        assert place.read(name) == data[:size]
    assert slow == []  # a file goes up by another method of s3fs


def test_what_is_there_is_not_created(place: Location) -> None:
    place.write_atomic("taken", b"mine")
    assert not place.create_new("taken", b"theirs") and place.read("taken") == b"mine"
    assert place.create_new(f"free {time.time_ns()}", b"theirs")
    place.write_atomic("taken", b"mine, later")
    assert place.read("taken") == b"mine, later"


def test_s3fs_does_what_obstore_fails_in(place: Location, slow: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*more: object, **options: object) -> object:
        raise GenericError("Generic S3 error: no such luck\n\nDebug source: …")

    place.write_atomic("before", b"before")
    monkeypatch.setattr("obstore.put", broken)
    monkeypatch.setattr("obstore.get", broken)
    place.write_atomic("after", b"after")
    assert place.read("after") == b"after" and len(slow) == 2
    clock = time.monotonic()
    monkeypatch.setattr(s3_store.time, "monotonic", lambda: clock)
    assert place.read("before") == b"before"  # the third time
    monkeypatch.undo()
    assert not s3_store._broken and "objects" in s3_store._resting
    asked = s3_meter.used()
    assert place.read("after") == b"after"
    assert (s3_meter.used() - asked).total == 1
    system, root = other()
    assert s3_store.of(system, root) is None
    s3_store._resting["objects"] = time.monotonic() - 1
    assert s3_store.of(system, root) is not None


@pytest.mark.parametrize("kind", ["500", "slow down", "reset", "truncated", "cut", "other range", "whole"])
def test_a_fault_that_passes_is_repeated_once(place: Location, between: Proxy, slow: list[str], kind: str) -> None:
    place.write_atomic("faulty", noise(5000))
    between.begin(Fault(kind, times=1))
    assert place.read("faulty", 0, 3000) == noise(5000)[:3000]
    assert between.met() == 1 and len(slow) == 1 and between.asked["GET", "objects/a%20place/faulty"] == 2
    if kind in ("500", "slow down", "reset"):
        between.begin(Fault(kind, times=1))
        place.write_atomic("faulty", b"new")
        assert between.met() == 1 and len(slow) == 2
        assert place.read("faulty") == b"new"


def test_what_is_missing_is_asked_for_once(place: Location, between: Proxy, slow: list[str]) -> None:
    with pytest.raises(MissingFileError, match="a place/none: does not exist"):
        place.read("none")
    assert sum(between.asked.values()) == 1 and slow == []
    with pytest.raises(MissingFileError, match="no-such-bucket"):
        Location("s3://no-such-bucket").read("none")  # that may be a wrong address: s3fs asks, too
    assert len(slow) == 1
    place.write_atomic("short", b"0123456789")
    with pytest.raises(HilbertflowError, match=r"short.*truncated"):
        place.read("short", 4, 11)
    with pytest.raises(HilbertflowError, match=r"short.*shorter than expected"):
        place.read("short", 40, 41)


def test_wrong_keys_are_refused_in_the_words_of_s3fs(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    forget_connections()
    try:
        for ask in (lambda: place.read("first"), lambda: place.write_atomic("first", b"2")):
            with pytest.raises(UnreachableError, match="permission denied") as caught:
                ask()
            assert "\n" not in str(caught.value)
    finally:
        monkeypatch.undo()
        forget_connections()
    assert place.read("first") == b"1"


@pytest.mark.parametrize("options", [{"anon": True}, {"key": "k", "secret": "s"}, {"requester_pays": True}])
def test_options_that_obstore_is_not_told_are_left_to_s3fs(place: Location, options: dict[str, object]) -> None:
    system, root = file_system(PLACE, **options)
    assert s3_store.of(system, root) is None
    assert s3_store.of(*other()) is not None
    assert s3_store.of(*file_system("memory://x")) is None


def test_nothing_to_sign_with_is_left_to_s3fs(
    place: Location, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nothing = str(tmp_path_factory.mktemp("empty") / "none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, nothing)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert s3_store.of(*other()) is None


def test_a_forked_process_and_a_pickled_location_read_and_write(place: Location) -> None:
    place.write_atomic("forked", b"parent")
    into, out = os.pipe()
    child = os.fork()
    if child == 0:  # without obstore, whose threads stayed behind
        place.write_atomic("forked", place.read("forked") + b", child")
        os.write(out, b"done")
        os._exit(0)
    os.close(out)
    os.set_blocking(into, False)
    end = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.05)
    assert os.read(into, 10) == b"done"
    os.close(into)
    assert pickle.loads(pickle.dumps(place)).read("forked") == b"parent, child"
