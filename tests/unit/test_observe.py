"""A worker tells of a unit in one call, with what it read and asked of S3 for it; nothing is kept at the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from operators.errors import HilbertflowError
from pipelines import observe, run_metrics
from pipelines.ledger import Span
from pipelines.observe import Observer
from pipelines.pending import Pending
from pipelines.ray_io import UnitSource
from pipelines.stage import write
from storage import s3_meter
from storage.manifest import Object
from storage.writer import Receipt


class Told:
    """Stands for the actor's handle: keeps what is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.told = SimpleNamespace(remote=lambda *said: self.calls.append(said))
        self.failed = SimpleNamespace(remote=lambda *said: self.calls.append(said))


class Numbers:
    """A source on S3, of three units."""

    units, unit_bytes = 3, 8

    def read(self, unit: int) -> pa.Table:
        s3_meter.sent("get_object", {"Bucket": "b", "Key": "source/x"})
        s3_meter.received({"Bucket": "b", "Key": "source/x"}, 8)
        return pa.table({"unit": [unit]})


class Nowhere:
    """A writer that puts one object a unit."""

    def write(self, table: pa.Table) -> Receipt:
        s3_meter.sent("put_object", {"Bucket": "b", "Key": "c/0", "Body": b"1234"})
        unit = table.column("unit")[0].as_py()
        return Receipt(unit, [Object.of(f"c/{unit}", b"1234", unit)], {}, 8)

    def written(self) -> set[int]:
        return set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(observe, "worker", lambda: "here:1")
    for name in ("begins", "stopped", "ended"):
        monkeypatch.setattr(run_metrics, name, lambda *more: None)
    return Told()


def test_a_unit_is_told_in_one_call(told: Told) -> None:
    observer = Observer("a", "archive", told)
    url = "s3://b/source"
    (task,) = UnitSource(Numbers(), Pending.all(3), observer, url).get_read_tasks(1)  # type: ignore[arg-type]
    for unit, table in enumerate(task()):
        assert len(told.calls) == unit
        spans: list[Span] = []
        with Observer("a", "archive", told).operator("code", unit, spans):  # another copy, in the same process
            pass
        write(Nowhere(), table, unit, observer, spans, url)  # type: ignore[arg-type]
        step, seen, peak, used, done = told.calls[-1]
        assert step == "archive" and [span.operator for span in seen] == ["read", "code", "write"] and peak > 0
        assert {span.unit for span in seen} == {unit} and (done[0], *done[2:]) == (unit, 8, 4)
        assert (used.requests, used.read, used.written) == ({"get": 1, "put": 1}, 8, 4)
        assert (used.source_requests, used.source_read) == (1, 8)
    assert len(told.calls) == 3 and not observe._outbox._held


def test_what_was_read_is_told_although_it_is_not_written_here(told: Told) -> None:
    observer = Observer("a", "archive", told)
    (task,) = UnitSource(Numbers(), Pending.all(3), observer, "s3://b/source").get_read_tasks(1)  # type: ignore[arg-type]
    tables = list(task())
    ((_, seen, _, used, done),) = told.calls
    assert len(tables) == 3 and [span.unit for span in seen] == [0, 1, 2] and done is None
    assert used.requests == {"get": 3}


def test_what_came_before_a_failure_is_told_before_it(told: Told) -> None:
    observer = Observer("a", "archive", told)
    observer.keep([Span("read", 4, 0.0, 1.0, 0, 8, "here:1")])
    with pytest.raises(HilbertflowError), observer.operator("code", 4, []):
        raise HilbertflowError("is not to my taste", where="unit 4")
    (_, seen, *_), failure = told.calls
    assert [span.operator for span in seen] == ["read"]
    assert failure[:3] == ("archive", "code", 4) and "not to my taste" in failure[3]
    assert not observe._outbox._held
