"""Video codecs as coders of planes, without loss for the archive; films and pictures for looking.

A chunk of the archive is the mode byte 0x20, the CRC-32 of the pixels (little-endian), the smallest value, and one
or more one-frame bitstreams: values less the smallest are cut in groups of bits that the codec's pixel format holds.
An encoder may be lossless only in name, so what was coded is decoded again before it is handed out.
"""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from typing import Any

import av
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
from operators.errors import HilbertflowError

MODE = 0x20
_HEAD = struct.Struct("<BBBIq")  # mode, bit groups, bits of a group, CRC-32 of the pixels, smallest value
_LENGTH = struct.Struct("<I")

LOSSLESS: dict[VideoKind, dict[str, str]] = {
    "hevc": {"preset": "ultrafast", "x265-params": "lossless=1:log-level=none:pools=none:frame-threads=1:info=0"},
    "h264": {"preset": "medium", "qp": "0"},  # crf=0 loses at 10 bits
    "av1": {"preset": "8", "svtav1-params": "lossless=1:lp=1:avif=1"},
    "ffv1": {"level": "1", "coder": "1", "context": "0"},  # level 3 adds 200 bytes of header to every plane
}


def encode_plane(plane: npt.NDArray[Any], kind: VideoKind) -> bytes:
    """Code an integer plane without loss.

    Parameters
    ----------
    plane: (rows, columns) of int8 to int32 or uint8 to uint32, or any shape, taken as rows of its last axis.
    kind: the codec.

    Returns
    -------
    The chunk: at most 5 bytes longer than the values, because a plane that expands, or that the codec cannot hold,
    is stored raw.
    """
    raw.checked(plane.dtype)
    rows = as_rows(plane)
    if not rows.size or max(rows.shape) > MAX_EDGE:
        return raw.encode(plane)
    low = int(rows.min())
    offsets = (rows.astype(np.int64) - low).astype(np.uint32)
    bits = max(1, int(offsets.max()).bit_length())
    deepest = max(FORMATS[kind])
    groups = -(-bits // deepest)
    width = -(-bits // groups)
    depth = _depth(kind, width)
    values = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = [_HEAD.pack(MODE, groups, width, zlib.crc32(values), low)]
    for group in range(groups):
        samples = padded((offsets >> np.uint32(group * width)) & np.uint32((1 << width) - 1), depth)
        packets = encode_stream(samples[None], kind, depth, LOSSLESS[kind])
        stream = b"".join(packets)
        parts += [_LENGTH.pack(len(stream)), stream]
    chunk = b"".join(parts)
    if len(chunk) >= len(values) + raw.OVERHEAD:
        return raw.encode(plane)
    try:
        decode_plane(chunk, plane.shape, plane.dtype, kind)
    except HilbertflowError:  # the encoder of this build loses something
        return raw.encode(plane)
    return chunk


def decode_plane(
    data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, kind: VideoKind
) -> npt.NDArray[Any]:
    """The plane that was coded; HilbertflowError when the bytes are not its chunk or its pixels differ."""
    native, chunk = raw.checked(dtype), bytes(data)
    if chunk[:1] == bytes([raw.MODE]):
        return raw.decode(chunk, shape, native)
    if len(chunk) < _HEAD.size or chunk[0] != MODE:
        raise raw.damaged(kind, "not a chunk of this coder")
    _, groups, width, check, low = _HEAD.unpack_from(chunk)
    lowest, highest = np.iinfo(native).min, np.iinfo(native).max
    if not (1 <= groups <= 4 and 1 <= width <= max(FORMATS[kind]) and lowest <= low <= highest):
        raise raw.damaged(kind, "the header is malformed")
    rows, columns = edges(shape, kind)
    depth = _depth(kind, width)
    offsets = np.zeros((rows, columns), np.int64)
    at = _HEAD.size
    for group in range(groups):
        length = _LENGTH.unpack_from(chunk, at)[0] if at + _LENGTH.size <= len(chunk) else len(chunk)
        at += _LENGTH.size
        if at + length > len(chunk):
            raise raw.damaged(kind, "the coded bytes end too early")
        (frame,) = decode_stream([chunk[at : at + length]], kind, depth, padded_edge(rows), padded_edge(columns), 1)
        offsets += frame[:rows, :columns].astype(np.int64) << (group * width)
        at += length
    if at != len(chunk):
        raise raw.damaged(kind, "the coded bytes go on too long")
    values = offsets + low
    if int(values.max()) > highest:
        raise raw.damaged(kind, "a value does not fit the data type")
    plane: npt.NDArray[Any] = values.astype(native).reshape(shape)
    if zlib.crc32(plane.astype(native.newbyteorder("<"), copy=False).tobytes()) != check:
        raise raw.damaged(kind, "the check sum of the pixels does not agree")
    return plane


def write_mp4(frames: npt.NDArray[np.uint8], fps: float = 8.0) -> bytes:
    """An MP4 file that browsers play: H.264, 8 bits, 4:2:0, its index in front.

    Parameters
    ----------
    frames: (n, height, width) uint8 of gray; odd edges grow by one repeated pixel.
    fps: frames a second.
    """
    if frames.ndim != 3 or not frames.size or frames.dtype != np.uint8 or max(frames.shape[1:]) > MAX_EDGE:
        raise HilbertflowError(
            f"frames of shape {frames.shape} and {frames.dtype}", remedy="give (n, height, width) uint8"
        )
    _, height, width = frames.shape
    even = np.pad(frames, ((0, 0), (0, height & 1), (0, width & 1)), mode="edge")
    file = io.BytesIO()
    # the index goes into room kept at the front, which needs no second pass over the file
    with av.open(file, "w", format="mp4", options={"moov_size": str(4096 + 64 * len(even))}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "14", "preset": "medium", "profile": "high"}
        for samples in even:
            frame = av.VideoFrame.from_ndarray(samples, format="gray").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_png(picture: npt.NDArray[np.uint8], clear: int | None = None) -> bytes:
    """A grey PNG file of a picture (height, width). clear: the grey that lets through what lies behind the picture."""
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = picture.shape[1], picture.shape[0], "gray"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    if clear is None:
        return data
    chunk = b"tRNS" + clear.to_bytes(2, "big")
    behind = 33  # the signature and the header, which this chunk has to follow
    return data[:behind] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[behind:]


def _depth(kind: VideoKind, bits: int) -> int:
    return min(depth for depth in FORMATS[kind] if depth >= bits)
