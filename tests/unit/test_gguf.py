"""GGUF files: bytes kept exactly, blocks dequantized as ggml does, headers that lie refused."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.errors import HilbertflowError
from storage.checkpoint import open_checkpoint
from storage.fs import Location
from storage.gguf import dequantize, logical_shape, read_gguf
from tests.fixtures import block_tensors, gguf_text, write_gguf


def pair(key: str, kind: int, value: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + value


def half(data: bytes) -> float:
    return float(np.frombuffer(data, "<f2")[0])


def slowly(data: bytes, blocks: str) -> list[np.float32]:
    """The loops of ggml-quants.c, one value after another."""
    one, out = np.float32, []
    if blocks == "Q8_0":
        for at in range(0, len(data), 34):
            d = one(half(data[at : at + 2]))
            out += [one(struct.unpack("b", data[at + 2 + j : at + 3 + j])[0]) * d for j in range(32)]
    if blocks == "Q4_0":
        for at in range(0, len(data), 18):
            d, q = one(half(data[at : at + 2])), data[at + 2 : at + 18]
            out += [one((byte & 15) - 8) * d for byte in q] + [one((byte >> 4) - 8) * d for byte in q]
    if blocks == "Q4_1":
        for at in range(0, len(data), 20):
            d, m, q = one(half(data[at : at + 2])), one(half(data[at + 2 : at + 4])), data[at + 4 : at + 20]
            out += [one(byte & 15) * d + m for byte in q] + [one(byte >> 4) * d + m for byte in q]
    return out


def test_bytes_and_shapes(tmp_path: Path) -> None:
    tensors = block_tensors()
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", tensors))
    assert [spec.name for spec in checkpoint.tensors] == list(tensors)
    for spec in checkpoint.tensors:
        assert checkpoint.read(spec) == tensors[spec.name][2]
        assert logical_shape(spec) == tensors[spec.name][1]
    assert checkpoint["blk.0.q4_1.weight"].dtype == "U8" and checkpoint["blk.0.q4_1.weight"].shape == (6, 40)
    assert (checkpoint["blk.0.bf16"].dtype, checkpoint["blk.0.bf16"].shape) == ("BF16", (3, 7))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_dequantize_is_ggml_bit_for_bit(name: str) -> None:
    data = block_tensors()[f"blk.0.{name}.weight"][2]
    fast = dequantize(data, name.upper())
    assert fast.dtype == np.float32
    np.testing.assert_array_equal(
        fast.view(np.uint32), np.array(slowly(data, name.upper()), np.float32).view(np.uint32)
    )


def test_dequantize_refuses_what_it_does_not_know() -> None:
    with pytest.raises(HilbertflowError, match="no whole number of Q4_0 blocks"):
        dequantize(bytes(19), "Q4_0")
    with pytest.raises(HilbertflowError, match="kept as bytes"):
        dequantize(bytes(210), "Q6_K")
    with pytest.raises(HilbertflowError, match="unknown block format"):
        dequantize(bytes(1), "Q9_9")


def test_metadata_of_every_type(tmp_path: Path) -> None:
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    keys = [pair(f"n{kind}", kind, struct.pack(f"<{form}", 1)) for kind, form in forms.items()]
    keys.append(pair("text", 8, gguf_text("é")))
    keys.append(pair("numbers", 9, struct.pack("<IQ3i", 5, 3, 1, 2, 3)))
    keys.append(pair("texts", 9, struct.pack("<IQ", 8, 2) + gguf_text("a") + gguf_text("b" * 3_000_000)))
    keys.append(pair("nested", 9, struct.pack("<IQIQ2B", 9, 1, 0, 2, 1, 2)))
    keys.append(pair("general.alignment", 4, struct.pack("<I", 64)))
    path = write_gguf(tmp_path / "x.gguf", block_tensors(), b"".join(keys), len(keys), 64)
    specs, metadata = read_gguf(Location(path))
    assert [spec.name for spec in specs] == list(block_tensors())
    assert metadata["text"] == "é" and metadata["n12"] == 1.0 and metadata["n7"] is True
    assert (metadata["numbers"], metadata["texts"], metadata["nested"]) == (3, 2, 1)


def header(tensors: int = 1, pairs: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, pairs)


def entry(name: str = "a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 60
LIES: dict[str, tuple[bytes, str]] = {
    "not gguf": (b"GGML" + bytes(60), "is not a GGUF file"),
    "empty": (b"", "is not a GGUF file"),
    "version 1": (header(version=1), "of version 1"),
    "big-endian": (header(version=0x03000000), "big-endian"),
    "2^60 tensors": (header(HUGE), "claims 1,152,921,504,606,846,976 tensors"),
    "2^60 keys": (header(0, HUGE), "keys"),
    "name of 2^60": (header() + struct.pack("<Q", HUGE), "claims 1,152,921,504,606,846,976 bytes"),
    "name past the end": (header() + struct.pack("<Q", 5000), "past the end"),
    "name not utf-8": (header() + struct.pack("<Q", 2) + b"\xff\xfe", "not UTF-8"),
    "rank": (header() + gguf_text("a") + struct.pack("<I", 1 << 31), "dimensions"),
    "side of 2^60": (header() + entry(shape=(HUGE,)) + bytes(64), "past the end of the file"),
    "product that wraps": (header() + entry(shape=(1 << 62, 4)) + bytes(64), "past the end of the file"),
    "unknown type": (header() + entry(kind=99) + bytes(64), "type 99 is not known"),
    "removed type": (header() + entry(kind=4) + bytes(64), "type 4 is not known"),
    "broken block": (header() + entry(shape=(33,), kind=2) + bytes(64), "no whole number of Q4_0 blocks"),
    "scalar block": (header() + entry(shape=(), kind=2) + bytes(64), "no whole number of Q4_0 blocks"),
    "not aligned": (header() + entry(offset=8) + bytes(96), "not aligned"),
    "offset 2^60": (header() + entry(offset=HUGE) + bytes(64), "past the end of the file"),
    "overlap": (header(2) + entry() + entry("b") + bytes(64), "overlaps tensor 'a'"),
    "twice": (header(2) + entry() + entry(offset=32) + bytes(96), "comes twice"),
    "hole": (header() + entry(offset=64) + bytes(160), "leaves 64 bytes unused"),
    "bytes over": (header() + entry() + bytes(160), "belong to none"),
    "unknown value": (header(0, 1) + pair("k", 77, b""), "unknown type 77"),
    "array of 2^60": (header(0, 1) + pair("k", 9, struct.pack("<IQ", 4, HUGE)), "claims"),
    "strings 2^60": (header(0, 1) + pair("k", 9, struct.pack("<IQ", 8, HUGE)), "claims"),
    "string of 2^60": (header(0, 1) + pair("k", 9, struct.pack("<IQQ", 8, 1, HUGE)), "past the end"),
    "arrays in arrays": (header(0, 1) + pair("k", 9, struct.pack("<IQ", 9, 1) * 9), "nests arrays deeper than 5"),
    "key twice": (header(0, 2) + 2 * pair("k", 0, b"1"), "comes twice"),
    "alignment 0": (header(1, 1) + pair("general.alignment", 4, bytes(4)) + entry() + bytes(64), "power of two"),
    "alignment 3": (header(1, 1) + pair("general.alignment", 4, struct.pack("<I", 3)) + entry(), "power of two"),
    "alignment text": (header(1, 1) + pair("general.alignment", 8, gguf_text("32")) + entry(), "power of two"),
    "no tensors": (header(0), "has no tensors"),
}  # fmt: skip


def test_the_strings_of_all_arrays_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.gguf._MAX_STRINGS", 100)
    arrays = b"".join(pair(key, 9, struct.pack("<IQ", 8, 40) + bytes(320)) for key in "abc")
    (tmp_path / "x.gguf").write_bytes(header(0, 3) + arrays)
    with pytest.raises(HilbertflowError, match="the array c claims 40 values"):
        read_gguf(Location(str(tmp_path / "x.gguf")))


@pytest.mark.parametrize("case", LIES)
def test_lying_headers_are_refused_at_once(tmp_path: Path, case: str) -> None:
    data, says = LIES[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    begin = time.process_time()
    with pytest.raises(HilbertflowError, match=says) as caught:
        open_checkpoint(str(path))
    assert str(path) in str(caught.value)
    assert time.process_time() - begin < 1


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = Path(write_gguf(tmp_path / "x.gguf", block_tensors())).read_bytes()
    cuts: Any = [*range(0, 700, 7), *range(700, len(whole) - 32, 97)]
    for length in cuts:
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        with pytest.raises(HilbertflowError):
            open_checkpoint(str(tmp_path / "x.gguf"))
