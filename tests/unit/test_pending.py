"""Units still to be made: the same as a set tells, cut in the same places, in a few bytes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipelines.bench.planning import Simulated
from pipelines.pending import Pending
from pipelines.ray_io import UnitSource


@pytest.mark.parametrize("seed", range(8))
def test_what_is_missing_and_its_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = int(rng.integers(1, 200))
    done = {int(unit) for unit in np.flatnonzero(rng.random(units) < rng.random())} | {units + 3}
    expected = [unit for unit in range(units) if unit not in done]
    pending = Pending.missing(units, done)
    assert list(pending) == expected and len(pending) == len(expected)
    assert list(pickle.loads(pickle.dumps(pending))) == expected
    for start, stop in rng.integers(-2, units + 3, (40, 2)).tolist():
        assert list(pending.part(start, stop)) == expected[max(0, start) : max(0, stop)]


def test_nothing_and_everything() -> None:
    assert not Pending.missing(5, range(5)) and not Pending.all(0) and not Pending.missing(0, set())
    assert list(Pending.all(3)) == list(Pending.missing(3, set())) == [0, 1, 2]


def test_tasks_take_each_unit_once() -> None:
    pending = Pending.missing(1000, set(range(0, 1000, 3)))
    tasks = UnitSource(Simulated(1000), pending).get_read_tasks(UnitSource.tasks(pending, 2))
    units = [table.column("unit")[0].as_py() for task in tasks for table in task()]
    assert len(tasks) == 32 and sorted(units) == list(pending)
