"""Every reader on damaged files: a clear error or a result, never a crash, a hang, an execution or a large allocation.

300 damaged files a reader; HILBERTFLOW_FUZZ=10000 for the long mode.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import resource
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators import hfz, pictures
from operators.errors import HilbertflowError, at
from storage import python_scan
from storage.checkpoint import open_checkpoint
from storage.document_text import Unreadable, chunks, document_text
from storage.hfz import compress, decompress_file
from storage.vectors import open_vectors
from tests.fixtures import block_tensors, gguf_text, odd_tensors, write_gguf, write_safetensors

CASES = int(os.environ.get("HILBERTFLOW_FUZZ", "300"))
VALUES = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
TABLE = pa.table(
    {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(VALUES.reshape(-1)), 9),
        "id": [f"id-{i}" for i in range(300)],
        "group": pa.array(["a", "b", "c"] * 100).dictionary_encode(),
        "lists": pa.array([[i, i + 1] for i in range(300)]),
    }
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 60,
            (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


def written(write: Callable[[Path], Any], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write(path)
        return path.read_bytes()


def some_tensors() -> dict[str, Any]:
    chosen = (
        "F32.scalar",
        "F32.special",
        "BF16.prime",
        "I64.empty_front",
        "BOOL.five",
        "F8_E4M3.every_value",
        "U8.one",
    )
    tensors = odd_tensors()
    return {name: tensors[name] for name in chosen}


def consume_checkpoint(path: Path) -> None:
    checkpoint = open_checkpoint(str(path))
    for spec in checkpoint.tensors:
        assert len(checkpoint.read(spec)) == spec.nbytes


def consume_vectors(path: Path) -> None:
    source = open_vectors(str(path))
    source.check()
    assert source.dim is not None and source.fingerprint
    for start in range(0, min(source.count, 4000), 128):
        stop = min(source.count, start + 128)
        rows = source.read(start, stop)
        rows.validate(full=True)
        assert rows.num_rows == stop - start
        assert np.isfinite(rows["vector"].combine_chunks().flatten().to_numpy()).all()


def consume_python(path: Path) -> None:
    python_scan.scan_file(str(path), "a.b")


def npz(compress: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, vector=VALUES, id=np.array([f"é{i}" for i in range(300)]))
    return buffer.getvalue()


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def torch_bytes() -> bytes:
    """What ``torch.save`` writes for two tensors, so that the test does without Torch."""
    import zipfile

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%dX\x03\0\0\0cpuK\x0ctQ"
    tensor = b"X\x01\0\0\0%sctorch._utils\n_rebuild_tensor_v2\n(%sK\0K\x03K\x04\x86K\x04K\x01\x86\x89}tR"
    body = b"".join(tensor % (name, storage % number) for number, name in enumerate((b"a", b"b")))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + body + b"u.")
        archive.writestr("archive/byteorder", b"little")
        for number in range(2):
            archive.writestr(f"archive/data/{number}", VALUES.tobytes()[:48])
    return buffer.getvalue()


GGUF_KEYS = b"".join(
    [
        gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("llama"),
        gguf_text("general.alignment") + struct.pack("<II", 4, 32),
        gguf_text("tokens") + struct.pack("<IIQ", 9, 8, 2) + gguf_text("a") + gguf_text("bc"),
    ]
)


def zarr_metadata() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/x.zarr", data=VALUES, chunks=(128, 9))
        return (Path(folder) / "x.zarr/zarr.json").read_bytes()


def zarr_chunk() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/x.zarr", data=VALUES, chunks=(128, 9))
        return (Path(folder) / "x.zarr/c/1/0").read_bytes()


def consume_zarr(path: Path, key: str = "zarr.json") -> None:
    """One object is damaged; the others are those of the valid array."""
    store = path.with_suffix("") / "store.zarr"
    if not store.exists():
        zarr.create_array(str(store), data=VALUES, chunks=(128, 9))
    (store / key).write_bytes(path.read_bytes())
    try:
        consume_vectors(store)
    except HilbertflowError as error:
        where = error.where.replace(f"{store}: ", f"{path}: ", 1)
        raise HilbertflowError(error.what, where=where, remedy=error.remedy) from error


def hdf5_bytes(**options: Any) -> bytes:
    h5py = pytest.importorskip("h5py", reason="writes an HDF5 file")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("train", data=VALUES, **options)
        file.create_dataset("ids", data=[f"é{i}" for i in range(300)])
    return buffer.getvalue()


def pdf_bytes() -> bytes:
    pypdf = pytest.importorskip("pypdf", reason="writes a PDF")
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(200, 200)
    name, entries = pypdf.generic.NameObject, pypdf.generic.DictionaryObject
    font = entries(
        {name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name("/Helvetica")}
    )
    page[name("/Resources")] = entries({name("/Font"): entries({name("/F1"): font})})
    content = pypdf.generic.DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf 20 100 Td (Some text) Tj ET")
    page[name("/Contents")] = writer._add_object(content.flate_encode())
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def docx_bytes() -> bytes:
    docx = pytest.importorskip("docx", reason="writes a Word document")
    document = docx.Document()
    document.add_paragraph("Some text")
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def image_bytes(kind: str) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="writes an image with Pillow")
    buffer = io.BytesIO()
    image.linear_gradient("L").save(buffer, kind)
    return buffer.getvalue()


def consume_document(path: Path) -> None:
    try:
        assert chunks(document_text(path.name, path.read_bytes()), 50, 5)
    except Unreadable as error:
        raise HilbertflowError(error.what, where=at(str(path), error.place)) from error


def consume_image(path: Path) -> None:
    pictures.check(path.read_bytes(), str(path))


def consume_hfz(path: Path) -> None:
    decompress_file(str(path), str(path.with_suffix(".npy")), 1 << 24)


def consume_resealed(path: Path) -> None:
    """The check sum is made to agree with the damage."""
    data = path.read_bytes()[:-4]
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    consume_hfz(path)


def packed_columns() -> bytes:
    return hfz.from_columns([compress(VALUES), compress(VALUES[:, :4])], len(VALUES), 13, np.float32)


# name -> suffix, maker of a valid file, what reads it
READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], None]]] = {
    "safetensors": (
        ".safetensors",
        lambda: written(lambda path: write_safetensors(path, some_tensors(), {"a": "b"}), ".safetensors"),
        consume_checkpoint,
    ),
    "gguf": (
        ".gguf",
        lambda: written(lambda path: write_gguf(path, block_tensors(), GGUF_KEYS, 3), ".gguf"),
        consume_checkpoint,
    ),
    "torch": (".pt", torch_bytes, consume_checkpoint),
    "npy": (".npy", lambda: npy(VALUES), consume_vectors),
    "npy-fortran": (".npy", lambda: npy(np.asfortranarray(VALUES.astype(np.float16))), consume_vectors),
    "npz": (".npz", lambda: npz(False), consume_vectors),
    "npz-compressed": (".npz", lambda: npz(True), consume_vectors),
    "parquet": (".parquet", lambda: written(lambda path: pq.write_table(TABLE, path), ".parquet"), consume_vectors),
    "parquet-zstd": (
        ".parquet",
        lambda: written(lambda path: pq.write_table(TABLE, path, compression="zstd", row_group_size=70), ".parquet"),
        consume_vectors,
    ),
    "feather": (
        ".feather",
        lambda: written(lambda path: feather.write_feather(TABLE, path), ".feather"),
        consume_vectors,
    ),
    "arrow": (
        ".arrow",
        lambda: written(lambda path: feather.write_feather(TABLE, path, "uncompressed", chunksize=64), ".arrow"),
        consume_vectors,
    ),
    "fvecs": (".fvecs", lambda: b"".join(b"\x09\0\0\0" + row.tobytes() for row in VALUES), consume_vectors),
    "jsonl": (".jsonl", lambda: "\n".join(map(json.dumps, TABLE.to_pylist())).encode(), consume_vectors),
    "vectors-safetensors": (
        ".safetensors",
        lambda: written(
            lambda path: write_safetensors(path, {"v": ("F32", VALUES.shape, VALUES.tobytes())}), ".safetensors"
        ),
        consume_vectors,
    ),
    "zarr": (".zarr", zarr_metadata, consume_zarr),
    "zarr-chunk": (".zarr", zarr_chunk, functools.partial(consume_zarr, key="c/1/0")),
    "hfz": (".hfz", lambda: compress(VALUES, size=14), consume_hfz),
    "hfz-resealed": (".hfz", lambda: compress(VALUES, size=14), consume_resealed),
    "hfz-exact": (".hfz", lambda: compress(VALUES), consume_resealed),
    "hfz-words": (".hfz", lambda: compress(VALUES.astype(np.float64)), consume_resealed),
    "hfz-columns": (".hfz", packed_columns, consume_resealed),
    "hdf5": (".h5", hdf5_bytes, consume_vectors),
    "hdf5-gzip": (".h5", functools.partial(hdf5_bytes, compression="gzip", chunks=(64, 4)), consume_vectors),
    "txt": (".txt", lambda: "Ein Text.\n\nNoch einer: é.".encode(), consume_document),
    "html": (
        ".html",
        lambda: b"<p>A <b>text</b>&amp;</p><script>no</script><table><tr><td>x</table>",
        consume_document,
    ),
    "pdf": (".pdf", pdf_bytes, consume_document),
    "docx": (".docx", docx_bytes, consume_document),
    "png": (".png", functools.partial(image_bytes, "PNG"), consume_image),
    "jpg": (".jpg", functools.partial(image_bytes, "JPEG"), consume_image),
    "python": (".py", lambda: Path(__file__).read_bytes(), consume_python),
}
_BYTE = r"byte \d+"
_ROW_BYTE = rf"(row \d+, )?{_BYTE}"
_MEMBER = rf"directory of the zip|.+, {_BYTE}"
_TENSORS = rf"{_BYTE}|tensor .+|header|__metadata__ of the header"
_PACKED = dict.fromkeys(("hfz", "hfz-resealed", "hfz-exact", "hfz-words", "hfz-columns"), _BYTE)
_PARQUET = r"schema(, column .+)?|footer(, byte \d+)?|row group \d+(, column .+)?, row \d+"
_ARROW = r"schema(, column .+)?|footer(, byte \d+)?|record batch \d+(, column .+)?, row \d+"
_HDF5 = rf"{_BYTE}|root group(, member .+)?|dataset .+(, chunk \(\d+, \d+\)( at byte \d+)?)?, row \d+(, {_BYTE})?"
# name -> what stands in an error behind the file: the place in it
PLACES = {
    "safetensors": _TENSORS, "gguf": _TENSORS,
    "torch": rf"{_TENSORS}|directory of the zip|.+/(data\.pkl|byteorder|data/.+)(, {_BYTE}|: tensor .+)?",
    "npy": _ROW_BYTE, "npy-fortran": _ROW_BYTE, "npz": _MEMBER, "npz-compressed": _MEMBER, "fvecs": _ROW_BYTE,
    "parquet": _PARQUET, "parquet-zstd": _PARQUET, "feather": _ARROW, "arrow": _ARROW,
    "jsonl": rf"(line \d+, )?{_BYTE}", "vectors-safetensors": rf"{_TENSORS}|tensor .+, row \d+, {_BYTE}",
    "zarr": rf"zarr\.json(, {_BYTE})?|array /|root group|c/\d+/\d+, row \d+", "zarr-chunk": r"c/1/0, row \d+",
    "hdf5": _HDF5, "hdf5-gzip": _HDF5, **_PACKED,
    "txt": rf"{_BYTE}|bytes 0 to \d+", "html": rf"{_BYTE}|line \d+|bytes 0 to \d+",
    "pdf": r"trailer|page \d+|bytes 0 to \d+", "docx": r"directory of the zip|\S.*", "png": _BYTE, "jpg": _BYTE,
}  # fmt: skip
SLOW = ("hdf5", "hdf5-gzip")  # its library loops on some files until it is stopped, which takes seconds
READ_ANYHOW = ("python",)
valid = functools.lru_cache(maxsize=None)(lambda name: READERS[name][1]())


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Steps of damage: what, where (as a fraction of the file), and with what."""
    places = st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.floats(0.9, 1))  # headers and footers more often
    kinds = st.sampled_from(["flip", "flip", "byte", "int32", "int64", "cut", "insert", "remove", "copy", "zero"])
    step = st.tuples(kinds, places, st.integers(0, (1 << 64) - 1))
    return draw(st.lists(step, min_size=1, max_size=4))


def apply(data: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    for kind, place, value in steps:
        at = min(int(place * len(data)), max(0, len(data) - 1))
        length = 1 + value % 64
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :]
        elif kind == "byte":
            data = data[:at] + bytes([value % 256]) + data[at + 1 :]
        elif kind in ("int32", "int64"):
            width = int(kind[3:]) // 8
            number = EXTREMES[value % len(EXTREMES)] % (1 << 8 * width)
            at -= at % 4  # lengths are aligned
            data = data[:at] + number.to_bytes(width, "little") + data[at + width :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + value.to_bytes(8, "little")[: 1 + value % 8] + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + length :]
        elif kind == "copy":
            data = data[:at] + data[:length] + data[at + length :]
        elif kind == "zero":
            data = data[:at] + bytes(length) + data[at + length :]
    return data


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_is_read(name: str, folder: Path) -> None:
    suffix, _, consume = READERS[name]
    path = folder / f"valid{suffix}"
    path.write_bytes(valid(name))
    consume(path)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_give_one_clear_error(name: str, folder: Path) -> None:
    suffix, _, consume = READERS[name]
    path = folder / f"{name}{suffix}"
    valid(name)
    before = peak()
    errors: set[str] = set()
    tried = 0

    @settings(
        max_examples=CASES // 5 if name in SLOW and CASES <= 300 else CASES, deadline=None, derandomize=CASES <= 300,
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damage())
    def read(steps: list[tuple[str, float, int]]) -> None:
        nonlocal tried
        tried += 1
        path.write_bytes(apply(valid(name), steps))
        begin = time.process_time()  # not the clock on the wall: the machine may be busy
        try:
            consume(path)
        except HilbertflowError as error:
            assert "\n" not in str(error)
            file, _, place = error.where.partition(": ")
            assert file == str(path) and re.fullmatch(PLACES[name], place, re.DOTALL), error.where
            errors.add(place)
        assert time.process_time() - begin < 5, "took longer than 5 seconds"

    read()
    assert errors or name in READ_ANYHOW, "no damage was noticed"
    print(f"{name}: {tried:,} files, errors at {len(errors)} places, as {', '.join(sorted(errors)[:3])}")
    assert peak() - before < 1e9, f"grew by {(peak() - before) / 1e6:.0f} MB"
