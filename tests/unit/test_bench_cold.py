"""What the benchmark of the cold tier counts."""

from __future__ import annotations

import numpy as np

from pipelines.bench import cold


def test_requests_and_bytes_of_chunks_in_an_order() -> None:
    sizes = {"level0": np.array([10, 20, 30, 40])}
    as_is = np.arange(4)

    def count(chunks: list[int], order: np.ndarray, gap: int) -> tuple[int, int]:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cold._requests({"level0": np.array(chunks)}, sizes, order, place, gap)

    assert count([0, 1], as_is, 0) == (1, 30)
    assert count([0, 2], as_is, 0) == (2, 40)
    assert count([0, 2], as_is, 20) == (1, 60)
    assert count([0, 3], as_is, 49) == (2, 50)
    assert count([0, 3], np.array([0, 3, 1, 2]), 0) == (1, 50)
