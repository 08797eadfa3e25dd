"""Planes of a model in order: whole units fetched one ahead, their planes decoded side by side on the cores there are.

Zarr reads what is less than a unit; a whole one is fetched as the objects that it is, which spares half of the time.
The objects of a unit are asked for at once, and its planes land in one array, so that no thread waits for memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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
from operators.threads import thread_pool
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
"""Codes and lattice steps of rows: (planes, side) each."""
_T = TypeVar("_T")
AHEAD = 2
"""Units under way: one is handed out while the next is fetched and decoded."""
AT_ONCE = 4
"""Planes that a thread decodes before it looks for the interpreter's lock again, which may be a wait."""


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

    def start(span: Span) -> list[Future[list[tuple[int, str, Plane, Plane]]]]:
        array, codes = _fetched(handle, ("exact", "scales"), span)
        word = f"u{handle.layout.word_of(span.group)}"

        def decode(some: range) -> list[tuple[int, str, Plane, Plane]]:
            return [(span.start + at, span.group.dtype,
                     array.result().decode(at, None).astype(word, copy=False).reshape(-1),
                     loaded(codes.result().decode(at, None))) for at in some]  # fmt: skip

        return _side_by_side(decode, span)

    return _ahead(start(span) for span in _spans(handle, first, stop))


def _ahead(started: Iterator[list[Future[list[_T]]]]) -> Iterator[_T]:
    """What is started, in order, one unit ahead of what is handed out."""
    under_way: deque[list[Future[list[_T]]]] = deque()
    for unit in started:
        under_way.append(unit)
        if len(under_way) == AHEAD:
            for some in under_way.popleft():
                yield from some.result()
    for unit in under_way:
        for some in unit:
            yield from some.result()


def _side_by_side(decode: Callable[[range], list[_T]], span: Span) -> list[Future[list[_T]]]:
    count = span.stop - span.start
    some = max(1, min(AT_ONCE, count // _threads()))  # few planes are for all threads
    pool = thread_pool("planes", _threads())
    return [pool.submit(decode, range(at, min(at + some, count))) for at in range(0, count, some)]


@lru_cache(maxsize=1)
def _threads() -> int:
    """For the kernels; Ray says by this variable how many cores are ours."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(told))) if told.isdigit() else cores


def _spans(handle: ModelArchive, first: int, stop: int) -> Iterator[Span]:
    size, start = handle.attributes["per_unit"], first
    while start < stop:
        group, begin, last = handle.layout.unit_planes(start // size)
        end = min(stop, last)
        if start < end:
            yield Span(group, start // size, start, end, (start, end) == (begin, last))
        start = max(end, begin + size) if end == last else end


def _start(handle: ModelArchive, span: Span, level: Level) -> list[Future[list[tuple[int, Plane]]]]:
    """Fetch what a span needs and begin to decode it."""
    depth = handle.ladder.refinements + 1 if level == "exact" else int(level) + 1
    opaque, lossy = span.group.opaque, level != "exact" and not span.group.opaque
    names = [] if opaque else [f"level{k}" for k in range(depth)]
    arrays = _fetched(handle, names if lossy else (*names, "exact"), span)
    scales = None if opaque else _scales(handle, span)
    kind = np.float32 if lossy else np.dtype(f"<u{handle.layout.word_of(span.group)}")
    side = handle.layout.side
    out: Plane = np.empty((span.stop - span.start, side, side), kind)

    def decode(some: range) -> list[tuple[int, Plane]]:
        found = [array.result() for array in arrays]
        rows = None if scales is None else scales.result()
        done = _together(span, found, rows, handle.ladder, some, out) if level == "exact" else ()
        for at in some:
            if at not in done:
                _plane(handle, span, level, found, None if rows is None else rows[0][at], at, out[at])
            if not lossy:
                _check(handle, span.start + at, out[at])
        return [(span.start + at, out[at].reshape(-1)) for at in some]

    return _side_by_side(decode, span)


def _plane(
    handle: ModelArchive, span: Span, level: Level, found: list[Fetched], codes: Codes | None, at: int, out: Plane
) -> None:
    """Fill ``out`` (side, side) with the words or values of a plane step by step; ``codes`` are those of its rows."""
    planes = [array.decode(at, f"plane{i}") for i, array in enumerate(found)]
    if codes is None:
        out[:] = from_layout(planes.pop().reshape(-1), handle.ladder.layout).reshape(out.shape)
    elif level != "exact":
        handle.ladder.values(planes, codes, span.group.dtype, out)
    else:
        handle.ladder.bits(planes[:-1], codes, planes[-1], span.group.dtype, out)


def _check(handle: ModelArchive, plane: int, words: Plane) -> None:
    if google_crc32c.value(words.tobytes()) != handle.checksums[plane][0]:
        raise HilbertflowError(
            f"plane {plane} does not decode to its source's bytes", where=handle.url,
            remedy="`hilbertflow verify` names damaged objects",
        )  # fmt: skip


def _together(
    span: Span, found: Sequence[Fetched], rows: Rows | None, ladder: Ladder | VectorLadder, some: range, out: Plane
) -> frozenset[int]:
    """The planes that could be decoded in one call. What is damaged is left to the longer way, which names it."""
    if rows is None or not isinstance(ladder, Ladder) or not all(array.chunks for array in found):
        return frozenset()
    codes, steps = rows
    chunks, limits = [[array.chunks[at] for array in found] for at in some], [array.limit for array in found]
    part = slice(some.start, some.stop)
    done = plane_bits.decode(chunks, limits, codes[part], steps[part], span.group.dtype, ladder, out[part])
    return frozenset(np.add(some.start, np.flatnonzero(done)).tolist())


def _scales(handle: ModelArchive, span: Span) -> Future[Rows]:
    """Codes and lattice steps of the rows, (planes, side) each, on their way."""
    handle.array("scales")  # as for the others

    def get() -> Rows:
        fetched = _fetch(handle, "scales", span)
        codes = loaded(np.stack([fetched.decode(at, None) for at in range(span.stop - span.start)]))
        return codes, row_steps(codes, handle.ladder.step)

    return thread_pool("objects", 4).submit(get)


def _fetched(handle: ModelArchive, names: Sequence[str], span: Span) -> list[Future[Fetched]]:
    """The chunks of some arrays for a span, on their way, at once: an object store takes its time for each."""
    for name in names:
        handle.array(name)  # what zarr.json says is read once, and here
    return [thread_pool("objects", 4).submit(_fetch, handle, name, span) for name in names]


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
