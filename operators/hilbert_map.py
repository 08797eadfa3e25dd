"""Lay the values of a plane along a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from operators.hilbert import Layout, plane_order, plane_position
from operators.operator import Operator, Over
from operators.planes import with_arrays, with_column


@dataclass(frozen=True)
class HilbertMap(Operator):
    """Permute each plane from source order to a layout.

    Parameters
    ----------
    side: values on an edge of the plane, a power of two from 8 to 1024; a plane holds side² values.
    layout: ``hilbert`` (neighbours in the source stay neighbours on the plane), ``raster`` (source order, row by
        row), or ``auto``: whichever takes fewer bytes on sampled planes, raster on a tie, because it costs no gather.
    """

    kind: Literal["hilbert_map"] = "hilbert_map"
    side: int = 256
    layout: Literal["auto", "hilbert", "raster"] = "auto"

    over: ClassVar[Over] = "planes"

    def __post_init__(self) -> None:
        if self.side & (self.side - 1) or not 8 <= self.side <= 1024:
            raise HilbertflowError(
                f"side is {self.side}", where="hilbert_map", remedy="use a power of two from 8 to 1024"
            )

    def apply(self, batch: pa.Table) -> pa.Table:
        """Permute ``bits`` and add ``layout``."""
        if self.layout == "auto":
            raise HilbertflowError("layout 'auto' was not resolved before the stream", where="hilbert_map")
        words = [f"u{size}" for size in batch.column("word").to_pylist()]
        planes = [
            to_layout(bits, self.layout)
            for word, value in zip(words, batch.column("bits"), strict=True)
            for bits in [np.frombuffer(value.as_buffer(), word)]
        ]
        batch = with_arrays(batch, "bits", planes)
        return with_column(batch, "layout", pa.array([self.layout] * batch.num_rows, pa.string()))


def to_layout(values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Source order to plane order: ``(side²,)`` of any dtype to the same shape."""
    if layout == "raster":
        return values
    return values[plane_position(_side(values), layout)]


def from_layout(plane: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Plane order to source order, the inverse of :func:`to_layout`."""
    return plane if layout == "raster" else plane[plane_order(_side(plane), layout)]


def _side(values: npt.NDArray[Any]) -> int:
    return math.isqrt(int(values.size))
