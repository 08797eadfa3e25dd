"""Signatures of checkpoints: gathered while their planes stream by, kept as one small table beside the archive.

What a unit adds lies under ``scratch/`` until the archive is finished; then the sums are added in the order of units
and `signature.parquet` is written. Models archived before there were signatures have theirs computed from the archive.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import HilbertflowError
from operators.floats import dtype_info, to_float32
from operators.signature import Collector, Signature, TensorSketch, role_of
from operators.sketch import LINEAR, MOMENTS, Matrix, Sums, anchors, sums
from operators.sketch_sums import PROBES
from storage.checkpoint import Checkpoint
from storage.gguf import BLOCKS, DEQUANTIZED, dequantize, logical_shape
from storage.held import Read
from storage.tensors import TensorSpec

if TYPE_CHECKING:
    from storage.model import ModelArchive

F32 = npt.NDArray[np.float32]
KEY = "signature.parquet"
VERSION = "2"
"""Of the probes: signatures of different ones cannot be compared."""
TOKENS = 4096
"""The anchors are made of the embeddings of so many tokens."""
TABLE = 8192
"""Of a table of embeddings only so many tokens are looked at."""
LEAST = 8
"""Matrices with a shorter side have no sketch."""
# What the sums over a tensor's values in a unit are kept as: a row a tensor, arrays as their bytes.
_ARRAYS = {
    "matrix": "<i8", "moments": "<f8", "rows": "<f8", "linear": "<f8", "columns": "<f4", "squares": "<f4",
    "broken": "<i8", "probes": "<f4", "lengths": "<f8",
}  # fmt: skip
_UNIT = pa.schema({"name": pa.string(), "kind": pa.string()} | dict.fromkeys(_ARRAYS, pa.large_binary()))
_INWARD, _OUTWARD = ("query", "key", "value", "qkv", "gate", "up", "head"), ("attention out", "down")


@dataclass(frozen=True)
class Frame:
    """What the sketches of a model's tensors have in common.

    Parameters
    ----------
    width: of the residual stream; 0 where the model has no table of embeddings.
    anchor: (width, 32) probes that turn with it; None without.
    """

    width: int = 0
    anchor: F32 | None = None


def frame_of(checkpoint: Checkpoint, read: Read | None = None) -> Frame:
    """Read the first tokens' embeddings: at most 4,096 rows of one tensor, by ``read`` where one is given."""
    tables = [spec for spec in checkpoint.tensors if spec.kind == "embedding" and shape_of(spec) is not None]
    if not tables:
        return Frame()
    table = max(tables, key=lambda spec: prod(logical_shape(spec)))
    shape = logical_shape(table)
    if len(shape) != 2 or shape[0] < shape[1] // 4:
        return Frame()
    rows = min(shape[0], TOKENS)
    data = (read or checkpoint.read)(table, 0, table.nbytes // shape[0] * rows)
    return _frame(values_of(table, data).reshape(rows, shape[1]))


def shape_of(spec: TensorSpec) -> tuple[int, ...] | None:
    """Shape of the values of a tensor that has a sketch; None for vectors, integers and unknown blocks."""
    shape = logical_shape(spec)
    if len(shape) < 2 or min(shape[0], prod(shape[1:])) < LEAST:
        return None
    if spec.blocks:
        return shape if spec.blocks in DEQUANTIZED else None
    return shape if dtype_info(spec.dtype).lossy or spec.dtype == "I8" else None


def values_of(spec: TensorSpec, data: bytes) -> F32:
    """Bytes of a tensor, whole words or blocks, as float32; int8 as they are: their scale is of no account."""
    if spec.blocks:
        return dequantize(data, spec.blocks)
    if spec.dtype == "I8":
        return np.frombuffer(data, np.int8).astype(np.float32)
    word = np.frombuffer(data, f"<u{dtype_info(spec.dtype).width}")
    return to_float32(word, spec.dtype)


def matrix_of(name: str, shape: tuple[int, ...], kind: str, frame: Frame) -> Matrix:
    """Which sums a tensor gets: neurons lie along the axis that is not the residual stream; both where none is."""
    rows, columns = shape[0], prod(shape[1:])
    along, across = bool(frame.width) and columns == frame.width, bool(frame.width) and rows == frame.width
    if along and across:  # a square one: its name tells on which side the residual stream is
        inward = kind == "embedding" or role_of(name) in _INWARD
        along, across = (True, False) if inward else (role_of(name) not in _OUTWARD, True)
    known = along or across
    first = TABLE if kind == "embedding" and rows > TABLE else 0
    return Matrix(rows, columns, along or not known, across or not known, along, across, first)


def unit_sums(checkpoint: Checkpoint, frame: Frame, runs: Iterable[tuple[TensorSpec, int, bytes]]) -> bytes:
    """Sums over what a unit holds of its tensors, as bytes.

    runs: a tensor, at which byte of it the bytes begin, and the bytes. Blocks that begin in a run belong to it, and
    their end is read if it lies beyond.
    """
    found = []
    for spec, start, data in runs:
        shape = shape_of(spec)
        if shape is None:
            continue
        width, per = _grain(spec)
        matrix = matrix_of(spec.name, shape, spec.kind, frame)
        end = _end(matrix, spec)
        low, high = -(-start // width) * width, min(end, -(-(start + len(data)) // width) * width)
        if low >= high:
            continue
        piece = data[low - start : high - start]
        if start + len(data) < high:
            piece += checkpoint.read(spec, start + len(data), high)
        part = sums(matrix, values_of(spec, piece), low // width * per, frame.anchor)
        found.append({"name": spec.name, "kind": spec.kind} | {k: a.tobytes() for k, a in _arrays(part).items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _UNIT) as out:
        out.write_table(pa.Table.from_pylist(found, _UNIT))
    return sink.getvalue()


def sums_bytes(spec: TensorSpec, frame: Frame) -> int:
    """The most bytes of what :func:`unit_sums` gives for a tensor, names and headers of its arrays with it."""
    shape = shape_of(spec)
    if shape is None:
        return 0
    matrix = matrix_of(spec.name, shape, spec.kind, frame)
    columns = matrix.columns * (2 * matrix.column_probes + 1) if matrix.along_columns else 0
    return 8 * (2 * PROBES * PROBES + LINEAR + MOMENTS) + 4 * columns + 6000 + 20 * len(spec.name)


def merged(units: Iterable[bytes], parameters: int) -> Signature:
    """The signature from what :func:`unit_sums` gave, in the order of units."""
    collector = Collector(parameters)
    for data in units:
        for row in pa.ipc.open_stream(data).read_all().to_pylist():
            collector.add(row["name"], row["kind"], _sums(row))
    return collector.finish()


def of_checkpoint(checkpoint: Checkpoint) -> Signature:
    """The signature of a checkpoint that is not archived; a few megabytes of each tensor are held at a time."""
    frame = frame_of(checkpoint)
    collector = Collector(sum(prod(logical_shape(spec)) for spec in checkpoint.tensors))
    for spec in checkpoint.tensors:
        shape = shape_of(spec)
        if shape is None:
            continue
        width, per = _grain(spec)
        step = max(1, (4 << 20) // width) * width
        matrix = matrix_of(spec.name, shape, spec.kind, frame)
        end = _end(matrix, spec)
        for low in range(0, end, step):
            data = checkpoint.read(spec, low, min(end, low + step))
            collector.add(spec.name, spec.kind, sums(matrix, values_of(spec, data), low // width * per, frame.anchor))
    return collector.finish()


def kept(handle: ModelArchive) -> Signature | None:
    """The signature kept with an archive; None where there is none, or one of probes that are not today's."""
    return load(handle.head(KEY), handle.url) if KEY in handle.manifest.heads else None


def of_archive(handle: ModelArchive) -> Signature:
    """The signature kept with an archive; computed from its finest level where there is none."""
    stored = kept(handle)
    if stored is not None:
        return stored
    level, layout = handle.levels[-1], handle.layout
    frame = Frame()
    looked_at = [p for p in layout.placements if _sketched(p.shape, p.dtype)]
    tables = [p for p in looked_at if p.kind == "embedding" and len(p.shape) == 2 and p.shape[0] >= p.shape[1] // 4]
    if tables:
        table = max(tables, key=lambda p: p.words)
        rows = handle[table.name].read(level, slice(0, TOKENS))
        frame = _frame(np.asarray(rows, np.float32))
    collector = Collector(sum(prod(p.shape) for p in layout.placements))
    done: dict[str, int] = {}
    sketched = {p.name for p in looked_at}
    for place, piece in handle.pieces(level):
        if place.name not in sketched:
            continue
        values = piece if piece.dtype == np.float32 else to_float32(piece, place.dtype)
        matrix = matrix_of(place.name, place.shape, place.kind, frame)
        collector.add(place.name, place.kind, sums(matrix, values, done.get(place.name, 0), frame.anchor))
        done[place.name] = done.get(place.name, 0) + values.size
    return collector.finish()


def dump(signature: Signature) -> bytes:
    """As Parquet: a row a tensor, the code among the schema's metadata."""
    rows = signature.tensors
    table = pa.table(
        {
            "name": pa.array([t.name for t in rows], pa.string()),
            "kind": pa.array([t.kind for t in rows], pa.string()),
            "rows": pa.array([t.rows for t in rows], pa.int64()),
            "columns": pa.array([t.columns for t in rows], pa.int64()),
            "moments": pa.array([t.moments.tobytes() for t in rows], pa.binary()),
            "linear": pa.array([t.linear.tobytes() for t in rows], pa.binary()),
            "views": pa.array([sum(1 << view for view in t.views) for t in rows], pa.int8()),
            "products": pa.array(
                [b"".join(v.tobytes() for _, v in sorted(t.views.items())) for t in rows], pa.binary()
            ),
        },
        metadata={"code": signature.code.tobytes(), "parameters": str(signature.parameters), "probes": VERSION},
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["kind"], write_statistics=False)
    return sink.getvalue()


def load(data: bytes, where: str = "") -> Signature | None:
    """What :func:`dump` wrote; None where that was of other probes. Raises for anything else."""
    try:
        table = pq.read_table(io.BytesIO(data))
        about = table.schema.metadata
        code = np.frombuffer(about[b"code"], np.int8)
        if about.get(b"probes") != VERSION.encode():
            return None
        rows = [_tensor(row) for row in table.to_pylist()]
        return Signature(tuple(rows), code, int(about[b"parameters"]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise HilbertflowError(
            "is no signature", where=f"{where}/{KEY}", remedy="`hilbertflow verify` compares checksums"
        ) from error  # fmt: skip


def _tensor(row: dict[str, Any]) -> TensorSketch:
    numbers = [view for view in range(4) if row["views"] >> view & 1]
    products = np.frombuffer(row["products"], np.int8)
    split = np.split(products, len(numbers)) if numbers else []
    return TensorSketch(
        row["name"], row["kind"], row["rows"], row["columns"], np.frombuffer(row["moments"], np.float32),
        np.frombuffer(row["linear"], np.float32), dict(zip(numbers, split, strict=True)),
    )  # fmt: skip


def _frame(rows: F32) -> Frame:
    return Frame(rows.shape[1], anchors(rows)) if rows.shape[1] >= 2 * PROBES else Frame()


def _sketched(shape: tuple[int, ...], dtype: str) -> bool:
    return len(shape) > 1 and min(shape[0], prod(shape[1:])) >= LEAST and dtype_info(dtype).lossy


def _grain(spec: TensorSpec) -> tuple[int, int]:
    """Bytes that stand for values together, and how many values."""
    for name, values, width in BLOCKS.values():
        if name == spec.blocks:
            return width, values
    return dtype_info(spec.dtype).width, 1


def _end(matrix: Matrix, spec: TensorSpec) -> int:
    """Bytes of a tensor up to the last value that is looked at."""
    width, per = _grain(spec)
    return min(spec.nbytes, -(-matrix.seen * matrix.columns // per) * width)


def _arrays(part: Sums) -> dict[str, npt.NDArray[Any]]:
    m = part.matrix
    shape = [m.rows, m.columns, m.first, m.along_rows, m.along_columns, m.anchored_rows, m.anchored_columns]
    broken = sorted(part.broken.items())
    return {
        "matrix": np.array(shape, np.int64), "moments": part.moments, "rows": part.rows, "linear": part.linear,
        "columns": part.columns, "squares": part.squares,
        "broken": np.array([row for row, _ in broken], np.int64),
        "probes": np.array([probes for _, (probes, _) in broken], np.float32).reshape(-1, 2, PROBES),
        "lengths": np.array([square for _, (_, square) in broken], np.float64),
    }  # fmt: skip


def _sums(row: Mapping[str, bytes]) -> Sums:
    held = {name: np.frombuffer(row[name], dtype) for name, dtype in _ARRAYS.items()}
    rows, columns, first, *flags = held["matrix"].tolist()
    by_rows, by_columns, along, across = map(bool, flags)
    matrix = Matrix(rows, columns, by_rows, by_columns, along, across, first)
    probes = held["probes"].reshape(-1, 2, PROBES)
    broken = zip(held["broken"].tolist(), probes, held["lengths"].tolist(), strict=True)
    return Sums(
        matrix, held["moments"].copy(), held["rows"].reshape(2, PROBES, PROBES).copy(), held["linear"].copy(),
        held["columns"].reshape(2, -1, held["squares"].size) if by_columns else np.zeros((0, 0, 0), np.float32),
        held["squares"], {row: (probes, square) for row, probes, square in broken},
    )  # fmt: skip
