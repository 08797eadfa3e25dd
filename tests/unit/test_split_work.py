"""A step of a search in parts: the same, in order, whatever the number of threads."""

from __future__ import annotations

import threading

import pytest

from cluster import split_work
from cluster.split_work import in_parts


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_parts_come_in_order_and_leave_nothing_out(monkeypatch: pytest.MonkeyPatch, cores: int, count: int) -> None:
    monkeypatch.setattr(split_work, "_cores", lambda: cores)
    names = set()

    def work(part: slice) -> list[int]:
        names.add(threading.current_thread().name)
        return list(range(count))[part]

    found = in_parts(work, count, 10 * split_work.LEAST)
    assert [item for part in found for item in part] == list(range(count))
    assert len(found) == max(1, min(cores, count))
    assert in_parts(work, count, split_work.LEAST) == [list(range(count))]
    assert ("MainThread" in names) and (len(found) == 1 or len(names) > 1)
