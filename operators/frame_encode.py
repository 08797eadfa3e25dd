"""Encode the levels of a plane, each as one chunk of its Zarr array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.coders import CODERS, CoderKind
from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from operators.planes import level_columns, with_column


@dataclass(frozen=True)
class FrameEncode(Operator):
    """Code every level with a lossless coder of integer planes.

    Parameters
    ----------
    coder: one coder for all levels, ``auto`` for the cheapest of each level on sampled planes, or a mapping from level
        column (``level0``, ``level1``, ``exact``) to coder. Rows of a collection are no pictures: ``auto`` is ``rans``
        for them, with frequency tables that the chunks of an array share.
    """

    kind: Literal["frame_encode"] = "frame_encode"
    coder: Literal["auto", "rans", "hevc", "h264", "av1", "ffv1", "raw"] | dict[str, CoderKind] = "auto"

    over: ClassVar[Over] = "planes"

    def coder_of(self, column: str) -> CoderKind:
        """The coder of a level column; levels that a mapping leaves out take ``rans``."""
        if isinstance(self.coder, dict):
            return self.coder.get(column, "rans")
        if self.coder == "auto":
            raise HilbertflowError("coder 'auto' was not resolved before the stream", where="frame_encode")
        return self.coder

    def apply(self, batch: pa.Table) -> pa.Table:
        """Replace each level column by its coded chunks; an empty array becomes null, which reads as zeros."""
        for column in level_columns(batch.column_names):
            coder = CODERS[self.coder_of(column)]
            chunks = [None if plane is None else coder.encode(plane) for plane in level_planes(batch, column)]
            batch = with_column(batch, column, pa.array(chunks, pa.binary()))
        return batch


def level_planes(batch: pa.Table, column: str) -> list[npt.NDArray[Any] | None]:
    """Each plane of a level as (height, width) of the array's element type; None where it has no such level."""
    planes: list[npt.NDArray[Any] | None] = []
    address = (batch.column(name).to_pylist() for name in ("height", "width", "word", "exact_word"))
    for data, height, width, word, exact_word in zip(batch.column(column), *address, strict=True):
        stored = f"u{word}" if column == "exact" else LEVEL_DTYPES.get(column, "i1")
        plane = np.frombuffer(data.as_buffer(), stored)
        if column == "exact":
            plane = plane.astype(f"u{exact_word}", copy=False)
        planes.append(plane.reshape(height, width) if plane.size else None)
    return planes


LEVEL_DTYPES = {"level0": "i2"}
"""Element types of the level arrays; refinements are int8."""
