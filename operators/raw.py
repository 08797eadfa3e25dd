"""Chunks that are stored as they are: what a coder falls back to when its own bytes would be more."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

MODE = 0x10  # the first byte of a raw chunk, whichever coder wrote it
OVERHEAD = 5
KINDS = frozenset(np.dtype(name) for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32"))


def encode(plane: npt.NDArray[Any]) -> bytes:
    """The mode, the values in little-endian order, and their CRC-32."""
    body = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False).tobytes()
    return bytes([MODE]) + body + zlib.crc32(body).to_bytes(4, "little")


def decode(data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The array of ``shape`` and ``dtype``; HilbertflowError when the bytes are not its raw chunk."""
    chunk, kind = memoryview(data).cast("B"), np.dtype(dtype)
    body = chunk[1:-4]
    if len(chunk) != math.prod(shape) * kind.itemsize + OVERHEAD or chunk[0] != MODE:
        raise damaged("raw", "the length does not fit the array")
    if zlib.crc32(body) != int.from_bytes(chunk[-4:], "little"):
        raise damaged("raw", "the check sum does not agree")
    return np.frombuffer(body, kind.newbyteorder("<")).astype(kind.newbyteorder("=")).reshape(shape)


def checked(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype in native order; HilbertflowError unless it is an integer of 8 to 32 bits."""
    native = np.dtype(dtype).newbyteorder("=")
    if native not in KINDS:
        raise HilbertflowError(f"coders take integers of 8 to 32 bits, not {np.dtype(dtype)}")
    return native


def damaged(kind: str, what: str) -> HilbertflowError:
    """The error for a chunk that cannot be decoded."""
    return HilbertflowError(what, where=f"{kind} chunk", remedy="the chunk is damaged or of another array")
