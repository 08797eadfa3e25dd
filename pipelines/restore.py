"""Bring back what was archived, at any level, streamed: safetensors for a model, .npy or Parquet for a collection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq

from operators.errors import HilbertflowError
from operators.floats import round_to
from operators.row_blocks import vector_matrix
from pipelines import source_order
from storage import archive
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.handle import Level
from storage.model import ModelArchive, seen
from storage.rowlog import RowLog, View
from storage.tensor_file import TensorFile, safetensors_header

Tick = Callable[[int, int], None]


def restore(url: str, out: str, level: Level = "exact", tensor: str | None = None, tick: Tick | None = None) -> int:
    """Write the archive at ``url``, or one tensor of it, to the file ``out``; returns the bytes written.

    ``out`` ends in ``.safetensors`` (models, in the source's dtypes), ``.npy`` (one tensor, or a collection's vectors)
    or ``.parquet`` (a collection with ids and metadata): its rows as they stand, those of the source in their order,
    then those put in since. The file appears whole or not at all. ``tick(done, total)`` reports bytes.
    """
    handle = archive.open(url)
    handle.check_level(level)
    suffix = Path(out).suffix
    if isinstance(handle, ModelArchive):
        if tensor is None and suffix == ".safetensors":
            return _write(out, lambda file: _safetensors(handle, level, file, tick))
        if tensor is not None and suffix in (".safetensors", ".npy"):
            chosen = TensorFile(handle[tensor], level, "npy" if suffix == ".npy" else "safetensors")
            return _write(out, lambda file: _tensor(chosen, file, tick))
        raise HilbertflowError(
            f"a model does not restore to {suffix or 'a file without suffix'}", where=out,
            remedy="use OUT.safetensors, or --tensor NAME and OUT.npy",
        )  # fmt: skip
    if tensor is not None:
        raise HilbertflowError("a collection has no tensors", where=url, remedy="leave --tensor out")
    if suffix in (".npy", ".parquet"):
        view, rows = RowLog(handle).view, _npy_rows if suffix == ".npy" else _parquet
        return _write(out, lambda file: rows(view, level, file, tick))
    raise HilbertflowError(
        f"a collection does not restore to {suffix or 'a file without suffix'}", where=out,
        remedy="use OUT.npy or OUT.parquet",
    )  # fmt: skip


def _write(out: str, fill: Callable[[BinaryIO], None]) -> int:
    place = Location(out)
    with place.create() as file:
        fill(file)
    return place.size()


def _safetensors(handle: ModelArchive, level: Level, file: BinaryIO, tick: Tick | None) -> None:
    metadata = handle.attributes.get("metadata")
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in handle:
        place = seen(handle[name].place, level)
        header[name] = {
            "dtype": place.dtype, "shape": list(place.shape), "data_offsets": [offset, offset + place.nbytes]
        }  # fmt: skip
        offset += place.nbytes
    file.write(safetensors_header(header))
    done = 0
    for piece in _all_bytes(handle, level):
        file.write(piece)
        done += len(piece)
        if tick:
            tick(done, offset)


def _all_bytes(handle: ModelArchive, level: Level) -> Iterator[memoryview]:
    """Every tensor in its own dtype, in order of position; levels below exact are rounded to that dtype."""
    for place, piece in handle.pieces(level):
        lossy = level != "exact" and not place.opaque
        yield np.ascontiguousarray(round_to(piece, place.dtype) if lossy else piece).data.cast("B")


def _tensor(chosen: TensorFile, file: BinaryIO, tick: Tick | None) -> None:
    done = 0
    for piece in chosen.read():
        file.write(piece)
        done += len(piece)
        if tick:
            tick(done, chosen.size)


def _npy_rows(view: View, level: Level, file: BinaryIO, tick: Tick | None) -> None:
    _npy_header(file, np.dtype(np.float32), (view.count, view.base.dim))
    for batch in source_order.batches(view, level, False, _in_bytes(view.base, tick)):
        file.write(vector_matrix(batch).tobytes())


def _parquet(view: View, level: Level, file: BinaryIO, tick: Tick | None) -> None:
    writer = None
    for batch in source_order.batches(view, level, True, _in_bytes(view.base, tick)):
        writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
        writer.write_table(batch.cast(writer.schema))
    if writer:
        writer.close()


def _in_bytes(handle: CollectionArchive, tick: Tick | None) -> Callable[[int], None] | None:
    if tick is None:
        return None
    row = 4 * handle.dim
    return lambda rows: tick(rows * row, handle.count * row)


def _npy_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
