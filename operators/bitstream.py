"""Gray frames to the packets of a video codec and back, through FFmpeg (PyAV)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from operators import raw
from operators.errors import HilbertflowError
from operators.fair_share import fair_share

VideoKind = Literal["hevc", "h264", "av1", "ffv1"]
Frames = npt.NDArray[Any]  # (n, height, width) of uint8, or uint16 for deeper formats

ENCODERS: dict[VideoKind, str] = {"hevc": "libx265", "h264": "libx264", "av1": "libsvtav1", "ffv1": "ffv1"}
DECODERS: dict[VideoKind, str] = {"hevc": "hevc", "h264": "h264", "av1": "libdav1d", "ffv1": "ffv1"}
FORMATS: dict[VideoKind, dict[int, str]] = {  # pixel format by bits of a sample
    "hevc": {8: "gray", 10: "gray10le", 12: "gray12le"},
    "h264": {8: "gray", 10: "gray10le"},
    "av1": {8: "yuv420p", 10: "yuv420p10le"},
    "ffv1": {8: "gray", 10: "gray10le", 12: "gray12le", 16: "gray16le"},
}
MAX_EDGE = 8192
_MIN_EDGE, _STEP = 64, 8  # every encoder here takes any multiple of 8 from 64 up

av.logging.set_level(None)
os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise


def padded_edge(length: int) -> int:
    """Edge of the frame that holds an edge of ``length``."""
    return max(_MIN_EDGE, -(-length // _STEP) * _STEP)


def encode_stream(frames: Frames, kind: VideoKind, depth: int, options: dict[str, str]) -> list[bytes]:
    """One packet a frame, in coding order, without the encoder's advertisement of itself.

    Parameters
    ----------
    frames: (n, height, width), edges padded to what :func:`padded_edge` says, samples below 2**depth.
    kind, depth: a pixel format of :data:`FORMATS`.
    options: the encoder's own; HilbertflowError when it refuses them or when FFmpeg was built without it.
    """
    height, width = frames.shape[1:]
    try:
        context = av.CodecContext.create(ENCODERS[kind], "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, FORMATS[kind][depth]
        context.time_base, context.framerate, context.thread_count = Fraction(1, 25), Fraction(25), 1
        context.options = options
        with fair_share():
            context.open()
        packets: list[bytes] = []
        for number, samples in enumerate(frames):
            frame = _frame(samples, FORMATS[kind][depth], depth)
            frame.pts = number
            packets += [bytes(packet) for packet in context.encode(frame)]
        packets += [bytes(packet) for packet in context.encode(None)]
    except (av.FFmpegError, ValueError) as error:
        raise HilbertflowError(f"{ENCODERS[kind]} cannot encode: {error}", remedy="use another coder") from error
    return [_without_notes(packet, kind) for packet in packets]


def decode_stream(packets: Sequence[bytes], kind: VideoKind, depth: int, height: int, width: int, count: int) -> Frames:
    """The ``count`` frames (n, height, width); HilbertflowError unless the packets hold just those."""
    try:
        context = av.CodecContext.create(DECODERS[kind], "r")
        assert isinstance(context, av.VideoCodecContext)
        context.thread_count = 1
        context.options = {"max_pixels": str((height + 128) * (width + 128))}  # a damaged header asks for more
        if kind == "ffv1":
            context.width, context.height, context.pix_fmt = width, height, FORMATS[kind][depth]
        frames = [frame for packet in packets for frame in context.decode(av.Packet(packet))]
        frames += context.decode(None)
    except (av.FFmpegError, ValueError) as error:
        raise HilbertflowError(f"{DECODERS[kind]} cannot decode: {error}", where="video chunk") from error
    if len(frames) != count:
        raise HilbertflowError(f"{len(frames)} frames in place of {count}", where="video chunk")
    return np.stack([_samples(frame, depth, height, width) for frame in frames])


def _frame(samples: npt.NDArray[Any], pixels: str, depth: int) -> av.VideoFrame:
    frame = av.VideoFrame(samples.shape[1], samples.shape[0], pixels)
    dtype = np.dtype(np.uint8 if depth == 8 else "<u2")
    for number, plane in enumerate(frame.planes):
        rows = np.full((plane.height, plane.line_size // dtype.itemsize), 1 << (depth - 1), dtype)
        if number == 0:
            rows[:, : samples.shape[1]] = samples
        plane.update(rows.tobytes())
    return frame


def _samples(frame: av.VideoFrame, depth: int, height: int, width: int) -> npt.NDArray[Any]:
    bits = frame.format.components[0].bits
    if (frame.height, frame.width) != (height, width) or bits != depth:
        what = f"a frame of {frame.height} × {frame.width}, {bits} bits, in place of {height} × {width}, {depth} bits"
        raise HilbertflowError(what, where="video chunk")
    plane = frame.planes[0]
    dtype = np.dtype(np.uint8 if depth == 8 else "<u2")
    rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
    samples: npt.NDArray[Any] = rows[:, :width].astype(dtype.newbyteorder("="))
    return samples


def _without_notes(packet: bytes, kind: VideoKind) -> bytes:
    """Drop supplemental information from an H.264 or HEVC packet (Annex B): x264 writes 600 bytes of its settings."""
    if kind not in ("h264", "hevc"):
        return packet
    units = packet.split(b"\x00\x00\x01")
    kept = [unit for unit in units[1:] if not _is_note(unit, kind)]
    if len(kept) == len(units) - 1:
        return packet
    return b"".join(b"\x00\x00\x01" + unit for unit in kept)


def _is_note(unit: bytes, kind: VideoKind) -> bool:
    return bool(unit) and ((unit[0] & 31) == 6 if kind == "h264" else (unit[0] >> 1 & 63) in (39, 40))


def as_rows(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of any shape as (rows, columns), all axes but the last taken as rows."""
    return plane.reshape(-1, plane.shape[-1]) if plane.ndim and plane.size else plane.reshape(-1, max(1, plane.size))


def edges(shape: tuple[int, ...], kind: VideoKind) -> tuple[int, int]:
    """Rows and columns of the frame that holds an array of ``shape``; HilbertflowError where none does."""
    rows, columns = prod(shape[:-1]), shape[-1] if shape else 0
    if not rows * columns or max(rows, columns) > MAX_EDGE:
        raise raw.damaged(kind, "a plane of this shape is never coded as video")
    return rows, columns


def padded(samples: npt.NDArray[Any], depth: int) -> Frames:
    """Grow a frame to edges that the encoder takes, by repeating its border."""
    height, width = samples.shape
    grow = ((0, padded_edge(height) - height), (0, padded_edge(width) - width))
    return np.pad(samples.astype(np.uint8 if depth == 8 else np.uint16), grow, mode="edge")
