"""Planes of a model in order: whole units fetched one ahead, their planes decoded side by side on the cores there are.

Zarr reads what is less than a unit; a whole one is fetched as the objects that it is, which spares half of the time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt
from zarr.codecs import ShardingCodec

from operators.errors import HilbertflowError
from operators.hilbert_map import from_layout
from operators.scales import loaded
from storage.codecs import PlaneCodec
from storage.shard import unpack

if TYPE_CHECKING:
    from storage.handle import Level
    from storage.layout import Group
    from storage.model import ModelArchive

Plane = npt.NDArray[Any]
_T = TypeVar("_T")
AHEAD = 2
"""Units under way: one is handed out while the next is fetched and decoded."""


@dataclass(frozen=True)
class Span:
    """Planes ``start … stop - 1`` of one unit; ``whole`` where that is all it has."""

    group: Group
    unit: int
    start: int
    stop: int
    whole: bool


def read(handle: ModelArchive, first: int, stop: int, level: Level) -> Iterator[tuple[int, Plane]]:
    """Planes ``first … stop - 1`` in order: number, and words or float32 values in source order.

    Memory is that of two units. Raises HilbertflowError that names the array or the plane that is damaged.
    """
    return _ahead(_start(handle, span, level) for span in _spans(handle, first, stop))


def symbols(handle: ModelArchive, first: int, stop: int) -> Iterator[tuple[int, str, Plane, Plane]]:
    """Planes of a child as stored: number, dtype, symbols (side²,) in the group's words, codes of rows (2·side,)."""

    def start(span: Span) -> list[Callable[[], tuple[int, str, Plane, Plane]]]:
        array, word = _fetch(handle, "exact", span), f"u{handle.layout.word_of(span.group)}"
        codes = loaded(handle.part("scales", slice(span.start, span.stop)))

        def decode(at: int) -> tuple[int, str, Plane, Plane]:
            return span.start + at, span.group.dtype, array(at).astype(word, copy=False).reshape(-1), codes[at]

        return _side_by_side(decode, span)

    return _ahead(start(span) for span in _spans(handle, first, stop))


def _ahead(started: Iterator[list[Callable[[], _T]]]) -> Iterator[_T]:
    """What is started, in order, one unit ahead of what is handed out."""
    under_way: deque[list[Callable[[], _T]]] = deque()
    for planes in started:
        under_way.append(planes)
        if len(under_way) == AHEAD:
            for plane in under_way.popleft():
                yield plane()
    for planes in under_way:
        for plane in planes:
            yield plane()


def _side_by_side(decode: Callable[[int], _T], span: Span) -> list[Callable[[], _T]]:
    futures: list[Future[_T]] = [_pool().submit(decode, at) for at in range(span.stop - span.start)]
    return [future.result for future in futures]


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """Threads for the kernels, which release the interpreter's lock; Ray says by this variable how many are ours."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return ThreadPoolExecutor(max(1, min(cores, int(told))) if told.isdigit() else cores, "planes")


def _spans(handle: ModelArchive, first: int, stop: int) -> Iterator[Span]:
    size, start = handle.attributes["per_unit"], first
    while start < stop:
        group, begin, last = handle.layout.unit_planes(start // size)
        end = min(stop, last)
        if start < end:
            yield Span(group, start // size, start, end, (start, end) == (begin, last))
        start = max(end, begin + size) if end == last else end


def _start(handle: ModelArchive, span: Span, level: Level) -> list[Callable[[], tuple[int, Plane]]]:
    """Fetch what a span needs and begin to decode it."""
    depth = handle.ladder.refinements + 1 if level == "exact" else int(level) + 1
    names = [] if span.group.opaque else [f"level{k}" for k in range(depth)]
    if span.group.opaque or level == "exact":
        names.append("exact")
    arrays = [_fetch(handle, name, span) for name in names]
    codes = None if span.group.opaque else loaded(handle.part("scales", slice(span.start, span.stop)))

    def decode(at: int) -> tuple[int, Plane]:
        planes = [array(at) for array in arrays]
        return span.start + at, _plane(handle, span, level, planes, None if codes is None else codes[at], at)

    return _side_by_side(decode, span)


def _plane(handle: ModelArchive, span: Span, level: Level, planes: list[Plane], codes: Plane | None, at: int) -> Plane:
    group, ladder = span.group, handle.ladder
    if codes is not None and level != "exact":
        return ladder.values(planes, codes, group.dtype).reshape(-1)
    residual = planes.pop().astype(f"u{handle.layout.word_of(group)}", copy=False)
    if codes is None:
        bits = from_layout(residual.reshape(-1), ladder.layout)
    else:
        bits = ladder.bits(planes, codes, residual, group.dtype)
    if google_crc32c.value(bits.tobytes()) != handle.checksums[span.start + at][0]:
        raise HilbertflowError(
            f"plane {span.start + at} does not decode to its source's bytes", where=handle.url,
            remedy="`hilbertflow verify` names damaged objects",
        )  # fmt: skip
    return bits


def _fetch(handle: ModelArchive, name: str, span: Span) -> Callable[[int], Plane]:
    """Get the chunks of an array for a span; gives what decodes the i-th of them."""
    if not span.whole:
        rows = handle.part(name, slice(span.start, span.stop))
        return lambda at: np.asarray(rows[at])
    array = handle.array(name)
    coder, shape, dtype = _codec(array).coder(), array.chunks[1:], array.dtype.newbyteorder("=")
    with handle.damage(name, span.start, span.stop):
        chunks = unpack(handle.place.read(f"{name}/c/{span.unit}/0/0"), handle.attributes["per_unit"])

    def decode(at: int) -> Plane:
        with handle.damage(name, span.start + at, span.start + at + 1):
            if (chunk := chunks[at]) is None:
                raise ValueError("the chunk is missing")
            return coder.decode(chunk, shape, dtype)

    return decode


def _codec(array: Any) -> PlaneCodec:
    (outer,) = array.metadata.codecs
    if not isinstance(outer, ShardingCodec) or not isinstance(outer.codecs[0], PlaneCodec):
        raise HilbertflowError("has codecs that no archive of ours has", where=str(array.store_path))
    return outer.codecs[0]
