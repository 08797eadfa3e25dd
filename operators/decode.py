"""The way back: from the levels of planes to values and bytes, the inverse of quantize, layerize and hilbert_map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import exact, refine, trellis, uniform
from operators.hilbert import Layout
from operators.hilbert_map import from_layout
from operators.scratch import scratch


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
    layout: order of the values on a plane, at the base level.
    states: of the trellis, where the method is one.
    inset: of its points, in steps (:mod:`operators.trellis_points`).
    """

    method: str
    step: float
    fine_bits: int
    refinements: int
    exact: bool
    layout: Layout
    states: int = 8
    inset: float = 0.0

    @property
    def lattice(self) -> refine.Lattice:
        """The base lattice and its refinements."""
        reach = trellis.REACH if self.method == "trellis" else uniform.REACH
        return refine.Lattice(self.step, reach, self.fine_bits, self.inset)

    def cells(
        self, levels: Sequence[npt.NDArray[Any]], codes: npt.NDArray[np.uint32], dtype: str
    ) -> npt.NDArray[np.int32]:
        """Cells of level ``len(levels) - 1``, source order, (height, width) int32, from the arrays of levels 0 … k.

        They are this thread's work array: read them before the next call.
        """
        symbols = from_layout(levels[0].reshape(-1), self.layout).reshape(levels[0].shape)
        cells = scratch("cells0", symbols.shape, np.int32)
        if self.method == "trellis":
            cells = trellis.index(symbols, self.states, cells)
        else:
            cells[...] = symbols
        for level, refinement in enumerate(levels[1:], 1):
            cells = refine.refined(
                refinement, dtype, codes, cells, self.lattice, level, scratch(f"cells{level}", symbols.shape, np.int32)
            )
        return cells

    def values(
        self,
        levels: Sequence[npt.NDArray[Any]],
        codes: npt.NDArray[np.uint32],
        dtype: str,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """One plane at level ``len(levels) - 1``: (height, width) float32 in source order, in ``out`` if given."""
        cells = self.cells(levels, codes, dtype)
        return refine.reconstruct(cells, dtype, codes, self.lattice, len(levels) - 1, out)

    def bits(
        self,
        levels: Sequence[npt.NDArray[Any]],
        codes: npt.NDArray[np.uint32],
        residual: npt.NDArray[Any],
        dtype: str,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """One plane bit for bit: its words (height·width,) in source order, from all levels and the exact residual.

        ``out`` (height, width) is where they go: a fresh array by default.
        """
        cells = self.cells(levels, codes, dtype)
        return exact.decode(residual, dtype, cells, codes, self.lattice, self.refinements, out).reshape(-1)
