from __future__ import annotations

import numpy as np
import pytest

from operators.errors import HilbertflowError
from operators.hilbert import from_plane, plane_order, plane_position, to_plane

SIDES = [1, 2, 4, 8, 16, 64, 256, 1024]


@pytest.mark.parametrize("layout", ["hilbert", "raster"])
@pytest.mark.parametrize("side", SIDES)
def test_an_order_is_a_permutation_and_position_its_inverse(side, layout):
    order = plane_order(side, layout)
    assert order.dtype == np.int32 and order.shape == (side * side,)
    assert np.array_equal(np.sort(order), np.arange(side * side))
    assert np.array_equal(plane_position(side, layout)[order], np.arange(side * side))


@pytest.mark.parametrize("side", SIDES[1:])
def test_consecutive_values_are_neighbours_on_the_curve(side):
    row, column = np.divmod(plane_order(side, "hilbert"), side)
    assert (np.abs(np.diff(row)) + np.abs(np.diff(column)) == 1).all()


@pytest.mark.parametrize("side", [8, 64, 256])
def test_aligned_runs_fill_squares(side):
    row, column = np.divmod(plane_order(side, "hilbert"), side)
    edge = 2
    while edge <= side:
        rows, columns = row.reshape(-1, edge * edge), column.reshape(-1, edge * edge)
        assert (np.ptp(rows, axis=1) == edge - 1).all() and (np.ptp(columns, axis=1) == edge - 1).all()
        edge *= 2


def test_the_curve_of_four_cells_is_hilberts():
    assert plane_order(2, "hilbert").tolist() == [0, 2, 3, 1]
    assert plane_order(4, "hilbert")[:4].tolist() == [0, 1, 5, 4]


def test_the_order_is_what_it_was():  # archives depend on it
    weights = np.arange(1, 65537, dtype=np.uint64)
    assert int((plane_order(256, "hilbert").astype(np.uint64) * weights).sum() % 2**32) == ORDER_256


ORDER_256 = 286314752


@pytest.mark.parametrize("layout", ["hilbert", "raster"])
@pytest.mark.parametrize("shape", [(64,), (3, 256), (2, 3, 16)])
def test_planes_return_the_values(shape, layout):
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    planes = to_plane(values, layout)
    side = int(shape[-1] ** 0.5)
    assert planes.shape == (*shape[:-1], side, side)
    assert np.array_equal(from_plane(planes, layout), values)
    one = planes.reshape(-1, side, side)[0].reshape(-1)
    assert np.array_equal(one[plane_order(side, layout)], values.reshape(-1, side * side)[0])


@pytest.mark.parametrize("side", [0, -4, 3, 6, 100, 8192])
def test_a_side_that_is_no_power_of_two_is_refused(side):
    with pytest.raises(HilbertflowError, match="power of two"):
        plane_order(side, "hilbert")


def test_other_bad_input_is_refused():
    with pytest.raises(HilbertflowError, match="unknown layout"):
        plane_order(8, "peano")
    with pytest.raises(HilbertflowError, match="square"):
        to_plane(np.zeros(10))
    with pytest.raises(HilbertflowError, match="square"):
        from_plane(np.zeros((4, 8)))


def test_orders_are_shared_and_read_only():
    assert plane_order(64, "hilbert") is plane_order(64, "hilbert")
    with pytest.raises(ValueError):
        plane_order(64, "hilbert")[0] = 1
