"""Checkpoints for the tests: written byte by byte, so that they can hold what no library would write."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8,
          "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}  # fmt: skip
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def write_safetensors(path: str | Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> str:
    """Write name -> (dtype, shape, bytes) as a safetensors file in the order given; returns the path as a string."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    at, parts = 0, []
    for name, (dtype, shape, data) in tensors.items():
        if prod(shape) * WIDTHS[dtype] != len(data):
            raise AssertionError(f"{name}: {len(data)} bytes are not {shape} of {dtype}")
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    return write_raw_safetensors(path, json.dumps(header).encode(), b"".join(parts))


def write_raw_safetensors(path: str | Path, header: bytes, data: bytes, length: int | None = None) -> str:
    """Write any header over any data, the header's length told as ``length`` (default the truth)."""
    header += b" " * (-len(header) % 8) if length is None else b""
    told = len(header) if length is None else length
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(told.to_bytes(8, "little") + header + data)
    return str(path)


def odd_tensors(seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every dtype in shapes that break assumptions, and every float type with all the values that do.

    0-d, empty (a 0 in front, in the middle, behind), one element, odd sides, 1×n, n×1, huge ratio, 5-d, more than one
    plane of 256×256 with a ragged end; NaNs with payloads, ±Inf, −0.0, subnormals, largest values (random bit
    patterns hold them all for 8 and 16 bits).
    """
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (), "one": (1,), "one4d": (1, 1, 1, 1), "empty": (0,), "empty_front": (0, 5),
        "empty_middle": (3, 0, 7), "empty_back": (4, 0),
        "prime": (7, 13), "row": (1, 1001), "column": (1001, 1), "five": (2, 3, 1, 5, 7),
    }  # fmt: skip
    result = {}
    for dtype, width in WIDTHS.items():
        for label, shape in shapes.items():
            data = random.integers(0, 2 if dtype == "BOOL" else 256, prod(shape) * width, np.uint8).tobytes()
            result[f"{dtype}.{label}"] = dtype, shape, data
    for dtype in ("F16", "BF16"):
        every = np.arange(1 << 16, dtype=np.uint16)
        result[f"{dtype}.every_value"] = dtype, (256, 256), every.tobytes()
        result[f"{dtype}.long"] = dtype, (3, 70_001), random.integers(0, 1 << 16, 210_003, np.uint16).tobytes()
    for dtype in ("F8_E4M3", "F8_E5M2"):
        result[f"{dtype}.every_value"] = dtype, (16, 16), bytes(range(256))
    special = np.array(
        [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF, 0x00000001,
         0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000], np.uint32
    )  # fmt: skip
    result["F32.special"] = "F32", (2, 7), special.tobytes()
    result["F32.weights"] = "F32", (300, 257), (random.normal(size=300 * 257) * 0.04).astype("<f4").tobytes()
    result["F32.huge_ratio"] = "F32", (1, 1, 100_003), random.normal(size=100_003).astype("<f4").tobytes()
    result["F32.constant"] = "F32", (130, 130), np.full(130 * 130, 0.1, "<f4").tobytes()
    result["F32.zeros"] = "F32", (64, 64), bytes(4 * 64 * 64)
    wide = random.normal(size=256) * 10.0 ** random.integers(-38, 38, 256)
    result["F32.wide_range"] = "F32", (256,), wide.astype("<f4").tobytes()
    return result


def write_gguf(
    path: str | Path, tensors: Mapping[str, tuple[int, tuple[int, ...], bytes]], metadata: bytes = b"", pairs: int = 0,
    alignment: int = 32,
) -> str:  # fmt: skip
    """Write name -> (ggml type number, logical shape, bytes) as GGUF 3; ``metadata`` holds ``pairs`` encoded keys."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), pairs) + metadata
    body = b""
    for name, (number, shape, data) in tensors.items():
        body += bytes(-len(body) % alignment)
        head += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, len(body))
        body += data
    head += bytes(-len(head) % alignment)
    Path(path).write_bytes(head + body + bytes(-len(body) % alignment))
    return str(path)


def gguf_text(text: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def block_tensors(seed: int = 0) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """GGUF tensors of each type that is read: plain ones, and random blocks of the quantized ones."""
    random = np.random.default_rng(seed)
    formats = {"q8_0": (8, 32, 34), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q6_k": (14, 256, 210)}
    result: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    for name, (number, values, width) in formats.items():
        blocks = random.integers(0, 256, (6, 2, width), np.uint8)
        blocks[..., :4] = random.normal(size=(6, 2, 2)).astype("<f2").view(np.uint8)  # scales that are finite numbers
        result[f"blk.0.{name}.weight"] = number, (6, 2 * values), blocks.tobytes()
    for name, number, width in (("f32", 0, 4), ("f16", 1, 2), ("bf16", 30, 2), ("i8", 24, 1), ("i64", 27, 8)):
        result[f"blk.0.{name}"] = number, (3, 7), random.integers(0, 256, 21 * width, np.uint8).tobytes()
    return result
