"""Ids of a collection by chunk, so that those of a few rows cost a few hundred bytes and not a whole unit's table."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from operators.errors import HilbertflowError

FOLDER = "ids"
_MOST = 1 << 28  # bytes of one frame, whatever it claims


def key(unit: int) -> str:
    """The object that holds the frames of a unit, one after another, each with its crc32c behind it."""
    return f"{FOLDER}/{unit:08d}"


def pack(ids: Sequence[str]) -> bytes:
    """One chunk's ids: lengths as little-endian uint32, then UTF-8, deflated."""
    texts = [text.encode() for text in ids]
    return zlib.compress(np.array([len(text) for text in texts], "<u4").tobytes() + b"".join(texts), 9)


def unpack(frame: bytes, rows: int) -> list[str]:
    """The ids of a chunk of ``rows`` rows; HilbertflowError when the frame is no such thing."""
    try:
        data = zlib.decompressobj().decompress(frame, _MOST)
        ends = 4 * rows + np.cumsum(np.frombuffer(data[: 4 * rows], "<u4"), dtype=np.int64)
        if len(ends) != rows or int(ends[-1]) != len(data):
            raise ValueError("lengths do not add up")
        return [data[low:high].decode() for low, high in zip([4 * rows, *ends[:-1]], ends, strict=True)]
    except (zlib.error, ValueError, IndexError) as error:
        raise HilbertflowError("ids are damaged", remedy="`hilbertflow verify` names the object") from error
