"""Faults between client and a real S3 server: a run ends right or says in one line what is wrong; no read is wrong."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from operators.errors import HilbertflowError
from pipelines.bench.s3_server import server
from pipelines.cli import call
from pipelines.recipe import Recipe, load
from pipelines.run import run_here
from storage import archive, fs, s3_store
from storage.fs import Location, forget_connections
from storage.fs_errors import UnreachableError
from storage.s3_system import S3
from storage.verify import verify
from tests.archived_model import small_tensors
from tests.faults.proxy import KINDS, Fault, Proxy, proxy

BUCKET = "s3://faults"
PASSING = tuple(kind for kind in KINDS if kind != "expired")
RANGED = ("500", "truncated", "cut", "stall", "other range", "whole")
READ_TIMEOUT_S, STALL_S = 1.0, 2.0
SEED = 7
Finished = tuple[str, dict[str, bytes]]
FLOWS = ("model", "collection")


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before a server; every request of this module goes through it, and none waits long for it."""
    patch = pytest.MonkeyPatch()
    with (
        server(tmp_path_factory.mktemp("s3"), "faults") as settings,
        proxy(settings["AWS_ENDPOINT_URL"], STALL_S) as it,
    ):
        patch.setenv("AWS_ENDPOINT_URL", it.url)
        patch.setattr(S3, "read_timeout", READ_TIMEOUT_S)
        patch.setattr(s3_store, "READ_TIMEOUT_S", READ_TIMEOUT_S)
        forget_connections()
        yield it
    patch.undo()
    forget_connections()


@pytest.fixture(scope="module")
def sources(between: Proxy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint and vectors, on S3."""
    from safetensors.numpy import save

    rows = np.random.default_rng(1).standard_normal((400, 16)).astype(np.float32)
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, rows)
    place = Location(f"{BUCKET}/sources")
    place.write_atomic("m.safetensors", save(small_tensors()))
    place.write_atomic("v.npy", path.read_bytes())
    return {"model": place.join("m.safetensors").url, "collection": place.join("v.npy").url}


def recipe(kind: str, source: str, root: str) -> Recipe:
    """Some units of either kind."""
    if kind == "collection":
        made = load("vectors", [f"source.path={source}", f"sink.path={root}", "compute.rows_per_unit=128"])
        return made.model_copy(update={"index": None})
    return load("quickstart-model", [
        f"source.path={source}", f"sink.path={root}", "operators.1.side=64", "operators.1.layout=hilbert",
        "operators.2.states=4", "operators.4.coder=rans", "compute.planes_per_unit=8",
    ])  # fmt: skip


def contents(url: str) -> dict[str, bytes]:
    place = Location(url)
    return {key: place.read(key) for key in place.list()}


@pytest.fixture(scope="module")
def undisturbed(between: Proxy, sources: dict[str, str]) -> dict[str, Finished]:
    """What runs make when nothing goes wrong: by kind, URL and objects."""
    between.begin()
    made = {}
    for flow, source in sources.items():
        report = run_here(recipe(flow, source, f"{BUCKET}/{uuid.uuid4().hex}"))
        assert report.written >= 4
        made[flow] = report.url, contents(report.url)
    return made


@pytest.mark.parametrize(("kind", "flow"), [(kind, FLOWS[at % 2]) for at, kind in enumerate(PASSING)])
def test_what_passes_leaves_no_trace(
    kind: str, flow: str, between: Proxy, sources: dict[str, str], undisturbed: dict[str, Finished]
) -> None:
    _, truth = undisturbed[flow]
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    cases = {"stale": Fault("stale", key="/journal"), "stall": Fault("stall", chance=0.2, times=2)}
    between.begin(cases.get(kind, Fault(kind, chance=0.15, times=5)), seed=SEED)
    report = run_here(recipe(flow, sources[flow], root))
    assert between.met() >= 1, "nothing went wrong"
    between.begin()
    assert contents(report.url) == truth
    assert verify(Location(report.url)).sound


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stale"])
def test_what_lasts_is_one_line_within_the_budget(
    kind: str, between: Proxy, undisturbed: dict[str, Finished], capsys: pytest.CaptureFixture[str]
) -> None:
    url, truth = undisturbed["model"]
    key = max((key for key in truth if key.startswith("level0/c/")), key=lambda key: len(truth[key]))
    between.begin(Fault(kind, key=f"{key}$"))
    ask = (key, 10, len(truth[key]) - 20) if kind in ("other range", "whole") else (key,)
    began = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        Location(url).read(*ask)
    assert time.monotonic() - began < 20
    text = str(caught.value)
    assert f"{url}/{key}" in text and "\n" not in text and "; " in text
    path = f"{url}/{key}".removeprefix("s3://")
    budget = {"expired": 1, "reset": 2 * fs._ATTEMPTS}  # on a kept connection aiohttp itself asks once more
    assert between.asked["GET", path] <= budget.get(kind, fs._ATTEMPTS)
    if kind == "expired":
        assert "the credentials have expired" in text
        between.begin(Fault(kind))
        assert call(["verify", url]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "s3://" in line
    if kind in ("other range", "whole"):
        assert "was asked for" in text


@pytest.mark.parametrize(("kind", "flow"), [(kind, FLOWS[at // 2 % 2]) for at, kind in enumerate(RANGED)])
def test_ranges_and_chunks_are_right_or_refused(
    kind: str, flow: str, between: Proxy, undisturbed: dict[str, Finished]
) -> None:
    url, truth = undisturbed[flow]
    key = max((key for key in truth if "/c/" in key), key=lambda key: len(truth[key]))
    asked = [(key, at, min(at + 50, len(truth[key]))) for at in range(0, len(truth[key]), 97)][:8]
    between.begin(Fault(kind, method="GET", key="/c/", chance=0.3, times=3), seed=SEED)
    found = Location(url).read_ranges(asked)
    assert list(found) == [truth[name][start:stop] for name, start, stop in asked]
    assert between.met() >= 1

    def rows() -> bytes:
        handle = archive.open(url)
        name = "layer.0.weight"
        return handle[name].read(0, rows=slice(5, 9)).tobytes() if flow == "model" else handle.read(3, 9, 0).tobytes()

    between.begin()
    right = rows()
    between.begin(Fault(kind, key="/c/", chance=0.3, times=3), seed=SEED)
    assert rows() == right
    if kind not in ("500", "cut"):
        return
    between.begin(Fault(kind, key="/c/"))
    with pytest.raises(HilbertflowError) as caught:
        rows()
    assert url in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize(("kind", "flow"), [("500", "model"), ("expired", "collection"), ("reset", "model")])
def test_a_run_that_cannot_write_stops_and_goes_on_later(
    kind: str, flow: str, between: Proxy, sources: dict[str, str], undisturbed: dict[str, Finished]
) -> None:
    _, truth = undisturbed[flow]
    made = recipe(flow, sources[flow], f"{BUCKET}/{uuid.uuid4().hex}")
    between.begin(Fault(kind, method="PUT", key="/c/2/"))
    with pytest.raises(UnreachableError, match="cannot be written"):
        run_here(made)
    asked = max(count for (method, key), count in between.asked.items() if method == "PUT" and "/c/2/" in key)
    assert asked <= fs._ATTEMPTS * (2 if kind == "reset" else 1)
    between.begin()
    report = run_here(made)
    assert report.skipped >= 2
    assert contents(report.url) == truth


def test_the_objects_of_a_unit_are_put_at_once_and_the_journal_after_them(
    between: Proxy, sources: dict[str, str], undisturbed: dict[str, Finished]
) -> None:
    met = threading.Barrier(2)  # the first two objects of the first unit wait for each other
    told: list[tuple[str, int]] = []

    def watch(method: str, key: str, status: int) -> None:
        if method == "PUT" and re.search("/c/0/|/journal/00000000", key):
            told.append((key.rpartition("/m/")[2], status))
            if status == 0 and len([key for key, status in told if status == 0]) <= 2:
                met.wait(10)

    between.begin()
    between.watch = watch
    try:
        report = run_here(recipe("model", sources["model"], f"{BUCKET}/{uuid.uuid4().hex}"))
    finally:
        between.watch = None
    assert not met.broken
    assert [status for _, status in told[-2:]] == [0, 200] and "/journal/" in told[-1][0]
    assert contents(report.url) == undisturbed["model"][1]
