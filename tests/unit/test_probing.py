"""Which lists a query reads."""

from __future__ import annotations

import numpy as np

from cluster import probing
from cluster.probing import Probe

NEAR = np.array([4.0, 2.0, 1.0, 5.0, 3.0], np.float32)


def test_the_nearest_lists_until_both_numbers_are_reached() -> None:
    counts = np.array([10, 10, 10, 5, 1])
    assert Probe(2, 1).lists(NEAR, counts).tolist() == [0, 3]
    assert Probe(1, 16).lists(NEAR, counts).tolist() == [0, 3, 4]
    assert Probe(1, 15).lists(NEAR, counts).tolist() == [0, 3]
    assert Probe(9, 1).lists(NEAR, counts).tolist() == [0, 1, 2, 3, 4]
    assert Probe(1, 1000).lists(NEAR, counts).tolist() == [0, 1, 2, 3, 4]


def test_lists_that_a_filter_empties_are_passed_over() -> None:
    counts = np.array([0, 2, 7, 0, 0])
    assert Probe(1, 1).lists(NEAR, counts).tolist() == [1]
    assert Probe(1, 3).lists(NEAR, counts).tolist() == [1, 2]


def test_lists_that_lie_about_as_far_are_read_together() -> None:
    """Two lists a step apart are read; far off, where a filter leaves lists closer together, more are."""
    near, counts = np.array([9.0, 8.0, 3.0, 2.4, 1.5, 0.9], np.float32), np.array([0, 0, 5, 5, 5, 5])
    assert Probe(2, 1).lists(near, counts).tolist() == [2, 3]
    assert Probe(2, 1, 2.0).lists(near, counts).tolist() == [2, 3, 4]


def test_few_rows_that_may_not_be_answered_change_nothing() -> None:
    """A handful of deleted rows leaves the search as it is; a filter widens it, by less than it thins the rows."""
    whole = np.full(50, 200)
    assert Probe.of(5, whole, 10_000, 10) == Probe(5, 1000, 1.0)
    one = Probe.of(5, whole - (np.arange(50) == 3), 10_000, 10)
    assert one.rows == 999 and one.reach < 1.001
    assert Probe.of(5, whole // 4, 10_000, 10) == Probe(5, 500, 2.0)


def test_rows_that_may_be_answered_are_counted_by_list() -> None:
    borders = np.array([0, 4, 4, 9])
    assert probing.eligible(borders, None).tolist() == [4, 0, 5]
    assert probing.eligible(borders, np.array([0, 3, 4, 8])).tolist() == [2, 0, 2]
    assert probing.eligible(borders, np.array([], np.int64)).tolist() == [0, 0, 0]


def test_nearness_is_by_distance_or_by_what_the_best_row_may_reach() -> None:
    products, squares = np.array([[1.0, 2.0, 0.5]], np.float32), np.array([0.1, 9.0, 0.2], np.float32)
    spread = np.array([0.0, 0.0, 3.0], np.float32)
    assert np.argsort(-probing.nearness(products, squares, spread, "l2")).tolist() == [[0, 2, 1]]
    assert np.argsort(-probing.nearness(products, squares, spread, "ip")).tolist() == [[2, 1, 0]]
