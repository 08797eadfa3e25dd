"""Tours keep what is alike together, and take new models in without moving the others."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.tours import along, place_in, tour
from operators.signature import CODE


def families(count: int, size: int) -> np.ndarray:
    """Codes of families, one after the other: (count * size, 992)."""
    random = np.random.default_rng(4)
    centres = random.integers(-90, 91, (count, 1, CODE))
    return (centres + random.integers(-30, 31, (count, size, CODE))).reshape(-1, CODE).astype(np.int8)


def test_a_tour_keeps_relatives_together() -> None:
    codes = families(3, 4)
    shuffled = np.random.default_rng(1).permutation(12)
    order = shuffled[tour(codes[shuffled])] // 4
    assert (np.diff(order) != 0).sum() == 2 and tour(np.zeros((0, CODE), np.int8)) == []


@pytest.mark.parametrize("at", range(12))
def test_a_new_model_goes_beside_its_relatives(at: int) -> None:
    codes = families(3, 4)
    others = np.delete(np.arange(12), at)
    order = tour(codes[others])
    place = place_in(codes[others], order, codes[at])
    beside = [others[order[i]] // 4 for i in (place - 1, place) if 0 <= i < 11]
    assert at // 4 in beside


def test_the_first_model_goes_first() -> None:
    assert place_in(np.zeros((0, CODE), np.int8), [], families(1, 1)[0]) == 0


def test_neighbours_of_a_tour_lend_half_their_score() -> None:
    assert along(np.array([1.0, 0.0, 0.5]), [0, 2, 1]).tolist() == pytest.approx([1.25 / 1.5, 0.25 / 1.5, 0.5])
    assert along(np.array([0.7]), [0]).tolist() == [0.7]
