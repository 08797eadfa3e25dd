"""Cut a stream of vectors into blocks of rows, the planes of a collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import HilbertflowError
from operators.operator import Operator, Over

RESERVED = ("unit", "rows", "row", "vector")


@dataclass(frozen=True)
class RowBlocks(Operator):
    """Group the rows of a unit into planes of ``rows`` × dimension float32 values.

    Parameters
    ----------
    rows: vectors in a block, the least that a read fetches and decodes; 32 to 1024.
    normalize: scale every vector to unit length, for collections searched by cosine. A zero vector raises.
    """

    kind: Literal["row_blocks"] = "row_blocks"
    rows: int = 64
    normalize: bool = False

    over: ClassVar[Over] = "rows"

    def __post_init__(self) -> None:
        if not 16 <= self.rows <= 1024:
            raise HilbertflowError(f"rows is {self.rows}", where="row_blocks", remedy="use 16 to 1024")

    def apply(self, batch: pa.Table) -> pa.Table:
        """From rows (``unit``, ``row`` int64, ``rows`` int32 in the unit, ``id``, ``vector``, metadata) to planes.

        The last block of a collection is padded with zero rows; ``count`` tells. ``attributes`` holds id and metadata
        of a block's rows as a list of structs. Raises for NaN and Inf, naming the row.
        """
        batch = batch.combine_chunks().sort_by("row")
        out = [
            self._unit(batch.filter(pc.equal(batch.column("unit"), unit)))
            for unit in pc.unique(batch.column("unit")).to_pylist()
        ]
        return pa.concat_tables(out)

    def _unit(self, table: pa.Table) -> pa.Table:
        table = table.combine_chunks()
        vectors = vector_matrix(table)
        unit, start = table.column("unit")[0].as_py(), table.column("row")[0].as_py()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise HilbertflowError(
                "the vector holds NaN or Inf", where=f"row {start + int(bad[0])}", remedy="drop the row"
            )
        if self.normalize:
            norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
            if not norms.all():
                raise HilbertflowError(
                    "a zero vector has no direction", where=f"row {start + int(np.flatnonzero(norms == 0)[0])}",
                    remedy="drop the row, or archive with metric l2 or ip",
                )  # fmt: skip
            vectors = (vectors / norms[:, None]).astype(np.float32)
        attributes = table.drop_columns([c for c in RESERVED if c in table.column_names])
        structs = pa.StructArray.from_arrays(
            [c.combine_chunks() for c in attributes.columns], fields=list(attributes.schema)
        )
        n, dim = vectors.shape
        borders = list(range(0, n, self.rows))
        blocks = len(borders)
        filled = np.zeros((blocks * self.rows, dim), np.float32)  # Zarr stores whole chunks: the last one is padded
        filled[:n] = vectors
        offsets = pa.array([*borders, n], pa.int32())
        return pa.table(
            {
                "unit": pa.array([unit] * blocks, pa.int64()),
                "plane": pa.array([(start + b) // self.rows for b in borders], pa.int64()),
                "planes": pa.array([blocks] * blocks, pa.int32()),
                "dtype": pa.array(["F32"] * blocks, pa.string()),
                "opaque": pa.array([False] * blocks, pa.bool_()),
                "word": pa.array([4] * blocks, pa.int8()),
                "exact_word": pa.array([4] * blocks, pa.int8()),
                "height": pa.array([self.rows] * blocks, pa.int32()),
                "width": pa.array([dim] * blocks, pa.int32()),
                "count": pa.array([min(self.rows, n - b) * dim for b in borders], pa.int32()),
                "layout": pa.array(["raster"] * blocks, pa.string()),
                "bits": pa.array([filled[b : b + self.rows].tobytes() for b in borders], pa.binary()),
                "attributes": pa.ListArray.from_arrays(offsets, structs),
            }
        )


def vector_matrix(table: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
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
