"""Planes of a model in order: whole units fetched one ahead, their planes decoded side by side on the cores there are.

Zarr reads what is less than a unit; a whole one is fetched as the objects that it is, which spares half of the time.
The objects of a unit are asked for at once, and its planes land in one array, so that no thread waits for memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from operators.scratch import scratch
from storage.codecs import PlaneCodec
from storage.shard import unpack, unsealed
from storage.spec import TOGETHER

if TYPE_CHECKING:
    from storage.handle import Level
    from storage.layout import Group
    from storage.model import ModelArchive

Plane = npt.NDArray[Any]
_T = TypeVar("_T")
Decode = Callable[[int, str | None], Plane]
"""The i-th chunk of a span; with a name, in the thread's work array of that name."""
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
        array, codes = _fetched(handle, ("exact", "scales"), span)
        word = f"u{handle.layout.word_of(span.group)}"

        def decode(at: int) -> tuple[int, str, Plane, Plane]:
            symbols = array.result()(at, None).astype(word, copy=False).reshape(-1)
            return span.start + at, span.group.dtype, symbols, loaded(codes.result()(at, None))

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


@lru_cache(maxsize=1)
def _fetching() -> ThreadPoolExecutor:
    """Threads that wait for objects."""
    return ThreadPoolExecutor(4, "objects")


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
    opaque, lossy = span.group.opaque, level != "exact" and not span.group.opaque
    names = [] if opaque else ["scales", *(f"level{k}" for k in range(depth))]
    arrays = _fetched(handle, names if lossy else (*names, "exact"), span)
    kind = np.float32 if lossy else np.dtype(f"<u{handle.layout.word_of(span.group)}")
    out: Plane = np.empty((span.stop - span.start, handle.layout.area), kind)

    def decode(at: int) -> tuple[int, Plane]:
        planes = [array.result()(at, f"plane{i}") for i, array in enumerate(arrays)]
        codes = None if opaque else loaded(planes.pop(0))
        return span.start + at, _plane(handle, span, level, planes, codes, at, out[at])

    return _side_by_side(decode, span)


def _plane(
    handle: ModelArchive, span: Span, level: Level, planes: list[Plane], codes: Plane | None, at: int, out: Plane
) -> Plane:
    """Fill ``out`` (side²,) with the words or values of a plane; returns it."""
    group, ladder, square = span.group, handle.ladder, (handle.layout.side, handle.layout.side)
    if codes is None:
        out[:] = from_layout(planes.pop().reshape(-1), ladder.layout)
    elif level != "exact":
        ladder.values(planes, codes, group.dtype, out.reshape(square))
        return out
    else:
        residual = planes.pop()
        ladder.bits(planes, codes, residual, group.dtype, out.reshape(square))
    if google_crc32c.value(out.tobytes()) != handle.checksums[span.start + at][0]:
        raise HilbertflowError(
            f"plane {span.start + at} does not decode to its source's bytes", where=handle.url,
            remedy="`hilbertflow verify` names damaged objects",
        )  # fmt: skip
    return out


def _fetched(handle: ModelArchive, names: Sequence[str], span: Span) -> list[Future[Decode]]:
    """The chunks of some arrays for a span, on their way, at once: an object store takes its time for each."""
    for name in names:
        handle.array(name)  # what zarr.json says is read once, and here
    return [_fetching().submit(_fetch, handle, name, span) for name in names]


def _fetch(handle: ModelArchive, name: str, span: Span) -> Decode:
    """Get the chunks of an array for a span; gives what decodes the i-th of them."""
    array: Any = handle.array(name)
    shape, dtype = array.chunks[1:], array.dtype.newbyteorder("=")
    key = "/".join((name, "c", str(span.unit), *("0" for _ in shape)))
    if not span.whole or handle.may_lack(key):  # Zarr knows what to make of an object that is not there
        rows = handle.part(name, slice(span.start, span.stop))
        return lambda at, _: np.asarray(rows[at])
    with handle.damage(name, span.start, span.stop):
        data = handle.place.read(key)
        if name in TOGETHER:
            coder = _codec(array.metadata.codecs).coder()
            unit = coder.decode(unsealed(data), array.chunks, dtype)
            return lambda at, _: unit[at]
        chunks = unpack(data, handle.attributes["per_unit"])
    coder = _codec(_sharding(array).codecs).coder()

    def decode(at: int, keep: str | None) -> Plane:
        with handle.damage(name, span.start + at, span.start + at + 1):
            if (chunk := chunks[at]) is None:
                raise ValueError("the chunk is missing")
            return coder.decode(chunk, shape, dtype, None if keep is None else scratch(keep, shape, dtype))

    return decode


def _sharding(array: Any) -> ShardingCodec:
    (outer, *_) = array.metadata.codecs
    if not isinstance(outer, ShardingCodec):
        raise HilbertflowError("has codecs that no archive of ours has", where=str(array.store_path))
    return outer


def _codec(codecs: Sequence[Any]) -> PlaneCodec:
    if not isinstance(codecs[0], PlaneCodec):
        raise HilbertflowError(f"has the codec {codecs[0]}, which no archive of ours has", where="zarr.json")
    return codecs[0]
