"""Where the values of a plane lie: along a Hilbert curve, or row by row."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

Layout = Literal["hilbert", "raster"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MAX_SIDE = 4096


@lru_cache(maxsize=16)
def plane_order(side: int, layout: Layout) -> npt.NDArray[np.int32]:
    """Flat cell of each value: ``plane.reshape(-1)[order] = values`` and ``values = plane.reshape(-1)[order]``.

    Along ``hilbert`` consecutive values lie in cells that share an edge, and every aligned run of 4^k values fills a
    square of 2^k × 2^k. ``raster`` is the identity. The curve is Hilbert's (1891), taken cell by cell from the bit
    pairs of the position as in Skilling, "Programming the Hilbert curve" (2004), for all positions at once.

    Parameters
    ----------
    side: cells on an edge, a power of two from 1 to 4096.
    layout: ``hilbert`` or ``raster``.

    Returns
    -------
    Read-only int32 array of side² cells, shared between callers.
    """
    if side < 1 or side & (side - 1) or side > MAX_SIDE:
        raise HilbertflowError(f"side of a plane is {side}", remedy=f"use a power of two up to {MAX_SIDE}")
    if layout not in LAYOUTS:
        raise HilbertflowError(f"unknown layout {layout!r}", remedy=f"use one of {', '.join(LAYOUTS)}")
    if layout == "raster":
        order = np.arange(side * side, dtype=np.int32)
    else:
        row, column = _hilbert_cells(side)
        order = row * np.int32(side) + column
    order.flags.writeable = False
    return order


@lru_cache(maxsize=16)
def plane_position(side: int, layout: Layout) -> npt.NDArray[np.int32]:
    """Position of each cell along the layout: the inverse permutation of :func:`plane_order`."""
    position = np.empty(side * side, np.int32)
    position[plane_order(side, layout)] = np.arange(side * side, dtype=np.int32)
    position.flags.writeable = False
    return position


def to_plane(values: npt.NDArray[Any], layout: Layout = "hilbert") -> npt.NDArray[Any]:
    """Values in source order, ``(…, side²)`` of any dtype, to planes ``(…, side, side)``."""
    side = _side_of(values.shape)
    return values[..., plane_position(side, layout)].reshape(*values.shape[:-1], side, side)


def from_plane(planes: npt.NDArray[Any], layout: Layout = "hilbert") -> npt.NDArray[Any]:
    """Planes ``(…, side, side)`` to values in source order ``(…, side²)``, the inverse of :func:`to_plane`."""
    if planes.ndim < 2 or planes.shape[-1] != planes.shape[-2]:
        raise HilbertflowError(f"a plane of shape {planes.shape} is not square")
    side = planes.shape[-1]
    return planes.reshape(*planes.shape[:-2], side * side)[..., plane_order(side, layout)]


def _side_of(shape: tuple[int, ...]) -> int:
    count = shape[-1] if shape else 0
    side = math.isqrt(int(count))
    if count == 0 or side * side != count:
        raise HilbertflowError(f"{count} values do not fill a square plane", remedy="pad them to a square")
    return side


def _hilbert_cells(side: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Row and column of each position, from the least significant bit pair (the smallest square) upwards."""
    rest = np.arange(side * side, dtype=np.int32)
    row, column = np.zeros_like(rest), np.zeros_like(rest)
    size = 1
    while size < side:
        right = (rest >> 1) & 1
        down = (rest ^ right) & 1
        # the first and the last quarter are transposed, the last one turned over as well
        flip = (down == 0) & (right == 1)
        row, column = np.where(flip, size - 1 - row, row), np.where(flip, size - 1 - column, column)
        swap = down == 0
        row, column = np.where(swap, column, row), np.where(swap, row, column)
        row, column = row + size * down, column + size * right
        rest = rest >> 2
        size *= 2
    return row.astype(np.int32), column.astype(np.int32)
