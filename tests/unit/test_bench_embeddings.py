"""What the benchmark of vector codecs counts and finds."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.bench import embeddings, row_codecs
from pipelines.bench.datasets import Dataset, exact_neighbors


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((660, 32)) * np.geomspace(4, 0.2, 32)).astype(np.float32)
    return Dataset("small", "l2", rows[:600], rows[600:], exact_neighbors(rows[:600], rows[600:], "l2", k=10))


def test_more_bits_of_rabitq_find_more(data: Dataset) -> None:
    found = [
        embeddings.measured(data, row_codecs.with_faiss(data.train, "l2", f"RR32,RaBitQ{bits}")) for bits in (2, 4, 6)
    ]
    assert found[0].recall + 0.1 < found[1].recall < found[2].recall
    assert found[0].bytes < found[1].bytes < found[2].bytes
    assert {point.family for point in found} == {"RaBitQ"}


def test_codes_and_what_decodes_them_are_counted(data: Dataset) -> None:
    coded = row_codecs.with_faiss(data.train, "l2", "PQ8")
    assert coded.size > 600 * 8 + 256 * 32 * 4
    point = embeddings.measured(data, coded)
    assert point.family == "PQ" and point.cosine is not None and 0.9 < point.cosine <= 1


def test_ours_reaches_the_recall_that_it_is_aimed_at(data: Dataset) -> None:
    found = embeddings.our_points(data, (0.6, 4.0), row_codecs.ours, aimed=True)
    assert any(0.9 <= point.recall < 0.97 for point in found)
    lists = embeddings.measured(data, row_codecs.ours_in_lists(data.train, 1.5, 8))
    assert lists.ours and 0.5 < lists.recall < 1


def test_verdicts_compare_the_cheapest_that_reach_the_target() -> None:
    def point(family: str, size: float, recall: float) -> embeddings.Point:
        return embeddings.Point(family, family, size, recall, None, 0.0, 1.0, None)

    found = [point("ours", 60, 0.96), point("SQ", 100, 0.96), point("PQ", 20, 0.5), point("SQ", 200, 0.99)]
    table = embeddings.verdicts(Dataset("x", "l2", *[np.empty((0, 2), np.float32)] * 2, np.empty((0, 10), int)), found)  # type: ignore[arg-type]
    assert table.rows[0][3:] == ("0.600", "<= 0.65: reached")
    missed = embeddings.verdicts(
        Dataset("x", "l2", *[np.empty((0, 2), np.float32)] * 2, np.empty((0, 10), int)),
        found[1:],  # type: ignore[arg-type]
    )
    assert missed.rows[0][4] == "<= 0.65: MISSED"
