"""Two runs of one archive: one wins, the other says so; a dead run's lease is taken over; two recipes never mix."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from operators.errors import HilbertflowError
from pipelines.bench.s3_server import server
from pipelines.compile import make_plan, prepare
from pipelines.plan import Pass
from pipelines.recipe import Recipe, load
from pipelines.run import _carry_out_here, run_here
from storage import archive, lease
from storage.fs import Location
from storage.spec import claim, identity_at
from storage.verify import verify
from storage.writer import write_unit

LEASE_S = 0.6


@pytest.fixture(scope="module")
def s3_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("s3"), "leases"):
        yield "s3://leases"


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh root on disk and on a real S3 server, where a lease lasts a moment."""
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    if request.param == "disk":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue('s3_root')}/{uuid.uuid4().hex}"


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    path = tmp_path / "v.npy"
    np.save(path, np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32))
    return str(path)


def recipe(vectors: str, root: str, *more: str) -> Recipe:
    settings = [f"source.path={vectors}", f"sink.path={root}", "compute.rows_per_unit=64", *more]
    return load("vectors", settings).model_copy(update={"index": None})


def elsewhere(holder: lease.Holder) -> bytes:
    """The same holder, of whom nothing can be seen from here."""
    return lease._dump(lease.Holder(holder.token, "another-machine", 7, "another boot", "1", holder.beats))


def test_of_many_at_once_one_gets_it(root: str) -> None:
    place, held, refused = Location(root), [], []
    meet = threading.Barrier(6)

    def attempt() -> None:
        meet.wait()
        try:
            with lease.held(place):
                held.append(1)
                end = time.monotonic() + 20
                while len(refused) < 5 and time.monotonic() < end:
                    time.sleep(0.02)
        except HilbertflowError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5
    assert all("another run writes this archive: process" in text for text in refused)
    with lease.held(place):  # it was given back
        pass
    assert place.list() == ()


def test_a_second_run_stops_with_a_clear_error(root: str, vectors: str) -> None:
    made = recipe(vectors, root)
    place = Location(make_plan(made).spec.url)
    claim(make_plan(made).spec)
    with lease.held(place), pytest.raises(HilbertflowError, match="another run writes this archive"):
        run_here(made)
    assert [key for key in place.list() if not key.startswith("journal/")] == ["zarr.json"]  # nothing was written
    assert run_here(made).written == 5
    assert verify(place).sound and not place.list("journal")


def test_a_living_run_elsewhere_is_left_alone_a_dead_one_taken_over(root: str, vectors: str) -> None:
    made = recipe(vectors, root)
    place = Location(make_plan(made).spec.url)
    claim(make_plan(made).spec)
    holder, stop = lease.Holder.here(), threading.Event()
    key = "journal/lease-00000001.json"
    place.write_atomic(key, elsewhere(holder))

    def live() -> None:
        beats = 0
        while not stop.wait(LEASE_S / 4):
            beats += 1
            place.write_atomic(key, elsewhere(lease.replace(holder, beats=beats)))

    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(HilbertflowError, match="process 7 on another-machine"):
            run_here(made)
    finally:
        stop.set()
        other.join()
    began = time.monotonic()
    assert run_here(made).written == 5  # nothing is heard of it any more
    assert time.monotonic() - began >= LEASE_S
    assert verify(place).sound


def test_a_run_that_was_taken_over_stops(root: str) -> None:
    place = Location(root)
    with lease.held(place) as mine:
        mine.check()
        place.write_atomic("journal/lease-00000002.json", elsewhere(lease.Holder.here()))
        with pytest.raises(HilbertflowError, match="another run took this archive over"):
            mine.check()


def test_a_dead_process_of_this_machine_is_seen_at_once(root: str) -> None:
    code = "from storage import lease; from storage.fs import Location; import os, sys\n" \
           "lease._acquire(Location(sys.argv[1]), lease.Holder.here(), print); os._exit(9)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code, root], check=False).returncode == 9
    place = Location(root)
    assert len(place.list()) == 1
    said: list[str] = []
    with lease.held(place, said.append):
        assert not said  # nothing to watch
        assert json.loads(place.read("journal/lease-00000002.json"))["host"]


def test_two_recipes_at_once_do_not_mix(root: str, vectors: str) -> None:
    plans = [make_plan(recipe(vectors, root, f"operators.1.bits=[0.{5 + i}, 1.4, 3.2]")) for i in range(4)]
    meet, lost = threading.Barrier(4), []

    def attempt(at: int) -> None:
        meet.wait()
        try:
            claim(plans[at].spec)
        except HilbertflowError as error:
            assert "another source or recipe has this name" in str(error)
            lost.append(at)

    threads = [threading.Thread(target=attempt, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(range(4)) - set(lost)
    assert identity_at(Location(plans[0].spec.url)) == plans[winner].spec.identity


def test_a_worker_that_outlives_its_run_writes_into_no_other_archive(root: str, vectors: str) -> None:
    mine = make_plan(recipe(vectors, root))
    late: list[object] = []

    class Late:
        """The writer of a run that was killed, whose archive was removed and made anew by another recipe."""

        def write(self, table: object) -> object:
            late.append(table)
            return None

        def written(self) -> set[int]:
            return set()

    claim(mine.spec)
    plan = prepare(mine, _carry_out_here)
    _carry_out_here(Pass("archive", plan.source, plan.operators, Late()))  # type: ignore[arg-type]
    Location(mine.spec.url).delete(recursive=True)
    with pytest.raises(HilbertflowError, match="removed or replaced"):
        write_unit(plan.spec, late[0])
    run_here(recipe(vectors, root, "operators.1.bits=[0.7, 1.4, 3.2]"))
    with pytest.raises(HilbertflowError, match="removed or replaced"):
        write_unit(plan.spec, late[1])
    assert verify(archive.open(mine.spec.url).place).sound
