"""Pack coded chunks into one Zarr v3 shard, so that a worker writes an object without decoding what it encoded.

Layout of the specification (zarr-specs, ``sharding_indexed``): the chunks one after another, each followed by its
crc32c; then for every chunk of the shard its offset and length as little-endian u64 (all ones where it is missing),
then the crc32c of that index. Stock zarr reads the result; a test holds it to that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np

MISSING = 2**64 - 1


def pack(chunks: Sequence[bytes | None], slots: int) -> bytes | None:
    """The shard of ``chunks`` with room for ``slots``; a ``None`` reads as the fill value. No object for nothing."""
    if all(chunk is None for chunk in chunks):
        return None
    index = np.full((slots, 2), MISSING, "<u8")
    parts: list[bytes] = []
    offset = 0
    for at, chunk in enumerate(chunks):
        if chunk is not None:
            parts += (chunk, struct.pack("<I", google_crc32c.value(chunk)))
            index[at] = offset, len(chunk) + 4
            offset += len(chunk) + 4
    table = index.tobytes()
    return b"".join((*parts, table, struct.pack("<I", google_crc32c.value(table))))


def unpack(data: bytes, slots: int) -> list[bytes | None]:
    """The chunks of a whole shard, checked against their checksums; None where one is missing.

    Raises ValueError that says what is wrong.
    """
    size = 16 * slots
    if len(data) < size + 4:
        raise ValueError(f"a shard of {len(data)} bytes is shorter than its index")
    table = data[-size - 4 : -4]
    if struct.unpack("<I", data[-4:])[0] != google_crc32c.value(table):
        raise ValueError("the checksum of a shard's index differs")
    chunks: list[bytes | None] = []
    for offset, length in np.frombuffer(table, "<u8").reshape(-1, 2).tolist():
        if offset == length == MISSING:
            chunks.append(None)
            continue
        if length < 4 or offset + length > len(data) - size - 4:
            raise ValueError(f"a chunk of {length} bytes at {offset} lies outside its shard")
        chunk = data[offset : offset + length - 4]
        if struct.unpack("<I", data[offset + length - 4 : offset + length])[0] != google_crc32c.value(chunk):
            raise ValueError(f"the checksum of the chunk at {offset} differs")
        chunks.append(chunk)
    return chunks


def sealed(chunks: Sequence[bytes]) -> bytes:
    """Chunks one after another, each followed by its crc32c, without an index."""
    return b"".join(part for chunk in chunks for part in (chunk, struct.pack("<I", google_crc32c.value(chunk))))


def unsealed(data: bytes) -> bytes:
    """A chunk without the crc32c behind it; ValueError where that differs."""
    chunk = data[:-4]
    if len(data) < 4 or struct.unpack("<I", data[-4:])[0] != google_crc32c.value(chunk):
        raise ValueError("the checksum of a chunk differs")
    return chunk


def stored_size(chunk: bytes | None) -> int:
    """Bytes that a chunk takes in its shard, its crc32c included."""
    return 0 if chunk is None else len(chunk) + 4
