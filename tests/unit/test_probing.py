"""Which lists a query reads."""

from __future__ import annotations

import numpy as np

from cluster import probing
from cluster.probing import Probe


def test_the_nearest_lists_until_both_numbers_are_reached() -> None:
    ranked, counts = np.array([3, 0, 4, 1, 2]), np.array([10, 10, 10, 5, 1])
    assert Probe(2, 1).lists(ranked, counts).tolist() == [0, 3]
    assert Probe(1, 16).lists(ranked, counts).tolist() == [0, 3, 4]
    assert Probe(1, 15).lists(ranked, counts).tolist() == [0, 3]
    assert Probe(9, 1).lists(ranked, counts).tolist() == [0, 1, 2, 3, 4]
    assert Probe(1, 1000).lists(ranked, counts).tolist() == [0, 1, 2, 3, 4]


def test_lists_that_a_filter_empties_are_passed_over() -> None:
    ranked, counts = np.array([3, 0, 4, 1, 2]), np.array([0, 2, 7, 0, 0])
    assert Probe(1, 1).lists(ranked, counts).tolist() == [1]
    assert Probe(1, 3).lists(ranked, counts).tolist() == [1, 2]


def test_rows_that_may_be_answered_are_counted_by_list() -> None:
    borders = np.array([0, 4, 4, 9])
    assert probing.eligible(borders, None).tolist() == [4, 0, 5]
    assert probing.eligible(borders, np.array([0, 3, 4, 8])).tolist() == [2, 0, 2]
    assert probing.eligible(borders, np.array([], np.int64)).tolist() == [0, 0, 0]


def test_rank_is_by_distance_or_by_what_the_best_row_may_reach() -> None:
    products, squares = np.array([[1.0, 2.0, 0.5]], np.float32), np.array([0.1, 9.0, 0.2], np.float32)
    spread = np.array([0.0, 0.0, 3.0], np.float32)
    assert probing.rank(products, squares, spread, "l2").tolist() == [[0, 2, 1]]
    assert probing.rank(products, squares, spread, "ip").tolist() == [[2, 1, 0]]
