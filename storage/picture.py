"""A tensor as pictures: one plane a picture, side² consecutive values along the Hilbert curve, grey is zero."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from operators.hilbert_map import to_layout
from operators.video import write_mp4, write_png
from storage.handle import Level
from storage.model import NUMPY, Tensor

MAX_FRAMES = 2048
MAX_CHAIN_FRAMES = 256
MAX_TILES = 64
GAP = 4
CLEAR = 255
"""What is no value, between planes and behind the last one: transparent, so that it is dark on a dark page."""
DEVIATIONS = 3.0
"""Black is this many deviations below zero, white as many above; what lies beyond is clipped."""

Picture = npt.NDArray[np.uint8]


def png(tensor: Tensor, level: Level, most: int = MAX_TILES) -> tuple[bytes, int]:
    """The first planes side by side as a PNG, at most 64, and how many there are in it."""
    frames = _some(tensor, level, min(most, MAX_TILES))
    return write_png(_tiled(frames), clear=CLEAR), len(frames)


def mp4(tensor: Tensor, level: Level, fps: float = 8.0) -> tuple[bytes, int]:
    """One plane a frame (H.264, played by browsers), at most 2,048, and how many there are in it."""
    frames = _some(tensor, level, MAX_FRAMES)
    return write_mp4(np.stack(frames), fps), len(frames)


def chain_mp4(tensor: Tensor, fps: float = 2.0) -> tuple[bytes, int]:
    """The tensor's first plane through the chain of its archive, one checkpoint a frame, and how many there are.

    The newest 256 of a longer chain. Left the values, right how far they have gone from the chain's first, in
    deviations of the last one's way.
    """
    steps, handle = [tensor], tensor.archive
    while handle.parent is not None and len(steps) < MAX_CHAIN_FRAMES:
        handle = handle.parent
        if tensor.place.name not in handle.layout.by_name:
            break
        steps.insert(0, handle[tensor.place.name])
    if len(steps) < 2:
        raise HilbertflowError("has no parent, so there is no chain to show", where=tensor.archive.url,
                               remedy="leave --chain out")  # fmt: skip
    side = tensor.archive.layout.side
    planes = [_first_plane(step, side) for step in steps]
    ways = [plane - planes[0] for plane in planes]
    scales = [float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))) or 1.0 for part in (planes[-1], ways[-1])]
    gap = np.full((side, GAP), 255, np.uint8)
    frames = [
        np.hstack([_grey(plane, scales[0], side), gap, _grey(way, scales[1], side)])
        for plane, way in zip(planes, ways, strict=True)
    ]
    return write_mp4(np.stack(frames), fps), len(frames)


def _first_plane(tensor: Tensor, side: int) -> npt.NDArray[np.float32]:
    values = np.concatenate([*_values(tensor, "exact", side * side), np.empty(0, np.float32)])[: side * side]
    padded = np.pad(values, (0, side * side - len(values)))
    return np.asarray(np.nan_to_num(padded, posinf=0.0, neginf=0.0), np.float32)


def _some(tensor: Tensor, level: Level, most: int) -> list[Picture]:
    side = tensor.archive.layout.side
    frames = list(islice(_frames(tensor, level, side, most), most))
    if not frames:
        raise HilbertflowError("the tensor is empty", where=tensor.place.name)
    return frames


def _frames(tensor: Tensor, level: Level, side: int, most: int) -> Iterator[Picture]:
    area, held = side * side, np.empty(0, np.float32)
    scale = _deviation(tensor, level, most * area)
    for piece in _values(tensor, level, most * area):
        held = np.concatenate([held, piece])
        while len(held) >= area:
            yield _grey(held[:area], scale, side)
            held = held[area:]
    if len(held):
        yield _grey(np.concatenate([held, np.zeros(area - len(held), np.float32)]), scale, side)


def _values(tensor: Tensor, level: Level, most: int) -> Iterator[npt.NDArray[np.float32]]:
    """At least the first `most` values, if there are so many."""
    place = tensor.place
    if tensor.dtype.startswith(("F", "BF")) and tensor.dtype != "F64":
        yield from tensor.values(level, min(place.words, most))
        return
    words_each = np.dtype(NUMPY[tensor.dtype]).itemsize // place.word
    for words in tensor.chunks(level, 0, min(place.words, most * words_each)):
        yield words.view(NUMPY[tensor.dtype]).astype(np.float32)


def _deviation(tensor: Tensor, level: Level, most: int) -> float:
    total, count = 0.0, 0
    for piece in _values(tensor, level, most):
        finite = piece[np.isfinite(piece)].astype(np.float64)
        total, count = total + float(finite @ finite), count + finite.size
    return sqrt(total / count) if total else 1.0


def _grey(values: npt.NDArray[np.float32], scale: float, side: int) -> Picture:
    level = 128 + 127 / DEVIATIONS * np.clip(np.nan_to_num(values / scale), -DEVIATIONS - 1, DEVIATIONS + 1)
    return to_layout(np.clip(level, 0, 255).astype(np.uint8), "hilbert").reshape(side, side)


def _tiled(frames: list[Picture]) -> Picture:
    side, columns = frames[0].shape[0], ceil(sqrt(len(frames)))
    rows, step = ceil(len(frames) / columns), side + GAP
    sheet = np.full((rows * step - GAP, columns * step - GAP), CLEAR, np.uint8)
    for at, frame in enumerate(frames):
        y, x = at // columns * step, at % columns * step
        sheet[y : y + side, x : x + side] = np.minimum(frame, CLEAR - 1)
    return sheet
