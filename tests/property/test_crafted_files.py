"""Files that are made to hold a reader up: refused or read within 5 seconds and 1 GB, and an error tells the place.

Each is read in a process of its own, forked from one that has the readers loaded; the kernel says what it took.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS, BYTES = 5, 1_000_000_000
MOST = 99_990
"""Just beneath the number of tensors that a file may name."""

READER = """
import json, os, resource, sys
from operators.errors import HilbertflowError
from storage.checkpoint import open_checkpoint
from storage.vectors import open_vectors

for line in sys.stdin:
    path = line.strip()
    inlet, outlet = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))  # a test that hangs fails
        said = {}
        try:
            if path.endswith((".npz", ".npy", ".jsonl", ".fvecs", ".parquet", ".arrow")):
                source = open_vectors(path)
                source.check()
                said["rows"] = source.read(0, min(source.count, 128)).num_rows
            else:
                said["tensors"] = len(open_checkpoint(path).tensors)
        except HilbertflowError as error:
            said = {"where": error.where, "what": str(error)}
        except BaseException as error:
            said = {"crash": f"{type(error).__name__}: {error}"[:500]}
        os.write(outlet, json.dumps(said).encode()[:60_000])
        os._exit(0)
    _, status, took = os.wait4(child, 0)
    os.close(outlet)
    with os.fdopen(inlet) as pipe:
        said = pipe.read()
    said = json.loads(said) if said else {"crash": f"ended by signal {status & 127}"}
    print(json.dumps(said | {"seconds": took.ru_utime + took.ru_stime, "bytes": took.ru_maxrss * 1024}), flush=True)
"""

Empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def repeated(name: str) -> bytes:
    entry = f'"{name}":{json.dumps(Empty)}'
    return safetensors(f"{{{entry},{entry}}}".encode())


def words(number: int) -> str:
    """Twelve words of which no other name has one."""
    return ".".join(f"{number * 12 + at:x}_norm_" for at in range(12))


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


STORAGE = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x0ctQ"
VIEW = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0%s%s\x89}tR"
TENSOR = VIEW % (b"K\x03K\x04\x86", b"K\x04K\x01\x86")
MANY_NAMES = text(b"a") + TENSOR + b"q\x01" + b"".join(text(b"%d" % i) + b"h\x01" for i in range(MOST))
TWICE = b"q\0" + b"".join(b"0](h%ch%ceq%c" % (at, at, at + 1) for at in range(40))
"""Turns the value on the stack into a list that holds it twice, in a list that holds that twice …, 40 deep."""


def torch(program: bytes, record: bytes = bytes(48), compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + program)
        archive.writestr("a/data/0", record, compression)
    return buffer.getvalue()


def gguf(tensors: int, pairs: int, body: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + body


def called(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return called(b"a") + struct.pack("<IIQ", 9, kind, count) + body


def lying() -> bytes:
    """An archive whose array claims 2^60 rows."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 1), }".ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + bytes(64))
    return buffer.getvalue()


def zipped() -> bytes:
    """A matrix of 1.28 GB of zeros in 6 MB."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (320000000, 1), }".ljust(117) + b"\n"
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("x.npy", "w", force_zip64=True) as file:
        file.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head)
        for _ in range(80):
            file.write(bytes(16_000_000))
    return buffer.getvalue()


# name -> the file, and what the error says of place and fault; None where the file is read
CASES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "tensors.safetensors": (lambda: safetensors({f"m.layers.{i}.mlp.w": Empty for i in range(MOST)}), None),
    "words.safetensors": (lambda: safetensors({words(i): Empty for i in range(MOST)}), None),
    "word.safetensors": (lambda: safetensors({"_embed" * 20_000 + "!": Empty}), None),
    "more.safetensors": (
        lambda: safetensors({f"{i}": Empty for i in range(110_000)}),
        ": byte 8: the header lists more",
    ),
    "metadata.safetensors": (
        lambda: safetensors({"__metadata__": {f"{i}": "" for i in range(790_000)}, "t": Empty}),
        None,
    ),
    "deep.safetensors": (lambda: safetensors(b'{"a":' + b"[" * 90_000), ": byte 8: the header is not JSON"),
    "objects.safetensors": (lambda: safetensors(b'{"a":' * 90_000), ": byte 8: the header is not JSON"),
    "digits.safetensors": (lambda: safetensors(b'{"a":' + b"9" * 90_000 + b"}"), ": byte 8: the header is not JSON"),
    "doubled.safetensors": (lambda: repeated("a"), ": byte 68: the header names 'a' twice"),
    "inner.safetensors": (
        lambda: safetensors(b'{"a":{"dtype":"F32","dtype":"F32"}}'),
        ": byte 28: the header names 'dtype' twice",
    ),
    "header.safetensors": (lambda: safetensors(b"{}", length=1 << 60), ": byte 0: the header claims"),
    "sizes.safetensors": (
        lambda: safetensors({"a": Empty | {"shape": [1 << 60], "data_offsets": [0, 1 << 62]}}),
        ": tensor 'a': data_offsets",
    ),
    "sides.safetensors": (lambda: safetensors({"a": Empty | {"shape": [1 << 62] * 64}}), ": tensor 'a': shape"),
    "names.pt": (lambda: torch(b"}(" + MANY_NAMES + b"u."), None),
    "long.pt": (lambda: torch(b"}(" + text(b"k" * 400) + b"}(" + MANY_NAMES + b"uu."), None),
    "longer.pt": (
        lambda: torch(b"}(" + text(b"k" * 1_000_000) + b"}(" + MANY_NAMES + b"uu."),
        ": a/data.pkl: the name of a tensor",
    ),
    "number.pt": (lambda: torch(b"}(\x8b" + struct.pack("<I", 10_000) + b"\x7f" * 10_000 + TENSOR + b"u."), None),
    "opcodes.pt": (
        lambda: torch(b"]" + b"N0" * 600_000 + b"."),
        ": a/data.pkl, byte 1000002: its pickle cannot be read: it is too long",
    ),
    "tuples.pt": (lambda: torch(b"N" + b"\x85" * 990_000 + b"."), ": header: has no tensors"),
    "lists.pt": (lambda: torch(b"]" + TWICE + b"."), ": a/data.pkl: its pickle holds more than"),
    "storage.pt": (
        lambda: torch(b"(" + text(b"storage") + b"]" + TWICE + text(b"a") + b"NNtQ."),
        "an unknown storage of type list",
    ),
    "shapes.pt": (
        lambda: torch(b"(" + b"K\x01" * 400_000 + b"tq\x02" + b"0](" + VIEW % (b"h\x02", b"h\x02") * 20_000 + b"e."),
        ": a/data.pkl, byte ",
    ),
    "states.pt": (
        lambda: torch(
            b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(150_000)) + b"uq\x02"
            b"0](" + b"ca\nb\n)Rh\x02b" * 100_000 + b"e."
        ),
        ": a/data.pkl, byte ",
    ),
    "doubled.pt": (
        lambda: torch(b"}(" + text(b"a.b") + TENSOR + text(b"a") + b"}" + text(b"b") + TENSOR + b"su."),
        "two tensors are called 'a.b'",
    ),
    "sizes.pt": (
        lambda: torch(
            b"}" + text(b"a") + VIEW % (b"\x8a\x08" + struct.pack("<q", 1 << 60) + b"\x85", b"K\x01\x85") + b"s."
        ),
        ": tensor 'a': bytes 0 to 4,611,686,018,427,387,904 reach past its record",
    ),
    "bomb.pt": (
        lambda: torch(b"}" + text(b"a") + TENSOR + b"s.", bytes(1 << 28), zipfile.ZIP_DEFLATED),
        ": tensor 'a': its record",
    ),
    "strings.gguf": (lambda: gguf(0, 1, array(8, 1_999_990, bytes(8 * 1_999_990))), ": header: has no tensors"),
    "more.gguf": (
        lambda: gguf(0, 1, array(8, 3_000_000, bytes(8 * 3_000_000))),
        ": byte 49: the array a claims 3,000,000",
    ),
    "arrays.gguf": (lambda: gguf(0, 1, array(9, 99_990, array(0, 0)[13:] * 99_990)), ": header: has no tensors"),
    "nested.gguf": (
        lambda: gguf(0, 1, array(9, 1, (array(9, 1)[13:]) * 90)),
        ": byte 97: the value of a nests arrays deeper than 5",
    ),
    "tensors.gguf": (
        lambda: gguf(MOST, 0, b"".join(called(b"%d" % i) + struct.pack("<IQIQ", 1, 0, 0, 0) for i in range(MOST))),
        None,
    ),
    "doubled.gguf": (
        lambda: gguf(2, 0, (called(b"a") + struct.pack("<IQIQ", 1, 0, 0, 0)) * 2 + bytes(32)),
        ": tensor 'a': its name comes twice",
    ),
    "keys.gguf": (
        lambda: gguf(0, 2, (called(b"a") + struct.pack("<IB", 0, 1)) * 2),
        ": byte 47: the key 'a' comes twice",
    ),
    "sizes.gguf": (
        lambda: gguf(1, 0, called(b"a") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0)),
        ": tensor 'a': its 4,611",
    ),
    "count.gguf": (lambda: gguf(1 << 60, 0, b""), ": byte 24: it claims"),
    "length.gguf": (lambda: gguf(1, 0, struct.pack("<Q", 1 << 60)), ": byte 32: the name of a tensor claims"),
    "bomb.npz": (zipped, None),
    "sizes.npz": (lying, ": x.npy, byte 192: shape (1152921504606846976, 1)"),
    "footer.parquet": (lambda: b"PAR1" + bytes(64) + b"\xff\xff\xff\x7fPAR1", ": footer, byte 76: is not a Parquet"),
    "footer.arrow": (
        lambda: b"ARROW1\0\0" + bytes(64) + b"\xff\xff\xff\x7fARROW1",
        ": footer, byte 82: is not an Arrow IPC",
    ),
    "sizes.npy": (
        lambda: (
            b"\x93NUMPY\x01\0"
            + struct.pack("<H", 80)
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 1)}".ljust(79)
            + b"\n"
        ),
        "from byte 90",
    ),
    "sizes.fvecs": (lambda: struct.pack("<I", 1 << 30) + bytes(60), ": row 0, byte 0: claims 1,073,741,824"),
    "deep.jsonl": (lambda: b'{"vector": ' + b"[" * 100_000 + b"\n", ": line 1, byte 0: is not JSON"),
}


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("name", CASES)
def test_a_crafted_file(name: str, reader: subprocess.Popen[str], tmp_path: Path) -> None:
    make, says = CASES[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert reader.stdin is not None and reader.stdout is not None
    reader.stdin.write(f"{path}\n")
    reader.stdin.flush()
    said = json.loads(reader.stdout.readline())
    print(f"{name}: {said['seconds']:.2f} s, {said['bytes'] / 1e6:.0f} MB in all, {said.get('what', 'read')}")
    assert "crash" not in said, said["crash"]
    assert said["seconds"] < SECONDS and said["bytes"] < BYTES
    if says is None:
        assert said.get("tensors") or said.get("rows"), said
    else:
        assert f"{path}{says}" in said["what"] or (not says.startswith(":") and says in said["what"]), said["what"]
        assert said["where"].startswith(str(path))
