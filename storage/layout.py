"""Where each tensor of a checkpoint lies among the planes of its archive: pure arithmetic, the same on every machine.

Tensors of one dtype form a group. Inside a group they are laid end to end, large ones beginning on a row border (so
that no scale spans two tensors), and the group begins on the border of a unit. Small tensors and dtypes without lossy
levels go to opaque groups, which are exact at every level.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from operators.floats import dtype_info

SMALL = 8192
"""Tensors of fewer values are opaque: they are a thousandth of a model and it is sensitive to them (norms, biases)."""


@dataclass(frozen=True)
class Placement:
    """One tensor's place.

    Parameters
    ----------
    name, dtype, shape: as archived (a sampled tensor has fewer leading rows than its source).
    kind: embedding, attention, mlp, norm, head or other.
    start: global position of its first word; plane ``start // side²``.
    words: how many words it takes (8-byte dtypes take two a value).
    opaque: exact at every level.
    blocks: block format of a quantized tensor of a GGUF file, kept as the bytes (``U8``) it is; empty for others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    start: int
    words: int
    opaque: bool
    blocks: str = ""

    @property
    def word(self) -> int:
        """Bytes of a word."""
        return min(dtype_info(self.dtype).width, 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as archived."""
        return self.words * self.word


@dataclass(frozen=True)
class Group:
    """Planes ``first … first + planes - 1``, all of one dtype."""

    dtype: str
    opaque: bool
    first: int
    planes: int


@dataclass(frozen=True)
class Layout:
    """All placements of an archive, in order of position.

    Parameters
    ----------
    side: values on an edge of a plane.
    per_unit: planes in a unit; a unit is one shard of every level array.
    """

    side: int
    per_unit: int
    placements: tuple[Placement, ...]
    groups: tuple[Group, ...]

    @property
    def area(self) -> int:
        """Words in a plane."""
        return self.side * self.side

    @property
    def planes(self) -> int:
        """Length of the level arrays, gaps before unit borders included."""
        return self.groups[-1].first + self.groups[-1].planes if self.groups else 0

    @property
    def units(self) -> int:
        """Number of units."""
        return -(-self.planes // self.per_unit)

    @staticmethod
    def word_of(group: Group) -> int:
        """Bytes of a source word of the group."""
        return min(dtype_info(group.dtype).width, 4)

    @property
    def word(self) -> int:
        """Bytes of an element of the ``exact`` array: the widest word among the groups."""
        return max(map(self.word_of, self.groups), default=1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as archived."""
        return sum(p.nbytes for p in self.placements)

    @cached_property
    def _starts(self) -> list[int]:
        return [p.start for p in self.placements]

    @cached_property
    def by_name(self) -> dict[str, Placement]:
        """Placements by tensor name."""
        return {p.name: p for p in self.placements}

    def unit_planes(self, unit: int) -> tuple[Group, int, int]:
        """The group of a unit and its planes ``first, stop``."""
        first = unit * self.per_unit
        group = next(g for g in reversed(self.groups) if g.first <= first)
        return group, first, min(first + self.per_unit, group.first + group.planes)

    def pieces(self, plane: int) -> Iterator[tuple[Placement, int, int, int]]:
        """What lies on a plane: (tensor, first word in the tensor, first word on the plane, words)."""
        low, high = plane * self.area, (plane + 1) * self.area
        for tensor in islice(self.placements, max(0, bisect_right(self._starts, low) - 1), None):
            if tensor.start >= high:
                return
            a, b = max(low, tensor.start), min(high, tensor.start + tensor.words)
            if a < b:
                yield tensor, a - tensor.start, a - low, b - a

    def table(self) -> pa.Table:
        """The table of tensors as stored in ``tensors.parquet``; ``blocks`` where a tensor has any."""
        blocks = [p.blocks for p in self.placements]
        more = {"blocks": pa.array(blocks, pa.string())} if any(blocks) else {}
        return pa.table(
            {
                "name": pa.array([p.name for p in self.placements], pa.string()),
                "kind": pa.array([p.kind for p in self.placements], pa.string()),
                "dtype": pa.array([p.dtype for p in self.placements], pa.string()),
                "shape": pa.array([list(p.shape) for p in self.placements], pa.list_(pa.int64())),
                "start": pa.array([p.start for p in self.placements], pa.int64()),
                "words": pa.array([p.words for p in self.placements], pa.int64()),
                "opaque": pa.array([p.opaque for p in self.placements], pa.bool_()),
                **more,
            }
        )


def place(tensors: pa.Table, side: int, per_unit: int) -> Layout:
    """Lay out a sampled table of tensors (``name``, ``kind``, ``dtype``, ``shape``, ``keep``; maybe ``blocks``)."""
    rows = tensors.to_pylist()
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise HilbertflowError("two tensors have the same name", remedy="rename one in the source")
    grouped: dict[tuple[bool, str], list[tuple[str, str, tuple[int, ...], str]]] = {}
    for row in rows:
        shape = (row["keep"], *row["shape"][1:]) if row["shape"] else ()
        size = int(np.prod(shape, dtype=np.int64))
        opaque = not dtype_info(row["dtype"]).lossy or size < SMALL
        grouped.setdefault((opaque, row["dtype"]), []).append((row["name"], row["kind"], shape, row.get("blocks", "")))
    area, placements, groups, plane = side * side, [], [], 0
    for (opaque, dtype), members in sorted(grouped.items()):
        plane = -(-plane // per_unit) * per_unit
        position = first = plane * area
        for name, kind, shape, blocks in members:
            align = 1 if opaque else side
            position = -(-position // align) * align
            words = int(np.prod(shape, dtype=np.int64)) * max(1, dtype_info(dtype).width // 4)
            placements.append(Placement(name, dtype, shape, kind, position, words, opaque, blocks))
            position += words
        count = -(-(position - first) // area)
        if count:
            groups.append(Group(dtype, opaque, plane, count))
        plane += count
    return Layout(side, per_unit, tuple(placements), tuple(groups))


def from_table(table: pa.Table, side: int, per_unit: int) -> Layout:
    """The layout that :meth:`Layout.table` describes."""
    placements = tuple(
        Placement(r["name"], r["dtype"], tuple(r["shape"]), r["kind"], r["start"], r["words"], r["opaque"],
                  r.get("blocks", ""))
        for r in table.to_pylist()
    )  # fmt: skip
    groups: list[Group] = []
    area = side * side
    for p in placements:
        stop = -(-(p.start + p.words) // area)
        if groups and (groups[-1].dtype, groups[-1].opaque) == (p.dtype, p.opaque):
            groups[-1] = Group(p.dtype, p.opaque, groups[-1].first, max(groups[-1].planes, stop - groups[-1].first))
        elif p.words:
            groups.append(Group(p.dtype, p.opaque, p.start // area, stop - p.start // area))
    return Layout(side, per_unit, placements, tuple(groups))
