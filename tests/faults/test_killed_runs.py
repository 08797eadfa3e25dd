"""Runs killed at a random moment by a random hand, then resumed: the same bytes, nothing made twice, nothing left over.

Six of them in `make test`, more by `make kills RUNS=200 SEED=…`. Run n of a seed is run 0 of the seed n higher: every
100 in a row have each hand in each phase of a run, of models and of collections; the moment in the phase is drawn by
the seed.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pipelines.bench.s3_server import free_ports, server
from pipelines.cli import call
from pipelines.recipe import load
from pipelines.run import run_here
from storage import manifest as manifests
from storage.fs import Location, forget_connections
from storage.verify import verify
from tests.archived_model import small_tensors
from tests.faults.killing import HANDS, PHASES, Calm, Cluster, Hand, Moment, Run, Watch
from tests.faults.proxy import Proxy, proxy

RUNS = int(os.environ.get("HILBERTFLOW_KILLS", "6"))
SEED = int(os.environ.get("HILBERTFLOW_SEED", "0"))
BUCKET = "killed"
RECIPES = {"model": ("quickstart-model", "models/minilm"), "collection": ("vectors", "collections/vectors"),
           "sorted": ("vectors", "collections/vectors")}  # fmt: skip
KINDS = ("model", "sorted", "model", "collection")


class Store:
    """An S3 server on ports of its own, which can be killed and comes back with its data, behind a proxy."""

    def __init__(self, folder: Path, between: Proxy, ports: list[int]) -> None:
        self.folder, self.between, self._ports = folder, between, ports
        self._stack = ExitStack()

    def pid(self) -> int:
        """Of the server."""
        wanted = f"-dir={self.folder}".encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if wanted in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                    return int(name)
            except OSError:
                continue
        raise AssertionError("there is no server")

    def start(self) -> None:
        """Start it, anew where it was killed."""
        self._stack.close()
        self._stack.enter_context(server(self.folder, BUCKET, ports=self._ports))
        os.environ["AWS_ENDPOINT_URL"] = self.between.url
        forget_connections()

    def stop(self) -> None:
        """End it."""
        self._stack.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    ports = free_ports(4)
    with proxy(f"http://127.0.0.1:{ports[0]}", 0) as between:
        mine = Store(tmp_path_factory.mktemp("s3"), between, ports)
        mine.start()
        try:
            yield mine
        finally:
            mine.stop()


class Rays:
    """A cluster, and another one when its raylet is dead."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster: Cluster | None = None

    def cluster(self) -> Cluster:
        """One that works."""
        if self._cluster is None:
            self._cluster = Cluster(self._folder)
        return self._cluster

    def busy(self, seconds: float) -> dict[int, str]:
        """What still works for a run that is over, after so many seconds at most."""
        return {} if self._cluster is None else self._cluster.busy(seconds)

    def end(self) -> None:
        """No more of it."""
        if self._cluster is not None:
            self._cluster.end()
        self._cluster = None


@pytest.fixture(scope="module")
def rays(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rays]:
    mine = Rays(tmp_path_factory.mktemp("ray"))
    yield mine
    mine.end()


@pytest.fixture(scope="module")
def sources(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small checkpoint and a small collection of vectors, on S3, by kind of recipe."""
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, np.random.default_rng(1).standard_normal((1000, 16)).astype(np.float32))
    place = Location(f"s3://{BUCKET}/sources")
    place.write_atomic("m.safetensors", save(small_tensors()))
    place.write_atomic("v.npy", path.read_bytes())
    vectors = place.join("v.npy").url
    return {"model": place.join("m.safetensors").url, "collection": vectors, "sorted": vectors}


def settings(kind: str, source: str, root: str) -> list[str]:
    """A recipe of some eight units; of one kind of collections the rows are sorted into lists first."""
    more = {
        "model": ["operators.1.side=64", "operators.1.layout=hilbert", "operators.2.states=4", "operators.4.coder=rans",
                  "compute.planes_per_unit=2"],
        "collection": ["compute.rows_per_unit=128", "index=null"],
        "sorted": ["compute.rows_per_unit=128", "operators.0.order=lists", "index=null"],
    }[kind]  # fmt: skip
    return [f"source.path={source}", f"sink.path={root}", "compute.actors=1", *more]


def contents(place: Location) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.list()}


@pytest.fixture(scope="module")
def calm(store: Store, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Calm]:
    """What undisturbed runs make: one on a disk, one that is watched on S3, and of the same bytes."""
    made = {}
    for kind, source in sources.items():
        name, path = RECIPES[kind]
        first = run_here(load(name, settings(kind, source, str(tmp_path_factory.mktemp("calm")))))
        assert first.manifest is not None and first.written >= 7
        place = Location(first.url)
        objects, listed = contents(place), manifests.load_objects(place, first.manifest)
        units = {item.key: item.unit for item in listed if item.unit >= 0}
        root = uuid.uuid4().hex
        store.between.watch = watch = Watch(f"{BUCKET}/{root}/{path}", units, first.written)
        run_here(load(name, settings(kind, source, f"s3://{BUCKET}/{root}")))
        store.between.watch = None
        assert contents(Location(f"s3://{BUCKET}/{root}/{path}")) == objects
        assert not watch.twice
        made[kind] = Calm(objects, units, first.written, watch.requests, watch.puts, watch.sealing)
    return made


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
def test_a_killed_run_goes_on(
    seed: int, store: Store, sources: dict[str, str], calm: dict[str, Calm], rays: Rays, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    kind, hand = KINDS[seed % 4], HANDS[seed % 5]
    undisturbed, (name, path) = calm[kind], RECIPES[kind]
    moment = Moment.choose(PHASES[(seed + seed // 10) % 5], undisturbed, chance)
    print(f"seed {seed}: {hand} of a {kind} run, {moment}")
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    place = Location(root).join(path)
    chosen = settings(kind, sources[kind], root)
    arguments = [name, *(part for setting in chosen for part in ("--set", setting))]
    killer = Hand(hand, store.pid, chance)
    watch = Watch(place.url.removeprefix("s3://"), undisturbed.units, undisturbed.total, moment, killer)
    store.between.watch = watch
    began, runs = time.monotonic(), []
    try:
        runs.append(first := Run(arguments, rays.cluster(), tmp_path / "first.log", killer))
        code = first.wait(150)
        print(f"{time.monotonic() - began:.1f} s: {killer.struck or 'nobody'} killed; the run ended with {code}")
        # what streams has been let go before the last requests of sealing: then there is nobody left to kill
        gone = moment.phase == "sealing" and hand in ("worker", "actor") and code == 0
        assert (killer.struck or gone) and code is not None, first.said()
        if hand == "server":
            store.start()
        elif hand == "raylet":
            rays.end()
        kept = watch.next_run()
        if seed % 3:  # planned and finished by the same code, but streamed in this process
            skipped = run_here(load(name, chosen)).skipped
        else:
            runs.append(second := Run(arguments, rays.cluster(), tmp_path / "second.log"))
            assert second.wait(150) == 0, second.said()
            skipped = second.done()["skipped"]
        print(f"{time.monotonic() - began:.1f} s: {kept} of {undisturbed.total} units kept, {skipped} skipped")
        assert skipped >= kept
        assert not watch.twice, "units were written again by the run that had committed them"
        assert not watch.again, "units were written again by the run that went on"
        assert not rays.busy(20)
    finally:
        for run in runs:
            run.end()
        store.between.watch = None
    assert call(["gc", root, "--grace", "0"]) == 0
    assert contents(place) == undisturbed.objects
    assert verify(place).sound
    print(f"{time.monotonic() - began:.1f} s")
