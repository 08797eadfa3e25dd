"""Encode the levels of a plane, each as one chunk of its Zarr array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from operators.coders import CODERS
from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from operators.planes import level_columns, with_column

CoderKind = Literal["rans", "hevc", "h264", "av1", "ffv1", "raw"]


@dataclass(frozen=True)
class FrameEncode(Operator):
    """Code every level with a lossless coder of integer planes.

    Parameters
    ----------
    coder: one coder for all levels, ``auto`` for the cheapest of each level on sampled planes, or a mapping from level
        column (``level0``, ``level1``, ``exact``) to coder.
    """

    kind: Literal["frame_encode"] = "frame_encode"
    coder: Literal["auto", "rans", "hevc", "h264", "av1", "ffv1", "raw"] | dict[str, CoderKind] = "auto"

    over: ClassVar[Over] = "planes"

    def coder_of(self, column: str) -> str:
        """The coder of a level column; levels that a mapping leaves out take ``rans``."""
        if isinstance(self.coder, dict):
            return self.coder.get(column, "rans")
        if self.coder == "auto":
            raise HilbertflowError("coder 'auto' was not resolved before the stream", where="frame_encode")
        return self.coder

    def apply(self, batch: pa.Table) -> pa.Table:
        """Replace each level column by its coded chunks; an empty array becomes null, which reads as zeros."""
        heights, widths = batch.column("height").to_pylist(), batch.column("width").to_pylist()
        words = batch.column("exact_word").to_pylist()
        own = batch.column("word").to_pylist()
        for column in level_columns(batch.column_names):
            coder = CODERS[self.coder_of(column)]()
            chunks: list[bytes | None] = []
            for data, height, width, word, narrow in zip(
                batch.column(column).to_pylist(), heights, widths, words, own, strict=True
            ):
                stored = f"u{narrow}" if column == "exact" else LEVEL_DTYPES.get(column, "i1")
                plane = np.frombuffer(data, stored).reshape(height, width) if data else None
                if plane is not None and column == "exact":
                    plane = plane.astype(f"u{word}")
                chunks.append(None if plane is None else coder.encode(plane))
            batch = with_column(batch, column, pa.array(chunks, pa.binary()))
        return batch


LEVEL_DTYPES = {"level0": "i2"}
"""Element types of the level arrays; refinements are int8."""
