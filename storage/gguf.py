"""GGUF files: where every tensor's bytes lie, block-quantized tensors kept as the bytes they are, and their values.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian. Block layouts: ggml-common.h and dequantize_row_* of
ggml-quants.c; dequantized here with the same single multiplications and additions in float32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.tensors import TensorSpec

_MAX_HEADER = 256 << 20
_MAX_STRING, _MAX_TENSORS = 1 << 24, 100_000
# Of all arrays together: a string takes 0.35 microseconds, an array in an array 2.4, as long as seven (two slow cores).
_MAX_STRINGS, _ARRAY = 2_000_000, 8
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
# Type number -> name, values a block, bytes a block. Of the last eleven the bytes are kept and nothing more is known.
BLOCKS: dict[int, tuple[str, int, int]] = {
    8: ("Q8_0", 32, 34), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136), 39: ("MXFP4", 32, 17),
}  # fmt: skip
DEQUANTIZED = ("Q8_0", "Q4_0", "Q4_1")
"""Block formats whose values :func:`dequantize` knows."""
# Type number of a metadata value -> bytes and struct letter; 8 is a string, 9 an array.
_VALUES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class _Header:
    """Reads the header forward, in pieces, and never past the file or the limit."""

    def __init__(self, location: Location) -> None:
        self.location, self.url, self.size = location, location.url, location.size()
        self.at = 0
        self._strings = _MAX_STRINGS
        self._data = b""
        self._start = 0

    def take(self, length: int, what: str) -> bytes:
        end = self.at + length
        if end > min(self.size, _MAX_HEADER):
            raise self.fault(
                f"{what} of {length:,} bytes reaches past the end of the {'file' if end > self.size else 'header'}"
            )
        if end > self._start + len(self._data):
            self._data, self._start = (
                self.location.read("", self.at, min(self.size, max(end, self.at + (1 << 20)))),
                self.at,
            )
        part = self._data[self.at - self._start : end - self._start]
        self.at = end
        return part

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        length = self.number("<Q", f"the length of {what}")
        if length > _MAX_STRING:
            raise self.fault(f"{what} claims {length:,} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} is not UTF-8") from error

    def value(self, key: str, depth: int = 0) -> Any:
        """A metadata value; arrays are skipped and come back as their length."""
        kind = self.number("<I", f"the type of {key}")
        return self._value(kind, key, depth)

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _VALUES:
            return self.number(_VALUES[kind], key)
        if kind == 8:
            return self.text(key)
        if depth > 4:
            raise self.fault(f"the value of {key} nests arrays deeper than 5")
        if kind != 9:
            raise self.fault(f"the value of {key} has the unknown type {kind}")
        inner, count = self.number("<I", key), self.number("<Q", key)
        if inner in _VALUES:
            width = struct.calcsize(_VALUES[inner])
            if count * width > self.size - self.at:
                raise self.fault(f"the array {key} claims {count:,} values")
            self.skip(count * width, key)
        else:
            self._strings -= count * (1 if inner == 8 else _ARRAY)
            if self._strings < 0:
                raise self.fault(f"the array {key} claims {count:,} values")
            if inner == 8:
                self._skip_strings(count, key)
            else:
                for _ in range(count):
                    self._value(inner, key, depth + 1)
        return count

    def _skip_strings(self, count: int, key: str) -> None:
        while count:
            self.take(8, key)  # fills the buffer
            self.at -= 8
            data, at, length = self._data, self.at - self._start, 0
            last = len(data) - 8
            while count and (begin := at + length) <= last:
                at, length = begin, 8 + int.from_bytes(data[begin : begin + 8], "little")
                count -= 1
            self.at = self._start + at  # where the last one begins, which may be the one at fault
            self.skip(length, key)

    def skip(self, length: int, what: str) -> None:
        if self.at + length > min(self.size, _MAX_HEADER):
            raise self.fault(f"{what} reaches past the end of the header")
        self.at += length
        if not self._start <= self.at <= self._start + len(self._data):
            self._data, self._start = b"", self.at

    def fault(self, what: str) -> HilbertflowError:
        return HilbertflowError(what, where=f"{self.url}: byte {self.at}", remedy="it is damaged: copy it again")


def gguf_specs(location: Location) -> tuple[TensorSpec, ...]:
    """Tensors of a GGUF file in file order; see `read_gguf`."""
    return read_gguf(location)[0]


def read_gguf(location: Location) -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Tensors of a GGUF file in file order, and its metadata (of arrays only the length).

    A block-quantized tensor is a `TensorSpec` of dtype ``U8`` whose last axis holds the bytes of the blocks and whose
    ``blocks`` is the name of the format; `logical_shape` and `dequantize` give back what the model sees. Reads the
    header alone. Raises `HilbertflowError` naming the file and the byte or the tensor.
    """
    header = _Header(location)
    magic = header.take(min(4, header.size), "the magic number")
    if magic != b"GGUF":
        raise HilbertflowError("is not a GGUF file", where=f"{header.url}: byte 0")
    version = header.number("<I", "the version")
    if version not in (2, 3):
        what = "is big-endian" if version in (0x02000000, 0x03000000) else f"is of version {version}"
        raise HilbertflowError(f"{what}; versions 2 and 3, little-endian, are read", where=f"{header.url}: byte 4")
    tensors, pairs = header.number("<Q", "the number of tensors"), header.number("<Q", "the number of keys")
    if tensors > _MAX_TENSORS or pairs > _MAX_TENSORS:
        raise header.fault(f"it claims {tensors:,} tensors and {pairs:,} keys")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = header.text("a key")
        if key in metadata:
            raise header.fault(f"the key {key[:80]!r} comes twice")
        metadata[key] = header.value(key[:80] or "a nameless key")
    entries = [_entry(header) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise header.fault(f"general.alignment {alignment!r} is not a power of two")
    return _placed(entries, -(-header.at // alignment) * alignment, alignment, header), metadata


def _entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    name = header.text("the name of a tensor")
    rank = header.number("<I", f"the rank of {name[:80]!r}")
    if rank > 8:
        raise header.fault(f"tensor {name[:80]!r} claims {rank} dimensions")
    *sides, kind, offset = struct.unpack(f"<{rank}QIQ", header.take(8 * rank + 12, f"the shape of {name[:80]!r}"))
    return name, tuple(sides[::-1]), kind, offset  # GGUF's fastest side is first


def _placed(
    entries: list[tuple[str, tuple[int, ...], int, int]], data: int, alignment: int, header: _Header
) -> tuple[TensorSpec, ...]:
    specs, names, end, before = [], set(), 0, "the header"
    for name, shape, number, offset in sorted(entries, key=lambda entry: entry[3]):
        where = f"{header.url}: tensor {name[:80]!r}"
        if name in names:
            raise HilbertflowError("its name comes twice", where=where)
        names.add(name)
        dtype, stored, blocks = _stored(shape, number, where)
        nbytes = prod(stored) * _WIDTHS.get(dtype, 1)
        if offset % alignment or data + offset + nbytes > header.size:
            what = f"its {nbytes:,} bytes from byte {data + offset:,} "
            what += "are not aligned" if offset % alignment else f"reach past the end of the file at {header.size:,}"
            raise HilbertflowError(what, where=where, remedy="it is truncated or its header lies: copy it again")
        if not 0 <= offset - end < alignment:
            fault = "overlaps" if offset < end else f"leaves {offset - end:,} bytes unused after"
            raise HilbertflowError(f"at byte {data + offset:,} it {fault} {before}", where=where)
        specs.append(TensorSpec(name, dtype, stored, "other", header.url, data + offset, nbytes, blocks))
        end, before = offset + nbytes, f"tensor {name[:80]!r}"
    if header.size - data - end >= alignment:
        over = header.size - data - end
        raise HilbertflowError(
            f"{over:,} bytes after the last tensor belong to none", where=f"{header.url}: byte {data + end}"
        )
    return tuple(specs)


def _stored(shape: tuple[int, ...], number: int, where: str) -> tuple[str, tuple[int, ...], str]:
    """dtype, shape and block format as bytes are stored."""
    if number in _PLAIN:
        return _PLAIN[number], shape, ""
    if number not in BLOCKS:
        known = ", ".join([*_PLAIN.values(), *(name for name, _, _ in BLOCKS.values())])
        raise HilbertflowError(f"its type {number} is not known", where=where, remedy=f"known: {known}")
    name, values, width = BLOCKS[number]
    if not shape or shape[-1] % values:
        raise HilbertflowError(f"its shape {shape} is no whole number of {name} blocks of {values}", where=where)
    return "U8", (*shape[:-1], shape[-1] // values * width), name


def logical_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Shape of the values that a tensor stands for; that of the spec itself when it is not block-quantized."""
    return values_shape(spec.shape, spec.blocks) if spec.blocks else spec.shape


def values_shape(stored: tuple[int, ...], blocks: str) -> tuple[int, ...]:
    """Shape of the values of blocks, whose bytes the last axis of ``stored`` counts."""
    _, values, width = _block(blocks)
    return (*stored[:-1], stored[-1] // width * values)


def block_size(blocks: str) -> tuple[int, int]:
    """Values and bytes of a block."""
    _, values, width = _block(blocks)
    return values, width


def dequantized(pieces: Iterable[npt.NDArray[np.uint8]], blocks: str) -> Iterator[npt.NDArray[np.float32]]:
    """Values of blocks whose bytes come in consecutive pieces, cut anywhere."""
    (_, width), left = block_size(blocks), b""
    for piece in pieces:
        data = left + piece.tobytes()
        whole = len(data) // width * width
        left = data[whole:]
        if whole:
            yield dequantize(data[:whole], blocks)


def dequantize(data: bytes, blocks: str) -> npt.NDArray[np.float32]:
    """Values of whole blocks in order, float32, as the model's own runtime would see them.

    Parameters
    ----------
    data: a whole number of blocks.
    blocks: ``Q8_0``, ``Q4_0`` or ``Q4_1``; other formats are kept as bytes only and raise `HilbertflowError`.
    """
    _, _, width = _block(blocks)
    if len(data) % width:
        raise HilbertflowError(f"{len(data)} bytes are no whole number of {blocks} blocks of {width}")
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    scale = raw[:, :2].copy().view("<f2").astype(np.float32)
    if blocks == "Q8_0":
        return np.asarray(raw[:, 2:].view(np.int8) * scale, np.float32).reshape(-1)
    first = 4 if blocks == "Q4_1" else 2
    nibbles = np.concatenate([raw[:, first:] & 15, raw[:, first:] >> 4], axis=1)
    if blocks == "Q4_0":
        return np.asarray((nibbles.astype(np.float32) - np.float32(8)) * scale, np.float32).reshape(-1)
    if blocks == "Q4_1":
        least = raw[:, 2:4].copy().view("<f2").astype(np.float32)
        return np.asarray(nibbles.astype(np.float32) * scale + least, np.float32).reshape(-1)
    raise HilbertflowError(
        f"{blocks} blocks are kept as bytes, their values are not known", remedy="use Q8_0, Q4_0, Q4_1"
    )


def _block(name: str) -> tuple[str, int, int]:
    for block in BLOCKS.values():
        if block[0] == name:
            return block
    raise HilbertflowError(f"unknown block format {name!r}")
