"""A checkpoint archived as differences to its parent: its words need the parent's, back to one that stands alone.

A child has the exact level only. Its lossy levels are its parent's: what a step of training moves lies far below what
they leave out, and `info` tells how far. Tensors that the parent has not, or in another shape or dtype, are coded
against zeros. The chain is as deep as ``max_chain`` of the recipes allowed; each archive in it is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from operators import delta
from operators.errors import HilbertflowError
from operators.floats import to_float32
from storage import manifest as manifests
from storage import plane_reader
from storage.fs import Location
from storage.layout import Layout, Placement

if TYPE_CHECKING:
    from storage.handle import Level
    from storage.model import ModelArchive

Words = npt.NDArray[Any]
Pair = tuple[Words, Words | None]  # a plane's words in an archive, and in that archive's own parent
MAX_CHAIN = 10


@dataclass(frozen=True)
class Link:
    """What a child's attributes say of its parent.

    Parameters
    ----------
    url: where it lay when the child was archived; one of its name beside the child goes before.
    identity: of its source and recipe: another archive of the name is refused.
    depth: archives from the child back to one that stands alone, 1 or more.
    """

    url: str
    identity: str
    depth: int


def link(parent: ModelArchive, max_chain: int) -> tuple[ModelArchive, Link]:
    """Whom a child of ``parent`` is coded against: it, or where the chain would grow too long, the chain's first."""
    if "exact" not in parent.levels:
        raise HilbertflowError("has no exact level to code a child against", where=parent.url,
                               remedy="archive it with levels that end in exact")  # fmt: skip
    while parent.link is not None and parent.link.depth >= max_chain:
        parent = parent.require_parent()
        while parent.link is not None:
            parent = parent.require_parent()
    depth = 1 if parent.link is None else parent.link.depth + 1
    return parent, Link(parent.url, parent.fingerprint, depth)


def resolve(handle: ModelArchive, said: Link) -> ModelArchive:
    """Open the parent of ``handle``: the archive of its name in the same root, or where it lay."""
    from storage.model import ModelArchive

    beside = Location(handle.place.url.rsplit("/", 1)[0]).join(said.url.rsplit("/", 1)[-1])
    for url in dict.fromkeys((beside.url, said.url)):
        place = Location(url, handle.place.traffic)  # what is read of the parent counts as read for the child
        if place.exists(manifests.NAME):
            found = ModelArchive(place, manifests.load(place))
            if found.fingerprint == said.identity:
                return found
    raise HilbertflowError(
        f"its parent {said.url} is not there, or is another archive now", where=handle.url,
        remedy="put the parent back: this archive holds only what differs from it",
    )  # fmt: skip


def read(handle: ModelArchive, first: int, stop: int, level: Level) -> Iterator[tuple[int, Words]]:
    """Planes of a child, as :func:`storage.plane_reader.read` gives those of others."""
    if level == "exact":
        for plane, words, _ in pairs(handle, first, stop):
            yield plane, words
        return
    parent, start = handle.require_parent(), first
    while start < stop:
        group, _, last = handle.layout.unit_planes(start // handle.layout.per_unit)
        end = min(stop, last)
        if group.opaque:
            yield from read(handle, start, end, "exact")
        elif handle.layout.placements == parent.layout.placements and handle.layout.side == parent.layout.side:
            yield from parent.words(start, end, level)
        else:
            for plane in range(start, end):
                yield plane, _values(handle, parent, plane, level)
        start = max(end, (start // handle.layout.per_unit + 1) * handle.layout.per_unit)


def pairs(handle: ModelArchive, first: int, stop: int) -> Iterator[tuple[int, Words, Words | None]]:
    """Planes of any model: number, exact words in source order, and those of its parent where it has one."""
    if handle.link is None:
        for plane, words in plane_reader.read(handle, first, stop, "exact"):
            yield plane, words, None
        return
    side = handle.layout.side
    context = contexts(handle.layout, handle.require_parent(), first, stop)
    for (plane, dtype, symbols, codes), (parent, before) in zip(
        plane_reader.symbols(handle, first, stop), context, strict=True
    ):
        square = (side, side)
        older = None if before is None else before.reshape(square)
        words = delta.decode(symbols.reshape(square), codes, parent.reshape(square), older, dtype).reshape(-1)
        if google_crc32c.value(words.tobytes()) != handle.checksums[plane][0]:
            raise HilbertflowError(
                f"plane {plane} does not decode to its source's bytes", where=handle.url,
                remedy="`hilbertflow verify` names damaged objects",
            )  # fmt: skip
        yield plane, words, parent


def contexts(layout: Layout, parent: ModelArchive, first: int, stop: int) -> Iterator[Pair]:
    """For the planes of a child's layout, the parent's words of the same tensors, and its own parent's; else zeros."""
    if layout.placements == parent.layout.placements and layout.side == parent.layout.side:
        for _, words, before in pairs(parent, first, stop):
            yield words, before
        return
    planes = _Planes(parent)
    start = first
    while start < stop:
        group, _, last = layout.unit_planes(start // layout.per_unit)
        for plane in range(start, min(stop, last)):
            words = np.zeros(layout.area, f"<u{layout.word_of(group)}")
            before = np.zeros_like(words) if parent.link is not None else None
            for tensor, source, target, count in layout.pieces(plane):
                twin = _twin(parent, tensor)
                if twin is not None:
                    planes.fill(twin.start + source, count, words[target:], None if before is None else before[target:])
            yield words, before
        start = max(min(stop, last), (start // layout.per_unit + 1) * layout.per_unit)


def _values(handle: ModelArchive, parent: ModelArchive, plane: int, level: Level) -> npt.NDArray[np.float32]:
    """A lossy plane whose tensors lie elsewhere in the parent, or not at all: then it is exact."""
    out = np.zeros(handle.layout.area, np.float32)
    for tensor, source, target, count in handle.layout.pieces(plane):
        if _twin(parent, tensor) is not None:
            parts = list(parent[tensor.name].chunks(level, source, source + count))
            out[target : target + count] = np.concatenate(parts)
        else:
            ((_, words),) = read(handle, plane, plane + 1, "exact")
            out[target : target + count] = to_float32(words, tensor.dtype)[target : target + count]
    return out


def _twin(parent: ModelArchive, tensor: Placement) -> Placement | None:
    twin = parent.layout.by_name.get(tensor.name)
    same = twin is not None and (twin.dtype, twin.shape, twin.opaque) == (tensor.dtype, tensor.shape, tensor.opaque)
    return twin if same else None


class _Planes:
    """Single planes of a parent by position, the last few kept: tensors come in nearly the parent's order."""

    def __init__(self, parent: ModelArchive, keep: int = 8) -> None:
        self._parent, self._keep = parent, keep
        self._kept: dict[int, Pair] = {}

    def fill(self, position: int, count: int, words: Words, before: Words | None) -> None:
        """Copy ``count`` words from a position of the parent to the front of ``words`` and ``before``."""
        area, done = self._parent.layout.area, 0
        while done < count:
            plane, offset = divmod(position + done, area)
            part = min(count - done, area - offset)
            own, older = self._plane(plane)
            words[done : done + part] = own[offset : offset + part]
            if before is not None and older is not None:
                before[done : done + part] = older[offset : offset + part]
            done += part

    def _plane(self, plane: int) -> Pair:
        if plane not in self._kept:
            ((_, words, before),) = pairs(self._parent, plane, plane + 1)
            if len(self._kept) == self._keep:
                del self._kept[next(iter(self._kept))]
            self._kept[plane] = words, before
        return self._kept[plane]
