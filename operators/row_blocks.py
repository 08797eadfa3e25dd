"""In what order and in what blocks the rows of a collection lie."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from operators.planes import with_column

F32 = npt.NDArray[np.float32]

LEAST_FOR_LISTS = 4096
"""Rows from which on ``auto`` sorts them into lists."""


@dataclass(frozen=True)
class RowBlocks(Operator):
    """Order the rows and cut them in blocks, the least that a read fetches and decodes.

    Parameters
    ----------
    rows: vectors in a block, 8 to 1024.
    order: ``lists``, inverted lists along a tour of their centroids: what a query reads lies together
        (:mod:`operators.lists`); ``hilbert``, along a Hilbert curve through the principal components; ``source``, as
        they come, in one pass; ``auto``, lists from 4,096 rows on.
    lists: how many lists, or runs of the curve; ``auto`` takes 6 · sqrt(rows), 32 rows a list at least.
    normalize: scale every vector to unit length, for collections searched by cosine. A zero vector raises.
    """

    kind: Literal["row_blocks"] = "row_blocks"
    rows: int = 16
    order: Literal["auto", "lists", "hilbert", "source"] = "auto"
    lists: int | Literal["auto"] = "auto"
    normalize: bool = False

    over: ClassVar[Over] = "rows"

    def __post_init__(self) -> None:
        if not 8 <= self.rows <= 1024:
            raise HilbertflowError(f"rows is {self.rows}", where="row_blocks", remedy="use 8 to 1024")
        if self.lists != "auto" and not 1 <= self.lists <= 1 << 20:
            raise HilbertflowError(f"lists is {self.lists}", where="row_blocks", remedy="use auto, or 1 to 1048576")

    def resolved(self, count: int) -> Self:
        """With every ``auto`` settled for ``count`` rows."""
        order = self.order if self.order != "auto" else "lists" if count >= LEAST_FOR_LISTS else "source"
        lists = min(count // 32, round(6 * math.sqrt(count))) if self.lists == "auto" else min(self.lists, count)
        if lists < 2:
            order = "source"
        return dataclasses.replace(self, order=order, lists=1 if order == "source" else lists)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Rows (``row`` int64, ``vector`` and others) in the order of ``row``, finite, and normalised if asked for.

        Raises for NaN and Inf, and for a zero vector that has no direction, naming the row.
        """
        batch = batch.combine_chunks().sort_by("row")
        vectors, first = vector_matrix(batch), batch.column("row")[0].as_py() if batch.num_rows else 0
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise HilbertflowError("the vector holds NaN or Inf", where=f"row {first + int(bad[0])}",
                                   remedy="drop the row")  # fmt: skip
        if not self.normalize:
            return batch
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        if not norms.all():
            raise HilbertflowError(
                "a zero vector has no direction", where=f"row {first + int(np.flatnonzero(norms == 0)[0])}",
                remedy="drop the row, or archive with metric l2 or ip",
            )  # fmt: skip
        return with_column(batch, "vector", vector_column((vectors / norms[:, None]).astype(np.float32)))


def vector_matrix(table: pa.Table) -> F32:
    """The ``vector`` column as a float32 matrix (rows, dimension); raises for rows of unequal length or nulls."""
    column = table.column("vector").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if column.null_count:
        raise HilbertflowError("a vector is null", where="column 'vector'", remedy="drop the row")
    if not pa.types.is_fixed_size_list(column.type):
        raise HilbertflowError("vectors are not of one length", where="column 'vector'")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat, dtype=np.float32).reshape(len(column), column.type.list_size)


def vector_column(values: F32) -> pa.FixedSizeListArray:
    """``(n, d)`` float32 as an Arrow column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
