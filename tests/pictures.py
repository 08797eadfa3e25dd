"""Pictures made in the test, and one that would unfold to far more than it is."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest


def png(
    seed: int = 0, size: tuple[int, int] = (48, 40), mode: str = "RGB", colour: Any = None, kind: str = "PNG"
) -> bytes:
    """Smooth random colours, or one colour, as a PNG or JPEG."""
    image = pytest.importorskip("PIL.Image", reason="writes a picture with Pillow")
    if colour is not None:
        made = image.new(mode, size, colour)
    else:
        small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        made = image.fromarray(small).resize(size)
    buffer = io.BytesIO()
    made.save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size; its pixels are not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
