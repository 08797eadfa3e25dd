"""Video codecs with loss, at a quality: planes as chunks of an array, films of frames for comparison.

A chunk is the mode byte 0x21, how many low bits were dropped, the codec's quality, the CRC-32 of the plane as it
decodes (little-endian), its smallest value, and a one-frame bitstream of 10-bit samples: values less the smallest,
shifted until they fit. The decoders of these formats are exact by their standards, so that the checksum holds anywhere.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import raw
from operators.bitstream import (
    FORMATS,
    MAX_EDGE,
    VideoKind,
    as_rows,
    decode_stream,
    edges,
    encode_stream,
    padded,
    padded_edge,
)
from operators.coders import COARSEST
from operators.errors import HilbertflowError

MODE = 0x21
_DEPTH = 10
_HEAD = struct.Struct("<BBBIq")  # mode, dropped bits, quality, CRC-32 of the decoded plane, smallest value
_LENGTH = struct.Struct("<I")
_FRAMES = struct.Struct("<BBIII")  # codec, depth, frames, height, width


@dataclass(frozen=True)
class _Lossy:
    """Encoder options at a quality: psychovisual tools off, because they spend bits on what is not there."""

    fixed: dict[str, str]
    params: str
    quality: str


LOSSY: dict[VideoKind, _Lossy] = {
    "hevc": _Lossy(
        {},
        "qp={quality}:psy-rd=0:psy-rdoq=0:rdoq-level=2:aq-mode=0:sao=0:"
        "log-level=none:pools=none:frame-threads=1:info=0",
        "x265-params",
    ),
    "h264": _Lossy({}, "qp={quality}:psy=0:aq-mode=0:mbtree=0:no-deblock=1", "x264-params"),
    "av1": _Lossy({}, "crf={quality}:tune=1:aq-mode=0:lp=1", "svtav1-params"),
}


def encode_plane(plane: npt.NDArray[Any], kind: VideoKind, quality: int) -> bytes:
    """Code an integer plane with loss.

    Parameters
    ----------
    plane: (rows, columns) of int8 to int32 or uint8 to uint32, or any shape, taken as rows of its last axis.
    kind, quality: the codec, and 0 (fine) to :data:`operators.coders.COARSEST`.

    Returns
    -------
    The chunk: at most 5 bytes longer than the values, because a plane that expands, or that no frame holds, is stored
    raw, and then without loss.
    """
    raw.checked(plane.dtype)
    options, rows = _options(kind, quality, "medium", intra=True), as_rows(plane)
    if not rows.size or max(rows.shape) > MAX_EDGE:
        return raw.encode(plane)
    low = int(rows.min())
    shift = max(0, (int(rows.max()) - low).bit_length() - _DEPTH)
    samples = ((rows.astype(np.int64) - low) >> shift).astype(np.uint16)
    stream = b"".join(encode_stream(padded(samples, _DEPTH)[None], kind, _DEPTH, options))
    if _HEAD.size + len(stream) >= plane.nbytes + raw.OVERHEAD:
        return raw.encode(plane)
    back = _values(stream, kind, plane.shape, plane.dtype.newbyteorder("="), shift, low)
    return _HEAD.pack(MODE, shift, quality, _check(back), low) + stream


def decode_plane(
    data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, kind: VideoKind
) -> npt.NDArray[Any]:
    """The plane as its encoder saw it decoded; HilbertflowError when the bytes are not its chunk or pixels differ."""
    native, chunk = raw.checked(dtype), bytes(data)
    if chunk[:1] == bytes([raw.MODE]):
        return raw.decode(chunk, shape, native)
    if len(chunk) < _HEAD.size or chunk[0] != MODE:
        raise raw.damaged(kind, "not a chunk of this coder")
    _, shift, quality, check, low = _HEAD.unpack_from(chunk)
    known = 0 <= shift <= 32 - _DEPTH and quality <= COARSEST[kind]
    if not (known and np.iinfo(native).min <= low <= np.iinfo(native).max):
        raise raw.damaged(kind, "the header is malformed")
    plane = _values(chunk[_HEAD.size :], kind, shape, native, shift, low)
    if _check(plane) != check:
        raise raw.damaged(kind, "the check sum of the pixels does not agree")
    return plane


def _values(
    stream: bytes, kind: VideoKind, shape: tuple[int, ...], dtype: np.dtype[Any], shift: int, low: int
) -> npt.NDArray[Any]:
    """The plane of a bitstream: the middle of what each sample stands for, within what the dtype holds."""
    rows, columns = edges(shape, kind)
    (frame,) = decode_stream([stream], kind, _DEPTH, padded_edge(rows), padded_edge(columns), 1)
    values = low + (frame[:rows, :columns].astype(np.int64) << shift) + ((1 << shift) >> 1)
    limits = np.iinfo(dtype)
    return np.asarray(values.clip(limits.min, limits.max).astype(dtype).reshape(shape))


def _check(plane: npt.NDArray[Any]) -> int:
    return zlib.crc32(plane.astype(plane.dtype.newbyteorder("<"), copy=False).tobytes())


def _options(kind: VideoKind, quality: float, preset: str, intra: bool) -> dict[str, str]:
    """What the encoder is told."""
    if kind not in LOSSY:
        raise HilbertflowError(f"{kind} has no lossy mode here", remedy=f"use one of {', '.join(LOSSY)}")
    if not 0 <= quality <= COARSEST[kind]:
        raise HilbertflowError(f"quality {quality} of {kind}", remedy=f"use 0 (fine) to {COARSEST[kind]} (coarse)")
    lossy = LOSSY[kind]
    options = {"preset": "6" if kind == "av1" and preset == "medium" else preset, "g": "1" if intra else "250"}
    return options | lossy.fixed | {lossy.quality: lossy.params.format(quality=round(quality))}


def encode_frames(
    frames: npt.NDArray[np.uint16], codec: VideoKind, quality: float, intra: bool, preset: str = ""
) -> bytes:
    """Code 10-bit frames with loss.

    Parameters
    ----------
    frames: (n, height, width) uint16 below 1024.
    codec: ``hevc``, ``h264`` or ``av1``.
    quality: quantization parameter, 0 (fine) to 51 (coarse), H.264 to 63; for AV1 its rate factor, to 63. A rate
        factor would cost x265 half a bit a value more on single frames of noise.
    intra: every frame for itself; otherwise the encoder predicts between frames.
    preset: speed preset of the encoder, its ``medium`` (SVT-AV1: 6) when empty.

    Returns
    -------
    A self-contained byte string, read by :func:`decode_frames`.
    """
    options = _options(codec, quality, preset or "medium", intra)
    if frames.ndim != 3 or not frames.size or max(frames.shape[1:]) > MAX_EDGE or int(frames.max()) >> _DEPTH:
        raise HilbertflowError(f"frames of shape {frames.shape}", remedy="give (n, height, width) of values below 1024")
    height, width = frames.shape[1:]
    packets = encode_stream(np.stack([padded(frame, _DEPTH) for frame in frames]), codec, _DEPTH, options)
    head = _FRAMES.pack(list(FORMATS).index(codec), _DEPTH, len(frames), height, width)
    return head + b"".join(_LENGTH.pack(len(packet)) + packet for packet in packets)


def decode_frames(data: bytes) -> npt.NDArray[np.uint16]:
    """The frames (n, height, width), uint16, that :func:`encode_frames` coded."""
    if len(data) < _FRAMES.size:
        raise raw.damaged("video", "the coded bytes end too early")
    number, depth, count, height, width = _FRAMES.unpack_from(data)
    codecs = list(FORMATS)
    if number >= len(codecs) or depth != _DEPTH or not 0 < min(height, width) <= max(height, width) <= MAX_EDGE:
        raise raw.damaged("video", "the header is malformed")
    packets, at = [], _FRAMES.size
    while at < len(data):
        length = _LENGTH.unpack_from(data, at)[0] if at + _LENGTH.size <= len(data) else len(data)
        at += _LENGTH.size
        if at + length > len(data):
            raise raw.damaged("video", "the coded bytes end too early")
        packets.append(data[at : at + length])
        at += length
    if count > len(packets):
        raise raw.damaged("video", f"{len(packets)} packets for {count} frames")
    frames = decode_stream(packets, codecs[number], depth, padded_edge(height), padded_edge(width), count)
    return np.ascontiguousarray(frames[:, :height, :width]).astype(np.uint16, copy=False)
