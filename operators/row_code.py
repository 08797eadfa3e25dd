"""Code blocks of rows: transform, levels, entropy coder; the step from vectors to the chunks of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.coders import Coder
from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from operators.row_blocks import vector_matrix
from operators.rowcode import USUAL_BITS, RowCode

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CHUNK, LIST = "hf:chunk", "hf:list"  # names that no metadata of a source has
STREAM = ("unit", CHUNK, LIST, "vector")
"""Columns that the stream needs and the archive's table of rows does not."""
_PIECE = 2048  # rows that are coded at a time


@dataclass(frozen=True)
class RowCoding(Operator):
    """Rows as levels of transform coefficients, then what makes them bit-exact (:mod:`operators.rowcode`).

    Parameters
    ----------
    bits: a dimension, down to each level, ascending: the base, levels between, and after them ``exact`` by itself.
        ``auto``: those that :func:`operators.rowcode.usual_bits` finds right for a sample.
    states: of the trellis, 4 to 256; more are slower to write and a little smaller.
    emphasis: how far a level's error is shaped so that near neighbours stay on top; 0 for least squared error.
    """

    kind: Literal["row_code"] = "row_code"
    bits: tuple[float, ...] | Literal["auto"] = "auto"
    states: Literal[4, 8, 16, 32, 64, 128, 256] = 8
    emphasis: float = 1.0

    over: ClassVar[Over] = "rows"

    def __post_init__(self) -> None:
        bits = USUAL_BITS if self.bits == "auto" else self.bits
        rising = all(low < high for low, high in zip((0.0, *bits), bits, strict=False))
        if not bits or not rising or bits[-1] > 24 or len(bits) > 8:
            raise HilbertflowError(
                f"bits are {list(bits)}", where="row_code", remedy="use 1 to 8 ascending numbers above 0, up to 24"
            )
        if not 0 <= self.emphasis <= 2:
            raise HilbertflowError(f"emphasis is {self.emphasis:g}", where="row_code", remedy="use 0 to 2")

    @property
    def depth(self) -> int:
        """Number of lossy levels."""
        return len(USUAL_BITS if self.bits == "auto" else self.bits)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Only :class:`TrainedRowCoding` can."""
        raise HilbertflowError("the code was not trained before the stream", where="row_code")


@dataclass(frozen=True, eq=False)
class TrainedRowCoding(RowCoding):
    """What a run puts in the place of :class:`RowCoding` and of the coder after it, once it has trained them.

    Parameters
    ----------
    code: of the rows.
    coders: of every array that has any width, by name.
    """

    code: RowCode = field(kw_only=True)
    coders: Mapping[str, Coder] = field(kw_only=True)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Rows of whole units in archive order to one row a chunk.

        From ``unit``, ``CHUNK`` int64 (number of the block), ``LIST`` int32, ``row`` int64, ``vector``, ``id`` and
        metadata to ``unit``, ``plane``, ``planes``, ``word``, ``count`` (values), ``crc`` (of the rows' bytes),
        ``residual`` (squared distance to the centroid, summed), ``energy`` and, for each level, ``error`` and
        ``cosine`` (sums over the rows); the coded chunk of every array; ``attributes``: the table of its rows.
        """
        chunk = batch.column(CHUNK).to_numpy()
        starts = np.flatnonzero(np.diff(chunk, prepend=chunk[0] - 1))
        lists = batch.column(LIST).to_numpy()
        vectors = vector_matrix(batch)
        pieces = [self._piece(vectors, lists, part) for part in _pieces(starts, len(chunk))]
        columns = {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
        n, units = len(starts), batch.column("unit").to_numpy()[starts]
        hidden = STREAM if len(self.code.centroids) else (*STREAM, "row")  # which is then the row's place
        own = batch.drop_columns([name for name in hidden if name in batch.column_names]).combine_chunks()
        structs = pa.StructArray.from_arrays([c.combine_chunks() for c in own.columns], fields=list(own.schema))
        counts = np.diff(starts, append=len(chunk)) * vectors.shape[1]
        return pa.table(
            {
                "unit": pa.array(units, pa.int64()),
                "plane": pa.array(chunk[starts], pa.int64()),
                "planes": pa.array([int((units == unit).sum()) for unit in units], pa.int32()),
                "word": pa.array([4] * n, pa.int8()),
                "count": pa.array(counts, pa.int32()),
                **{name: pa.array(values, _TYPES.get(name, pa.float64())) for name, values in columns.items()
                   if name not in self.coders},
                **{name: pa.array(columns[name], pa.binary()) for name in self.coders},
                "attributes": pa.ListArray.from_arrays(pa.array([*starts, len(chunk)], pa.int32()), structs),
            }
        )  # fmt: skip

    def _piece(self, vectors: F32, lists: npt.NDArray[np.int32], starts: I64) -> dict[str, list[Any]]:
        """Columns of the chunks that begin at all but the last of ``starts``."""
        code, low, high = self.code, int(starts[0]), int(starts[-1])
        rows, mine = vectors[low:high], lists[low:high] if len(self.code.centroids) else None
        begin = starts[:-1] - low
        ends = starts[1:] - low
        levels = code.encode(rows, mine, begin)
        out: dict[str, list[Any]] = {}
        for name, coder in self.coders.items():
            out[name] = [
                coder.encode(_padded(levels[name][a:b], code.block)) for a, b in zip(begin, ends, strict=True)
            ]  # fmt: skip
        out["crc"] = [google_crc32c.value(rows[a:b].tobytes()) for a, b in zip(begin, ends, strict=True)]
        centres = code.centres[mine if mine is not None else np.zeros(len(rows), np.int32)]
        out["residual"] = _sums(np.square(rows.astype(np.float64) - centres).sum(axis=1), begin)
        energy = np.square(rows, dtype=np.float64).sum(axis=1)
        out["energy"] = _sums(energy, begin)
        for level in range(code.depth):
            decoded = code.decode({f"level{k}": levels[f"level{k}"] for k in range(level + 1)}, mine)
            length = np.sqrt(energy * np.square(decoded, dtype=np.float64).sum(axis=1))
            product = np.einsum("ij,ij->i", rows, decoded, dtype=np.float64)
            out[f"error{level}"] = _sums(np.square(decoded.astype(np.float64) - rows).sum(axis=1), begin)
            out[f"cosine{level}"] = _sums(np.where(length > 0, product / np.maximum(length, 1e-300), 1.0), begin)
        return out


_TYPES = {"crc": pa.uint32(), "residual": pa.float32()}


def _pieces(starts: I64, count: int) -> Iterator[I64]:
    """Runs of chunks of about ``_PIECE`` rows: where each of them begins, and where the last one ends."""
    edges = np.append(starts, count)
    first = 0
    while first < len(starts):
        stop = max(first + 1, int(np.searchsorted(edges, edges[first] + _PIECE, "right")) - 1)
        yield edges[first : stop + 1]
        first = stop


def _sums(values: npt.NDArray[np.float64], starts: I64) -> list[float]:
    return [float(total) for total in np.add.reduceat(values, starts)]


def _padded(rows: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """A whole chunk; the coder leaves the rows of zeros out again."""
    if len(rows) == block:
        return rows
    full = np.zeros((block, rows.shape[1]), rows.dtype)
    full[: len(rows)] = rows
    return full
