"""A checkpoint in the archive: tensors that are read by name, by rows, at any level."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from operators import plane_index
from operators.codetree import CodeTree
from operators.decode import Ladder
from operators.errors import HilbertflowError
from operators.floats import round_to, to_float32
from operators.vector_code import VectorLadder
from storage import code_arrays, lineage, plane_reader
from storage.gguf import DEQUANTIZED, block_size, dequantized, values_shape
from storage.handle import Archive, Level, read_table
from storage.layout import Layout, Placement, from_table
from storage.lineage import Link
from storage.spec import TOGETHER

NUMPY: dict[str, npt.DTypeLike] = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?",
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    **{f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}  # fmt: skip
"""NumPy dtype of each format."""


class ModelArchive(Archive):
    """Tensors by name: ``archive["encoder.layer.0.attention.self.query.weight"].read(level=0)``."""

    @cached_property
    def layout(self) -> Layout:
        """Where the tensors lie."""
        table = read_table(self.place, "tensors.parquet", self.head("tensors.parquet"))
        return from_table(table, self.attributes["side"], self.attributes["per_unit"])

    @cached_property
    def ladder(self) -> Ladder | VectorLadder:
        """How its levels were made."""
        said = self.attributes.get("vector")
        if said is None:
            return Ladder(**self.attributes["ladder"])
        held = code_arrays.load(self.heads(said["objects"]), self.url)
        return VectorLadder(CodeTree.from_arrays(held), said["step"])

    @cached_property
    def link(self) -> Link | None:
        """What is said of the parent whose differences this archive holds; None where it stands alone."""
        said = self.attributes.get("parent")
        return None if said is None else Link(**said)

    @cached_property
    def parent(self) -> ModelArchive | None:
        """The parent, opened; what is read of it counts in :attr:`bytes_read`."""
        return None if self.link is None else lineage.resolve(self, self.link)

    def require_parent(self) -> ModelArchive:
        """The parent of an archive that has one."""
        assert self.parent is not None
        return self.parent

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in order of position."""
        return tuple(p.name for p in self.layout.placements)

    def __len__(self) -> int:
        return len(self.layout.placements)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.layout.by_name:
            near = difflib.get_close_matches(name, self.names, n=1)
            raise HilbertflowError(
                f"no tensor {name!r}", where=self.url,
                remedy=f"did you mean {near[0]!r}?" if near else "`hilbertflow info --tensors` lists them",
            )  # fmt: skip
        return Tensor(self, self.layout.by_name[name])

    @cached_property
    def checksums(self) -> dict[int, tuple[int, int]]:
        """By plane, the CRC-32C of its words and how many of its values are not padding."""
        table = read_table(self.place, "planes.parquet", self.head("planes.parquet"), ["plane", "crc", "count"])
        columns = table.to_pydict()
        return {p: (c, n) for p, c, n in zip(columns["plane"], columns["crc"], columns["count"], strict=True)}

    def may_lack(self, key: str) -> bool:
        """Opaque tensors have no scales and no means; a child has no codes of rows where it equals its parent."""
        name, _, chunk = key.partition("/c/")
        if name not in TOGETHER or not chunk:
            return super().may_lack(key)
        if self.link is not None and name == "scales":
            return True  # what it decodes to has a checksum of its own
        group, _, _ = self.layout.unit_planes(int(chunk.split("/")[0]))
        return group.opaque

    @property
    def counts(self) -> dict[int, int]:
        """By plane, how many of its values are not padding."""
        return {plane: count for plane, (_, count) in self.checksums.items()}

    def means(self, first: int, stop: int) -> tuple[npt.NDArray[np.float32], ...]:
        """The multi-level index of planes ``first … stop - 1``: (planes, 1), (planes, 4), (planes, 16), (planes, 64).

        Means of their runs in units of the plane's deviation (:mod:`operators.plane_index`); zeros of opaque planes.
        """
        return plane_index.levels(self.part("means", slice(first, stop)))

    def words(self, first: int, stop: int, level: Level) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Planes ``first … stop - 1`` in source order: their number and (side²,) words or float32 values.

        Opaque planes and the exact level give words of the group's width, checked against the checksum that was taken
        before encoding; other levels give float32.
        """
        read = plane_reader.read if self.link is None else lineage.read
        return read(self, first, stop, level)

    def pieces(self, level: Level) -> Iterator[tuple[Placement, npt.NDArray[Any]]]:
        """All tensors in order of position, in consecutive pieces of words or float32 values; each plane read once."""
        for stored, parts in groupby(self._stored(level), key=itemgetter(0)):
            place = seen(stored, level)
            if place is stored:
                yield from parts
            else:
                for values in dequantized((piece for _, piece in parts), stored.blocks):
                    yield place, values

    def _stored(self, level: Level) -> Iterator[tuple[Placement, npt.NDArray[Any]]]:
        placements = iter(self.layout.placements)
        tensor, area = next(placements, None), self.layout.area
        for group in self.layout.groups:
            for plane, values in self.words(group.first, group.first + group.planes, level):
                low, high = plane * area, (plane + 1) * area
                while tensor is not None and tensor.start < high:
                    begin, end = max(low, tensor.start), min(high, tensor.start + tensor.words)
                    if begin < end:
                        yield tensor, values[begin - low : end - low]
                    if tensor.start + tensor.words > high:
                        break
                    tensor = next(placements, None)


def seen(place: Placement, level: Level) -> Placement:
    """A tensor as it reads at a level: below the exact one, quantized blocks are the float32 values they stand for."""
    if level == "exact" or place.blocks not in DEQUANTIZED:
        return place
    shape = values_shape(place.shape, place.blocks)
    return replace(place, dtype="F32", shape=shape, words=prod(shape))


@dataclass(frozen=True)
class Tensor:
    """An array-like handle on one tensor; nothing is read until it is asked for."""

    archive: ModelArchive
    place: Placement

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as archived."""
        return self.place.shape

    @property
    def dtype(self) -> str:
        """Its dtype in the spelling of safetensors."""
        return self.place.dtype

    def __getitem__(self, rows: slice | int) -> npt.NDArray[Any]:
        """Leading-dimension rows at the exact level, or the finest there is."""
        picked = rows if isinstance(rows, slice) else slice(rows, rows + 1 or None)
        values = self.read(rows=picked)
        return values if isinstance(rows, slice) else values[0]

    def read(self, level: Level | None = None, rows: slice | None = None) -> npt.NDArray[Any]:
        """The tensor, or some leading rows (step 1), as an array.

        Level ``exact`` gives the source's dtype (bfloat16 and float8 through ``ml_dtypes``), other levels float32;
        without a level the finest one. Opaque tensors (small ones, integers) give their own dtype at every level, and
        quantized blocks of a GGUF file their bytes at level ``exact``, their values at others.
        """
        level = self.archive.check_level(self.archive.levels[-1] if level is None else level)
        place = seen(self.place, level)
        first, stop, shape = _rows(place, rows)
        per_row = place.words // max(1, place.shape[0]) if place.shape else place.words
        parts = list(self.chunks(level, first * per_row, stop * per_row))
        flat = np.concatenate(parts) if parts else np.empty(0, f"u{place.word}")
        if level != "exact" and not place.opaque:
            return flat.astype(np.float32, copy=False).reshape(shape)
        return flat.view(NUMPY[place.dtype]).reshape(shape)

    def as_bytes(self, level: Level = "exact") -> Iterator[bytes]:
        """The tensor in its own dtype as consecutive pieces; levels below exact are rounded to that dtype."""
        place = seen(self.place, level)
        for part in self.chunks(level, 0, place.words):
            lossy = level != "exact" and not place.opaque
            yield (round_to(part, place.dtype) if lossy else part).tobytes()

    def values(self, level: Level, most: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Consecutive pieces as float32, of all values or the first ``most``; for float dtypes only."""
        place = seen(self.place, level)
        for part in self.chunks(level, 0, place.words if most is None else most):
            yield part if part.dtype == np.float32 else to_float32(part, place.dtype)

    def chunks(self, level: Level, low: int, high: int) -> Iterator[npt.NDArray[Any]]:
        """Words or float32 values ``low … high - 1`` of the tensor, plane by plane."""
        if seen(self.place, level) is self.place:
            yield from self._words(level, low, high)
            return
        values, width = block_size(self.place.blocks)
        first, last = low // values, -(-high // values)
        at = first * values
        for part in dequantized(self._words(level, first * width, last * width), self.place.blocks):
            yield part[max(low - at, 0) : high - at]
            at += part.size

    def _words(self, level: Level, low: int, high: int) -> Iterator[npt.NDArray[Any]]:
        if low >= high:
            return
        area = self.archive.layout.area
        begin, end = self.place.start + low, self.place.start + high
        for plane, values in self.archive.words(begin // area, -(-end // area), level):
            base = plane * area
            yield values[max(begin - base, 0) : min(end - base, area)]


def _rows(place: Placement, rows: slice | None) -> tuple[int, int, tuple[int, ...]]:
    if rows is None or not place.shape:
        length = place.shape[0] if place.shape else 1
        return 0, length, place.shape
    start, stop, step = rows.indices(place.shape[0])
    if step != 1:
        raise HilbertflowError("rows are read with step 1", where=place.name)
    stop = max(start, stop)
    return start, stop, (stop - start, *place.shape[1:])
