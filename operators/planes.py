"""Planes in an Arrow table: one row a plane, arrays as binary columns, so that one schema fits every dtype.

Columns of the stream, by the operator that adds them:

=============  ======================================================================================
source         ``unit`` int64, ``plane`` int64 (global number), ``planes`` int32 (in this unit),
               ``dtype`` str, ``opaque`` bool, ``word`` int8 (bytes of a source word),
               ``exact_word`` int8 (bytes of an element of the ``exact`` array),
               ``height`` / ``width`` int32, ``count`` int32 (values that are not padding),
               ``bits`` binary (height·width source words)
hilbert_map    ``layout`` str; ``bits`` in plane order
quantize       ``scales`` binary (height scale codes), ``level0`` binary int16 symbols,
               ``index`` binary int32 lattice indices, ``step``, ``reach`` and ``inset`` float32
layerize       ``level1`` … binary int8, ``exact`` binary unsigned words, ``energy`` and ``error0`` …
               float64 sums, ``means`` binary int16 (:mod:`operators.plane_index`), ``crc`` uint32 of the
               source words; drops ``bits`` and ``index``
frame_encode   the level columns become coded chunks
=============  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError


def arrays(batch: pa.Table, column: str, dtype: npt.DTypeLike) -> list[npt.NDArray[Any]]:
    """Each row of a binary column as a read-only 1-D array of ``dtype``, without copying."""
    return [np.frombuffer(value.as_buffer(), dtype=dtype) for value in batch.column(column)]


def with_arrays(batch: pa.Table, column: str, rows: Iterable[npt.NDArray[Any] | bytes]) -> pa.Table:
    """The table with a binary column set to the bytes of ``rows``, which are copied once."""
    parts = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else _bytes_of(row) for row in rows]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([part.size for part in parts], out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        what = f"{offsets[-1]:,} bytes of {column} in one unit, more than Arrow's columns hold"
        raise HilbertflowError(what, where="compute", remedy="make planes_per_unit or rows_per_unit smaller")
    data = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return with_column(batch, column, pa.Array.from_buffers(pa.binary(), len(parts), buffers))


def _bytes_of(row: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(row).reshape(-1).view(np.uint8)


def with_column(batch: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """The table with ``column`` set, replaced in place when it is there already."""
    at = batch.schema.get_field_index(column)
    return batch.append_column(column, values) if at < 0 else batch.set_column(at, column, values)


def level_columns(names: Sequence[str]) -> list[str]:
    """The level columns among ``names``, coarse to fine: ``level0``, ``level1``, …, ``exact``."""
    numbered = sorted((n for n in names if n.startswith("level")), key=lambda n: int(n[5:]))
    return numbered + (["exact"] if "exact" in names else [])
