"""One accepted change of a collection: rows put in or deleted, checked, and the file that keeps them.

The file is an Arrow IPC stream (``id``, ``vector``, metadata; stock readers read it) with a head behind it::

    Arrow IPC stream | head, JSON | length of the head, 4 bytes | SHA-256 of the head, 32 bytes

The head says what the batch is, holds the SHA-256 of the stream and that of the head before it, so that a log is a
chain. It stands last so that one read of a file's end tells all but the rows.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError, at
from storage.rows import check_finite, vector_array

Op = Literal["upsert", "append", "delete"]
MAX_ID, MAX_KEY = 10_000, 200
MAX_BYTES = 1 << 30  # of the vectors of one batch: it is one object, and held in memory
TAIL = 4096  # so many bytes at the end of a file hold its head
FORMAT = 1


@dataclass(frozen=True)
class Batch:
    """Rows of one change, each id once.

    Parameters
    ----------
    op: ``upsert`` (new rows and new versions of rows), ``append`` (rows whose ids are new) or ``delete``.
    ids: large_string (n,).
    vectors: (n, dim) float32, finite; (0, dim) for a deletion.
    metadata: the collection's metadata columns, n rows; no columns for a deletion.
    """

    op: Op
    ids: pa.Array
    vectors: npt.NDArray[np.float32]
    metadata: pa.Table

    def stream(self) -> bytes:
        """As an Arrow IPC stream."""
        table = pa.table({"id": self.ids})
        if self.op != "delete":
            table = table.append_column("vector", vector_array(self.vectors))
            for name in self.metadata.column_names:
                table = table.append_column(self.metadata.schema.field(name), self.metadata.column(name))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table.combine_chunks())
        return sink.getvalue()


@dataclass(frozen=True)
class Head:
    """What a batch is, without its rows.

    Parameters
    ----------
    version: of the collection from this batch on, counted from 1.
    op, rows: what was done to how many ids.
    key: the writer's idempotency key, or empty.
    content: SHA-256 of the stream, ``stream`` its bytes.
    before: SHA-256 of the head of the version before; empty for the first.
    nonce: told at random, so that a writer knows its own file from another's of equal content.
    """

    version: int
    op: Op
    rows: int
    key: str
    content: str
    stream: int
    before: str
    nonce: str
    format: int = FORMAT

    def dump(self) -> bytes:
        """As it stands at the end of the file."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return text + struct.pack("<I", len(text)) + hashlib.sha256(text).digest()

    @property
    def sha256(self) -> str:
        """Its own hash, in hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_head(tail: bytes, where: str) -> Head:
    """The head at the end of a file's last bytes; raises when it is not whole."""
    try:
        (length,) = struct.unpack("<I", tail[-36:-32])
        text = tail[-36 - length : -36]
        if len(text) != length or hashlib.sha256(text).digest() != tail[-32:]:
            raise ValueError("its checksum is wrong")
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise HilbertflowError(
                f"batch format {body['format']} is not {FORMAT}", where=where, remedy="upgrade hilbertflow"
            )
        return Head(**body)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, HilbertflowError):
            raise
        raise damaged(where) from None


def read_batch(data: bytes, dim: int, schema: pa.Schema, where: str) -> tuple[Head, Batch]:
    """A whole file, checked against its head; ``schema`` is that of the collection's ids and metadata."""
    head = read_head(data, where)
    stream = data[: head.stream]
    if len(stream) != head.stream or hashlib.sha256(stream).hexdigest() != head.content:
        raise damaged(where)
    try:
        table = pa.ipc.open_stream(stream).read_all().combine_chunks()
        table.validate(full=True)
        ids = _one_array(table.column("id"))
        if head.op == "delete":
            return head, Batch("delete", ids, np.empty((0, dim), np.float32), pa.table({}))
        column = _one_array(table.column("vector"))
        vectors = column.flatten().to_numpy(zero_copy_only=True).reshape(len(ids), dim)
        return head, Batch(head.op, ids, vectors, _metadata(table.drop_columns(["id", "vector"]), schema, len(ids)))
    except (pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, HilbertflowError):
            raise
        raise damaged(where) from None


def damaged(where: str) -> HilbertflowError:
    """What a file says that is not as it was written."""
    return HilbertflowError("is damaged: its checksum is wrong", where=where, remedy="restore this object from a copy")


def checked(
    op: Op, ids: Any, vectors: Any, metadata: Any, dim: int, schema: pa.Schema, where: str = "rows"
) -> Batch:  # fmt: skip
    """A batch from loose arguments: ids, (n, dim) numbers, columns by name; whatever cannot be kept is refused."""
    names = checked_ids(ids, where)
    if op == "delete":
        return Batch(op, names, np.empty((0, dim), np.float32), pa.table({}))
    try:
        values = np.asarray(vectors)
        if values.dtype.kind not in "fiu":
            raise ValueError("not numbers")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values, np.float32)
    except (ValueError, TypeError):
        raise HilbertflowError("the vectors are not an array of numbers of equal lengths", where=where) from None
    values = values[None, :] if values.ndim == 1 else values
    if values.shape != (len(names), dim):
        raise HilbertflowError(
            f"the vectors have shape {values.shape}, not ({len(names)}, {dim})", where=where,
            remedy=f"give {dim} values a vector and a vector an id",
        )  # fmt: skip
    if values.nbytes > MAX_BYTES:
        raise HilbertflowError(f"{len(names)} rows are too many for one batch", where=where, remedy="send fewer a time")
    check_finite(values, names.to_pylist(), lambda row, _: at(where, f"row {row}"))
    table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata or {}))
    return Batch(op, names, values, _metadata(table, schema, len(names), where))


def checked_ids(ids: Any, where: str = "rows") -> pa.Array:
    """Ids as large_string, each once: texts of 1 to 10,000 characters, any Unicode but lone surrogates."""
    if isinstance(ids, str):
        ids = [ids]
    try:
        found = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(list(ids), pa.large_string())
        found = _one_array(found).cast(pa.large_string())
    except (pa.ArrowException, TypeError, ValueError):
        raise HilbertflowError("ids are texts of valid Unicode", where=where) from None
    if not len(found):
        raise HilbertflowError("no rows are given", where=where, remedy="give at least one id")
    if found.null_count:
        raise HilbertflowError("an id is missing", where=where, remedy="give every row an id")
    lengths = pa.compute.utf8_length(found)
    if pa.compute.min(lengths).as_py() < 1 or pa.compute.max(lengths).as_py() > MAX_ID:
        raise HilbertflowError(f"an id is empty or longer than {MAX_ID} characters", where=where)
    counts = pa.compute.value_counts(found)
    if len(counts) != len(found):
        twice = next(item["values"].as_py() for item in counts if item["counts"].as_py() > 1)
        raise HilbertflowError(f"id {twice[:80]!r} is given twice", where=where, remedy="give every id once")
    return found


def unit_length(batch: Batch) -> npt.NDArray[np.float32]:
    """The vectors at length 1, as the rows of a collection searched by cosine are kept; a zero vector is refused."""
    norms = np.sqrt(np.einsum("ij,ij->i", batch.vectors, batch.vectors, dtype=np.float64))
    if not norms.all():
        name = batch.ids[int(np.argmin(norms != 0))].as_py()
        raise HilbertflowError(
            f"the vector of id {name[:80]!r} is zero and has no direction", where="rows", remedy="leave it out"
        )
    unit: npt.NDArray[np.float32] = (batch.vectors / norms[:, None]).astype(np.float32)
    return unit


def checked_key(key: str | None) -> str:
    """An idempotency key, or the empty text for none."""
    if key is None:
        return ""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise HilbertflowError(
            "the idempotency key cannot be used", where="key", remedy=f"give 1 to {MAX_KEY} printable characters"
        )
    return key


def _metadata(table: pa.Table, schema: pa.Schema, rows: int, where: str = "rows") -> pa.Table:
    """The collection's metadata columns: missing ones null, unknown ones refused, types as the collection's."""
    wanted = [field for field in schema if field.name != "id"]
    known = [field.name for field in wanted]
    for name in table.column_names:
        if name not in known:
            near: Sequence[str] = difflib.get_close_matches(name, known, 1) or known
            remedy = f"it has {', '.join(near)}" if near else "leave it out: it has no metadata"
            if f"{name}_" in known:  # see `storage.rows.RESERVED`
                remedy = f"the column is called {name}_ here"
            raise HilbertflowError(f"the collection has no column {name[:80]!r}", where=where, remedy=remedy)
    if table.num_columns and table.num_rows != rows:
        raise HilbertflowError(f"{table.num_rows} rows of metadata for {rows} ids", where=where)
    columns = []
    for field in wanted:
        if field.name not in table.column_names:
            columns.append(pa.nulls(rows, field.type))
            continue
        try:
            columns.append(_one_array(table.column(field.name).cast(field.type)))
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0][:120]
            raise HilbertflowError(
                f"column {field.name!r} does not fit {field.type} ({reason})", where=where,
                remedy=f"send values of type {field.type}, or null",
            ) from None  # fmt: skip
    return pa.table(columns, schema=pa.schema([pa.field(field.name, field.type) for field in wanted]))


def _one_array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    return column
