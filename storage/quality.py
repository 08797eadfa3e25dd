"""How near each level of a stored model comes to the source: from the archive alone where it has an exact level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from operators.floats import to_float32
from operators.hilbert_map import to_layout
from storage.checkpoint import open_checkpoint
from storage.model import ModelArchive
from storage.planes import PlaneUnits

WINDOW = 8
"""Edge of the windows that structural similarity compares."""
Tick = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """A level against the source, over all values that are finite and that the level may lose.

    Parameters
    ----------
    level: its number.
    sqnr_db: signal to quantization noise in decibels, ``10 log10(sum v² / sum (v - w)²)``; None without an error.
    max_error: the largest ``|v - w|``.
    psnr_db: the same with the square of the values' range as the signal; None without an error.
    ssim: structural similarity (Wang et al., 2004) of the planes as pictures, their values along the Hilbert curve:
        mean over windows of 8×8 that do not overlap, constants .01 and .03 of the plane's range. 1 is the same picture.
    """

    level: int
    sqnr_db: float | None
    max_error: float
    psnr_db: float | None
    ssim: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Sums:
    """What is kept of a level while the planes go by."""

    error: float = 0.0
    largest: float = 0.0
    similarity: list[float] = field(default_factory=list)


def measure(handle: ModelArchive, source: str = "", tick: Tick | None = None) -> list[Quality]:
    """Quality by level, lossy levels only; reads the archive once a level, plane by plane.

    Parameters
    ----------
    handle: the archive.
    source: checkpoint to compare with where the archive has no exact level; by default the one it was made from.
    tick: called with planes done and planes in all.
    """
    numbers = [level for level in handle.levels if level != "exact"]
    sums = [_Sums() for _ in numbers]
    energy, low, high, count, done = 0.0, math.inf, -math.inf, 0, 0
    groups = [g for g in handle.layout.groups if not g.opaque]
    total = sum(g.planes for g in groups)
    for group in groups:
        first, stop = group.first, group.first + group.planes
        streams = [handle.words(first, stop, level) for level in numbers]
        for (plane, words), *levels in zip(_truth(handle, first, stop, source), *streams, strict=True):
            held = handle.counts[plane]
            values = to_float32(words, group.dtype)[:held]
            finite = np.isfinite(values)
            kept = values[finite].astype(np.float64)
            energy, count = energy + float(kept @ kept), count + kept.size
            low, high = min(low, kept.min(initial=low)), max(high, kept.max(initial=high))
            for level, (_, approximate) in zip(sums, levels, strict=True):
                off = approximate[:held][finite].astype(np.float64) - kept
                level.error += float(off @ off)
                level.largest = max(level.largest, float(np.abs(off).max(initial=0.0)))
                if held == words.size and finite.all():
                    level.similarity.append(structural_similarity(values, approximate))
            done += 1
            if tick:
                tick(done, total)
    return [_quality(int(n), s, energy, high - low, count) for n, s in zip(numbers, sums, strict=True)] if count else []


def structural_similarity(values: F32, approximate: F32) -> float:
    """Mean structural similarity of two planes (side²,) in source order, laid along the Hilbert curve."""
    one, two = (_windows(to_layout(np.ascontiguousarray(plane), "hilbert")) for plane in (values, approximate))
    span = float(values.max() - values.min()) or 1.0
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    m1, m2 = one.mean(axis=1), two.mean(axis=1)
    v1, v2 = one.var(axis=1), two.var(axis=1)
    cov = (one * two).mean(axis=1) - m1 * m2
    return float((((2 * m1 * m2 + c1) * (2 * cov + c2)) / ((m1 * m1 + m2 * m2 + c1) * (v1 + v2 + c2))).mean())


def _windows(plane: F32) -> npt.NDArray[np.float64]:
    """(windows, 64) values of a square plane, given flat."""
    tiles = math.isqrt(plane.size) // WINDOW
    squares = plane.astype(np.float64).reshape(tiles, WINDOW, tiles, WINDOW).swapaxes(1, 2)
    return squares.reshape(-1, WINDOW * WINDOW)


def _truth(handle: ModelArchive, first: int, stop: int, source: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Planes as the source has them: number and words."""
    if handle.ladder.exact:
        yield from handle.words(first, stop, "exact")
        return
    path = source or handle.manifest.recipe["source"]["path"]
    remedy = "name the checkpoint with --source, or archive it with an exact level"
    try:
        checkpoint = open_checkpoint(path)
    except HilbertflowError as error:
        what = f"has no exact level and its source is not there ({error.what})"
        raise HilbertflowError(what, where=handle.url, remedy=remedy) from error
    if checkpoint.fingerprint != handle.manifest.fingerprint:
        raise HilbertflowError(f"was made from another checkpoint than {path}", where=handle.url, remedy=remedy)
    units, size = PlaneUnits(checkpoint, handle.layout), handle.layout.per_unit
    for unit in range(first // size, -(-stop // size)):
        table = units.read(unit)
        word = table.column("word")[0].as_py() if table.num_rows else 1
        for plane, bits in zip(table.column("plane").to_pylist(), table.column("bits"), strict=True):
            yield plane, np.frombuffer(bits.as_buffer(), f"u{word}")


def _quality(level: int, sums: _Sums, energy: float, span: float, count: int) -> Quality:
    def decibels(signal: float, noise: float) -> float | None:
        return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None

    similar = float(np.mean(sums.similarity)) if sums.similarity else 1.0
    return Quality(
        level, decibels(energy, sums.error), sums.largest, decibels(span * span * count, sums.error), similar
    )
