"""The way back: from the levels of planes to values and bytes, the inverse of quantize, layerize and hilbert_map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import exact, uniform
from operators.hilbert import Layout
from operators.hilbert_map import from_layout
from operators.scales import row_steps


@dataclass(frozen=True)
class Ladder:
    """How the levels of an archive were made, as kept in its attributes.

    Parameters
    ----------
    method: quantizer of the base level.
    step: its lattice step in units of a row's deviation.
    fine_bits: bits that each refinement adds.
    refinements: how many there are.
    exact: whether an exact level follows.
    layout: order of the values on a plane.
    """

    method: str
    step: float
    fine_bits: int
    refinements: int
    exact: bool
    layout: Layout

    def index(self, levels: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int32]:
        """Cumulative lattice index, source order, (height, width) int32, from the arrays of levels 0 … k."""
        shape = levels[0].shape
        index = from_layout(levels[0].reshape(-1), self.layout).astype(np.int32)
        for refinement in levels[1:]:
            index = (index << self.fine_bits) + from_layout(refinement.reshape(-1), self.layout)
        return index.reshape(shape)

    def values(
        self, levels: Sequence[npt.NDArray[Any]], codes: npt.NDArray[np.uint16]
    ) -> npt.NDArray[np.float32]:
        """One plane at level ``len(levels) - 1``: (height, width) float32 in source order."""
        return uniform.reconstruct(self.index(levels), codes, self.step, self.fine_bits * (len(levels) - 1))

    def bits(
        self, levels: Sequence[npt.NDArray[Any]], codes: npt.NDArray[np.uint16], residual: npt.NDArray[Any], dtype: str
    ) -> npt.NDArray[Any]:
        """One plane bit for bit: its words (height·width,) in source order, from all levels and the exact residual."""
        steps = row_steps(codes, self.step, self.fine_bits * self.refinements)
        return exact.decode(residual, dtype, self.index(levels), steps).reshape(-1)
