"""Units of planes read from a checkpoint: what a source gives to the stream."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.planes import with_arrays
from storage.checkpoint import Checkpoint
from storage.held import Piece, Read, read
from storage.layout import Layout
from storage.signatures import Frame, sums_bytes, unit_sums
from storage.tensors import TensorSpec

if TYPE_CHECKING:
    from storage.model import ModelArchive


@dataclass(frozen=True)
class PlaneUnits:
    """The units of a checkpoint under a layout; picklable, so that each worker reads its own.

    With a ``parent``, planes bring the words of the same tensors there, and those of its own parent. With a ``frame``,
    the first plane of a unit brings what the unit adds to the model's signature. What is ``held`` has been read and
    is not asked for again; ``recorder`` reads in the stead of the checkpoint while a plan is made.
    """

    checkpoint: Checkpoint
    layout: Layout
    parent: ModelArchive | None = None
    frame: Frame | None = None
    held: tuple[Piece, ...] = ()
    recorder: Read | None = None

    @property
    def units(self) -> int:
        """How many there are."""
        return self.layout.units

    @property
    def unit_bytes(self) -> int:
        """The most bytes a unit takes in the stream."""
        return self.layout.per_unit * self.layout.area * self.layout.word + self._sketch_bytes

    @cached_property
    def _sketch_bytes(self) -> int:
        """The most that a unit adds to the signature: units in the midst of a tensor hold it alone, others share."""
        if self.frame is None:
            return 0
        shared: Counter[int] = Counter()
        for tensor in self.layout.placements:
            size, unit = sums_bytes(self._specs[tensor.name], self.frame), self.layout.per_unit * self.layout.area
            for at in {tensor.start // unit, (tensor.start + max(1, tensor.words) - 1) // unit}:
                shared[at] += size
        return max(shared.values(), default=0)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.checkpoint.tensors}

    def read(self, unit: int) -> pa.Table:
        """One row a plane, as :mod:`operators.planes` describes; reads each byte of the source once."""
        _, first, stop = self.layout.unit_planes(unit)
        return self.read_planes(unit, first, stop)

    def read_some(self, unit: int, count: int) -> pa.Table:
        """Up to ``count`` planes spread evenly over a unit; no byte of others is read."""
        _, first, stop = self.layout.unit_planes(unit)
        picked = sorted({first + (stop - first) * i // count for i in range(count)} if stop > first else ())
        return pa.concat_tables(
            [self.read_planes(unit, plane, plane + 1) for plane in picked] or [self.read_planes(unit, first, first)]
        )

    def narrowed(self, units: Iterable[int]) -> PlaneUnits:
        """The same for a worker of these, in rising order: it holds what they need."""
        by_unit: dict[int, list[Piece]] = {}
        for piece in self.held:
            for unit in self._units_of(piece):
                by_unit.setdefault(unit, []).append(piece)
        last, needed = max(by_unit, default=-1), dict[int, Piece]()
        for unit in units:
            if unit > last:
                break
            needed |= {id(piece): piece for piece in by_unit.get(unit, ())}
        return dataclasses.replace(self, held=tuple(needed.values()))

    def _units_of(self, piece: Piece) -> range:
        tensor = self.layout.by_name.get(piece.tensor)
        if tensor is None or not piece.data:
            return range(0)
        unit_words = self.layout.per_unit * self.layout.area
        first, last = (tensor.start + at // tensor.word for at in (piece.start, piece.stop - 1))
        return range(first // unit_words, last // unit_words + 1)

    def _bytes(self, spec: TensorSpec, start: int, stop: int) -> bytes:
        if self.recorder is not None:
            return self.recorder(spec, start, stop)
        return read(self.held, spec, start, stop, self.checkpoint.read)

    def read_planes(self, unit: int, first: int, stop: int) -> pa.Table:
        """Planes ``first … stop - 1`` of a unit; no byte of others is read."""
        layout = self.layout
        group, *_ = layout.unit_planes(unit)
        word = layout.word_of(group)
        planes = np.zeros((max(0, stop - first), layout.area * word), np.uint8)
        counts = np.zeros(len(planes), np.int32)
        runs: dict[str, list[tuple[int, int, int, int]]] = {}
        for plane in range(first, stop):
            for tensor, source, target, words in layout.pieces(plane):
                runs.setdefault(tensor.name, []).append((source, plane - first, target, words))
                counts[plane - first] = max(counts[plane - first], target + words)
        read: list[tuple[TensorSpec, int, bytes]] = []
        for name, parts in runs.items():
            # The parts of a tensor on neighbouring planes are neighbours in the source: one request for all.
            low, high = parts[0][0], parts[-1][0] + parts[-1][3]
            read.append((self._specs[name], low * word, self._bytes(self._specs[name], low * word, high * word)))
            data = np.frombuffer(read[-1][2], np.uint8)
            for source, plane, target, words in parts:
                piece = data[(source - low) * word : (source - low + words) * word]
                planes[plane, target * word : (target + words) * word] = piece
        n = len(planes)
        table = pa.table(
            {
                "unit": pa.array([unit] * n, pa.int64()),
                "plane": pa.array(range(first, stop), pa.int64()),
                "planes": pa.array([n] * n, pa.int32()),
                "dtype": pa.array([group.dtype] * n, pa.string()),
                "opaque": pa.array([group.opaque] * n, pa.bool_()),
                "word": pa.array([word] * n, pa.int8()),
                "exact_word": pa.array([layout.word] * n, pa.int8()),
                "height": pa.array([layout.side] * n, pa.int32()),
                "width": pa.array([layout.side] * n, pa.int32()),
                "count": pa.array(counts, pa.int32()),
                "bits": _rows_of(planes),
            }
        )
        if self.frame is not None:
            sketch = unit_sums(self.checkpoint, self.frame, read)
            table = with_arrays(table, "sketch", [sketch, *[b""] * (n - 1)][:n])
        if self.parent is None:
            return table
        from storage.lineage import contexts

        pairs = list(contexts(layout, self.parent, first, stop))
        table = with_arrays(table, "parent", [words for words, _ in pairs])
        return with_arrays(table, "before", [b"" if before is None else before for _, before in pairs])


def _rows_of(planes: npt.NDArray[np.uint8]) -> pa.Array:
    """The rows of a matrix as binary values, not copied."""
    offsets = np.arange(len(planes) + 1, dtype=np.int32) * planes.shape[1]
    return pa.Array.from_buffers(pa.binary(), len(planes), [None, pa.py_buffer(offsets), pa.py_buffer(planes)])
