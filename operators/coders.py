"""The coders: integer planes to bytes and back without loss, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from operators import rans, raw
from operators.errors import HilbertflowError
from operators.rans_tables import Tables

CoderKind = Literal["rans", "hevc", "h264", "av1", "ffv1", "raw"]
COARSEST: Mapping[str, int] = {"hevc": 51, "h264": 63, "av1": 63}
"""The largest quality number of the codecs that can lose: a quantization parameter, for AV1 a rate factor."""
Plane = npt.NDArray[Any]  # int8 to int32 or uint8 to uint32


class Coder(ABC):
    """Base of all coders: what ``encode`` returns, ``decode`` turns into the same array, or raises HilbertflowError.

    A video coder with a quality gives an array near it, the same each time.
    """

    kind: CoderKind

    @abstractmethod
    def encode(self, plane: Plane) -> bytes:
        """Code an integer array, (rows, columns); the chunk is at most 5 bytes longer than the values."""

    @abstractmethod
    def decode(
        self, data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, out: Plane | None = None
    ) -> Plane:
        """The array of ``shape`` and ``dtype`` that was coded; ``out``, if given one to fill and the coder can."""


@dataclass(frozen=True)
class RansCoder(Coder):
    """The entropy coder of :mod:`operators.rans`.

    Parameters
    ----------
    tables: shared tables (``Tables.train(...).to_bytes()``) for small chunks; empty: every chunk carries its own.
    """

    kind: Literal["rans"] = "rans"
    tables: bytes = b""

    def encode(self, plane: Plane) -> bytes:
        """Code an array of any shape."""
        return rans.encode(plane, Tables.from_bytes(self.tables) if self.tables else None)

    def decode(
        self, data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, out: Plane | None = None
    ) -> Plane:
        """The array that was coded."""
        return rans.decode(data, shape, dtype, Tables.from_bytes(self.tables) if self.tables else None, out)


@dataclass(frozen=True)
class VideoCoder(Coder):
    """A video codec, a plane a frame: without loss (:mod:`operators.video`) or at a quality (``video_lossy``).

    Parameters
    ----------
    kind: the codec.
    quality: None for no loss; else the quantization parameter, 0 (fine) to 51 (H.264: 63), AV1's rate factor to 63.
    """

    kind: Literal["hevc", "h264", "av1", "ffv1"] = "ffv1"
    quality: int | None = None

    def encode(self, plane: Plane) -> bytes:
        """Code a plane; its last axis is a row of pixels."""
        from operators import video, video_lossy  # FFmpeg is loaded where a plane is coded by it

        if self.quality is not None:
            return video_lossy.encode_plane(plane, self.kind, self.quality)
        return video.encode_plane(plane, self.kind)

    def decode(
        self, data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, out: Plane | None = None
    ) -> Plane:
        """The plane that was coded."""
        from operators import video, video_lossy

        if self.quality is not None:
            return video_lossy.decode_plane(data, shape, dtype, self.kind)
        return video.decode_plane(data, shape, dtype, self.kind)


@dataclass(frozen=True)
class RawCoder(Coder):
    """Values as they are, with a check sum."""

    kind: Literal["raw"] = "raw"

    def encode(self, plane: Plane) -> bytes:
        """Store an array of any shape."""
        raw.checked(plane.dtype)
        return raw.encode(plane)

    def decode(
        self, data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, out: Plane | None = None
    ) -> Plane:
        """The array that was stored."""
        return raw.decode(data, shape, raw.checked(dtype))


CODERS: Mapping[CoderKind, Coder] = {
    "rans": RansCoder(),
    "hevc": VideoCoder("hevc"),
    "h264": VideoCoder("h264"),
    "av1": VideoCoder("av1"),
    "ffv1": VideoCoder("ffv1"),
    "raw": RawCoder(),
}


def coded_sizes(planes: Sequence[Plane], kinds: Sequence[CoderKind]) -> dict[CoderKind, int]:
    """Bytes that the planes take together under each coder; a coder that this FFmpeg lacks is left out."""
    sizes: dict[CoderKind, int] = {}
    for kind in kinds:
        if kind not in CODERS:
            raise HilbertflowError(f"unknown coder {kind!r}", remedy=f"use one of {', '.join(CODERS)}")
        try:
            sizes[kind] = sum(len(CODERS[kind].encode(np.asarray(plane))) for plane in planes)
        except HilbertflowError:
            if kind in ("rans", "raw"):
                raise
    return sizes


def cheapest(
    planes: Sequence[Plane], kinds: Sequence[CoderKind] = ("rans", "hevc", "h264", "av1", "ffv1")
) -> CoderKind:
    """The coder of fewest bytes on the planes; on a tie the one named first, so name the fast ones first."""
    sizes = coded_sizes(planes, kinds)
    if not sizes or not planes:
        raise HilbertflowError("no coder or no plane to compare", where="coder: auto")
    return min(sizes, key=lambda kind: sizes[kind])
