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
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt
from zarr.codecs import ShardingCodec

from operators import plane_bits
from operators.coders import RansCoder
from operators.decode import Ladder
from operators.errors import HilbertflowError
from operators.hilbert_map import from_layout
from operators.scales import loaded, row_steps
from operators.scratch import scratch
from storage.codecs import PlaneCodec
from storage.shard import unpack, unsealed
from storage.spec import TOGETHER

if TYPE_CHECKING:
    from operators.scales import Codes
    from operators.vector_code import VectorLadder
    from storage.handle import Level
    from storage.layout import Group
    from storage.model import ModelArchive

Plane = npt.NDArray[Any]
Rows: TypeAlias = "tuple[Codes, npt.NDArray[np.float32]]"
"""Codes and lattice steps of rows: (planes, side) each, or (side,) of one plane."""
_T = TypeVar("_T")
AHEAD = 2
"""Units under way: one is handed out while the next is fetched and decoded."""


@dataclass(frozen=True)
class Fetched:
    """The chunks of an array for a span.

    Parameters
    ----------
    decode: gives the i-th; with a name, in the thread's work array of that name.
    chunks: as they were coded, where they are at hand.
    limit: the largest unsigned number of the array's dtype.
    """

    decode: Callable[[int, str | None], Plane]
    chunks: Sequence[bytes | None] = ()
    limit: int = 0


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
            symbols = array.result().decode(at, None).astype(word, copy=False).reshape(-1)
            return span.start + at, span.group.dtype, symbols, loaded(codes.result().decode(at, None))

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
    names = [] if opaque else [f"level{k}" for k in range(depth)]
    arrays = _fetched(handle, names if lossy else (*names, "exact"), span)
    scales = None if opaque else _scales(handle, span)
    kind = np.float32 if lossy else np.dtype(f"<u{handle.layout.word_of(span.group)}")
    out: Plane = np.empty((span.stop - span.start, handle.layout.area), kind)

    def decode(at: int) -> tuple[int, Plane]:
        found = [array.result() for array in arrays]
        rows = None if scales is None else _of_plane(scales.result(), at)
        return span.start + at, _plane(handle, span, level, found, rows, at, out[at])

    return _side_by_side(decode, span)


def _plane(
    handle: ModelArchive,
    span: Span,
    level: Level,
    found: list[Fetched],
    rows: Rows | None,
    at: int,
    out: Plane,
) -> Plane:
    """Fill ``out`` (side²,) with the words or values of a plane, ``rows`` its codes and steps; returns it."""
    ladder, square = handle.ladder, out.reshape(handle.layout.side, handle.layout.side)
    if rows is None or level != "exact" or not _in_one(span, found, rows, ladder, at, square):
        planes = [array.decode(at, f"plane{i}") for i, array in enumerate(found)]
        if rows is None:
            out[:] = from_layout(planes.pop().reshape(-1), ladder.layout)
        elif level != "exact":
            ladder.values(planes, rows[0], span.group.dtype, square)
            return out
        else:
            ladder.bits(planes[:-1], rows[0], planes[-1], span.group.dtype, square)
    if google_crc32c.value(out.tobytes()) != handle.checksums[span.start + at][0]:
        raise HilbertflowError(
            f"plane {span.start + at} does not decode to its source's bytes", where=handle.url,
            remedy="`hilbertflow verify` names damaged objects",
        )  # fmt: skip
    return out


def _in_one(
    span: Span, found: Sequence[Fetched], rows: Rows, ladder: Ladder | VectorLadder, at: int, out: Plane
) -> bool:
    """Whether the plane could be decoded in one call. What is damaged is left to the longer way, which names it."""
    if not isinstance(ladder, Ladder) or not all(array.chunks for array in found):
        return False
    chunks, limits = [array.chunks[at] for array in found], [array.limit for array in found]
    return plane_bits.decode(chunks, limits, *rows, span.group.dtype, ladder, out)


def _scales(handle: ModelArchive, span: Span) -> Future[Rows]:
    """Codes and lattice steps of the rows, (planes, side) each, on their way."""
    handle.array("scales")  # as for the others

    def get() -> Rows:
        fetched = _fetch(handle, "scales", span)
        codes = loaded(np.stack([fetched.decode(at, None) for at in range(span.stop - span.start)]))
        return codes, row_steps(codes, handle.ladder.step)

    return _fetching().submit(get)


def _of_plane(rows: Rows, at: int) -> Rows:
    codes, steps = rows
    return codes[at], steps[at]


def _fetched(handle: ModelArchive, names: Sequence[str], span: Span) -> list[Future[Fetched]]:
    """The chunks of some arrays for a span, on their way, at once: an object store takes its time for each."""
    for name in names:
        handle.array(name)  # what zarr.json says is read once, and here
    return [_fetching().submit(_fetch, handle, name, span) for name in names]


def _fetch(handle: ModelArchive, name: str, span: Span) -> Fetched:
    """Get the chunks of an array for a span."""
    array: Any = handle.array(name)
    shape, dtype = array.chunks[1:], array.dtype.newbyteorder("=")
    key = "/".join((name, "c", str(span.unit), *("0" for _ in shape)))
    if not span.whole or handle.may_lack(key):  # Zarr knows what to make of an object that is not there
        rows = handle.part(name, slice(span.start, span.stop))
        return Fetched(lambda at, _: np.asarray(rows[at]))
    with handle.damage(name, span.start, span.stop):
        data = handle.place.read(key)
        if name in TOGETHER:
            coder = _codec(array.metadata.codecs).coder()
            unit = coder.decode(unsealed(data), array.chunks, dtype)
            return Fetched(lambda at, _: unit[at])
        chunks = unpack(data, handle.attributes["per_unit"])
    coder = _codec(_sharding(array).codecs).coder()

    def decode(at: int, keep: str | None) -> Plane:
        with handle.damage(name, span.start + at, span.start + at + 1):
            if (chunk := chunks[at]) is None:
                raise ValueError("the chunk is missing")
            return coder.decode(chunk, shape, dtype, None if keep is None else scratch(keep, shape, dtype))

    own = isinstance(coder, RansCoder) and not coder.tables
    return Fetched(decode, chunks if own else (), (1 << 8 * dtype.itemsize) - 1)


def _sharding(array: Any) -> ShardingCodec:
    (outer, *_) = array.metadata.codecs
    if not isinstance(outer, ShardingCodec):
        raise HilbertflowError("has codecs that no archive of ours has", where=str(array.store_path))
    return outer


def _codec(codecs: Sequence[Any]) -> PlaneCodec:
    if not isinstance(codecs[0], PlaneCodec):
        raise HilbertflowError(f"has the codec {codecs[0]}, which no archive of ours has", where="zarr.json")
    return codecs[0]
