"""Look at a tensor: its planes as a picture or as a video, one plane a frame."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from operators.hilbert_map import to_layout
from operators.video import write_mp4, write_png
from storage import archive
from storage.archive import Level
from storage.fs import Location
from storage.model import NUMPY, ModelArchive, Tensor

MAX_FRAMES = 2048
MAX_TILES = 64
GAP = 4
DEVIATIONS = 3.0
"""Black is this many deviations below zero, white as many above; what lies beyond is clipped."""

Picture = npt.NDArray[np.uint8]


def export(url: str, name: str, out: str, level: Level = "exact", fps: float = 8.0) -> int:
    """Write planes of a tensor to ``out``; returns how many.

    ``.png`` tiles the first 64 planes, ``.mp4`` (H.264, played by browsers) shows one plane a frame, at most 2,048.
    Each plane holds side² consecutive values along the Hilbert curve, so that what is near in the tensor is near in
    the picture; grey is zero.
    """
    handle = archive.open(url)
    if not isinstance(handle, ModelArchive):
        raise HilbertflowError("is a collection; it has no tensors to look at", where=handle.url)
    handle.check_level(level)
    suffix = Path(out).suffix
    if suffix not in (".png", ".mp4"):
        raise HilbertflowError(
            f"no picture has the suffix {suffix!r}",
            where=out,
            remedy="use OUT.png or OUT.mp4",
        )
    tensor = handle[name]
    frames = list(islice(_frames(tensor, level, handle.layout.side), MAX_TILES if suffix == ".png" else MAX_FRAMES))
    if not frames:
        raise HilbertflowError("the tensor is empty", where=name)
    data = write_png(_tiled(frames)) if suffix == ".png" else write_mp4(np.stack(frames), fps)
    Location(out).write_atomic("", data)
    return len(frames)


def _frames(tensor: Tensor, level: Level, side: int) -> Iterator[Picture]:
    scale = _deviation(tensor, level)
    area, held = side * side, np.empty(0, np.float32)
    for piece in _values(tensor, level):
        held = np.concatenate([held, piece])
        while len(held) >= area:
            yield _grey(held[:area], scale, side)
            held = held[area:]
    if len(held):
        yield _grey(np.concatenate([held, np.zeros(area - len(held), np.float32)]), scale, side)


def _values(tensor: Tensor, level: Level) -> Iterator[npt.NDArray[np.float32]]:
    if tensor.dtype.startswith(("F", "BF")) and tensor.dtype != "F64":
        yield from tensor.values(level)
        return
    for words in tensor.chunks(level, 0, tensor.place.words):
        yield words.view(NUMPY[tensor.dtype]).astype(np.float32)


def _deviation(tensor: Tensor, level: Level) -> float:
    total, count = 0.0, 0
    for piece in _values(tensor, level):
        finite = piece[np.isfinite(piece)].astype(np.float64)
        total, count = total + float(finite @ finite), count + finite.size
    return sqrt(total / count) if total else 1.0


def _grey(values: npt.NDArray[np.float32], scale: float, side: int) -> Picture:
    level = 128 + 127 / DEVIATIONS * np.nan_to_num(values / scale)
    return to_layout(np.clip(level, 0, 255).astype(np.uint8), "hilbert").reshape(side, side)


def _tiled(frames: list[Picture]) -> Picture:
    side, columns = frames[0].shape[0], ceil(sqrt(len(frames)))
    rows, step = ceil(len(frames) / columns), side + GAP
    sheet = np.full((rows * step - GAP, columns * step - GAP), 255, np.uint8)
    for at, frame in enumerate(frames):
        y, x = at // columns * step, at % columns * step
        sheet[y : y + side, x : x + side] = frame
    return sheet
