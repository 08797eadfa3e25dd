from __future__ import annotations

import numpy as np
import pytest

from operators import lists
from operators.errors import HilbertflowError

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(40, 12)).astype(np.float32) * 5
OWN = RNG.integers(0, 40, 2000)
ROWS = (CENTRES[OWN] + RNG.normal(size=(2000, 12))).astype(np.float32)


def length(points: np.ndarray, path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points[path], axis=0), axis=1).sum())


def test_training_finds_clusters() -> None:
    found = lists.train(ROWS, 40, rounds=25)
    error = np.mean((ROWS - found[lists.nearest(ROWS, found)[:, 0]]) ** 2)
    assert error < 0.15 * ROWS.var(axis=0).mean()
    assert np.array_equal(found, lists.train(ROWS, 40, rounds=25))


def test_no_list_stays_empty() -> None:
    heaps = (
        np.repeat(np.eye(4, dtype=np.float32), [500, 5, 5, 5], axis=0)
        + RNG.normal(size=(515, 4)).astype(np.float32) * 0.01
    )
    found = lists.train(heaps, 64)
    assert np.isfinite(found).all() and len(np.unique(lists.nearest(heaps, found))) > 56


def test_nearest_is_what_distances_say() -> None:
    distance = ((ROWS[:50, None] - CENTRES) ** 2).sum(-1)
    assert np.array_equal(lists.nearest(ROWS[:50], CENTRES, 5), np.argsort(distance, axis=1)[:, :5])
    assert lists.nearest(ROWS[:3], CENTRES[:2], 9).shape == (3, 2)


def test_spilled_rows_go_to_a_second_list_across_the_first_residual() -> None:
    first = lists.nearest(ROWS, CENTRES)[:, 0]
    second, plain = lists.spill(ROWS, CENTRES, first), lists.spill(ROWS, CENTRES, first, emphasis=0)
    assert (second != first).all() and np.array_equal(plain, lists.nearest(ROWS, CENTRES, 2)[:, 1])

    def parallel(other: np.ndarray) -> float:
        a, b = ROWS - CENTRES[first], ROWS - CENTRES[other]
        return float(np.mean(np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))

    assert parallel(second) < parallel(plain)


def test_the_tour_visits_all_and_is_short() -> None:
    points = RNG.uniform(size=(400, 2)).astype(np.float32)
    path = lists.tour(points)
    assert np.array_equal(np.sort(path), np.arange(400))
    assert length(points, path) < 0.85 * np.sqrt(400) * 1.1  # the shortest is about .7124 √(n·area)
    assert lists.tour(points[:2]).tolist() == [0, 1]


def test_rows_lie_along_the_tour_between_the_borders() -> None:
    path = lists.tour(CENTRES)
    order, borders = lists.along(OWN, path)
    assert np.array_equal(np.sort(order), np.arange(2000)) and borders[-1] == 2000
    for i in (0, 7, 39):
        inside = order[borders[i] : borders[i + 1]]
        assert (OWN[inside] == path[i]).all() and (np.diff(inside) > 0).all()


def test_the_hilbert_curve_steps_to_a_neighbouring_cell() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    fine = (grid + RNG.uniform(0, 1e-3, grid.shape)).astype(np.float32)  # ranks of a grid of 8³ cells
    steps = np.abs(np.diff(grid[lists.hilbert(fine, bits=3)], axis=0)).sum(axis=1)
    assert (steps == 1).all()


def test_rows_along_the_curve_are_near_each_other() -> None:
    order = lists.hilbert(ROWS[:, :4])
    gap = np.linalg.norm(np.diff(ROWS[order, :4], axis=0), axis=1).mean()
    assert gap < 0.6 * np.linalg.norm(np.diff(ROWS[:, :4], axis=0), axis=1).mean()


def test_bad_arguments_raise() -> None:
    with pytest.raises(HilbertflowError, match="fewer lists"):
        lists.train(ROWS[:5], 6)
    with pytest.raises(HilbertflowError, match="64 bits"):
        lists.hilbert(ROWS, bits=8)
    with pytest.raises(HilbertflowError, match="two lists"):
        lists.spill(ROWS, CENTRES[:1], np.zeros(2000, np.int32))
