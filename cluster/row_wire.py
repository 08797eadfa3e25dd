"""Changes of rows on the wire: JSON columns or an Arrow stream in, a receipt out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from cluster.json_vectors import Vectors
from cluster.media import JSON
from cluster.wire import arrow_table, base64_bytes, floats, json_vectors, strings, vector_column
from operators.errors import HilbertflowError

Ids = list[str]


class RowsRequest(BaseModel):
    """Rows to put in, column by column; all columns have as many values as there are ids."""

    model_config = ConfigDict(extra="forbid")

    op: Literal["upsert", "append"] = Field(
        default="upsert",
        description="`upsert` replaces rows whose id exists, whole; `append` refuses the batch when one does.",
    )
    ids: Ids = Field(description="Ids, each once, 1 to 10,000 characters.", min_length=1, examples=[["a", "b"]])
    vectors: Vectors | str | None = Field(
        default=None,
        examples=[[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]],
        description="A vector a row: arrays of numbers, or base64 of little-endian float32, all in one.",
    )
    texts: list[str] | None = Field(
        default=None,
        examples=[["first text", "second text"]],
        description="A text a row, which the service's encoder turns into the vector.",
    )
    metadata: dict[str, list[Any]] = Field(
        default_factory=dict, description="Metadata columns by name; those left out are null.",
        examples=[{"lines": [3, 5]}],
    )  # fmt: skip


class DeleteRequest(BaseModel):
    """Rows to delete."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids = Field(description="Ids; one that does not exist is no error.", min_length=1, examples=[["a", "b"]])


class Written(BaseModel):
    """What a change did. It is on durable storage, and every later search through this service sees it."""

    version: int = Field(
        description="Version of the rows from now on. A search may ask for it with `version`.", examples=[17]
    )
    rows: int = Field(description="How many ids the change named.", examples=[2])
    repeated: bool = Field(description="True when this Idempotency-Key had been accepted before; nothing changed now.")


@dataclass(frozen=True)
class Change:
    """A parsed change: vectors (anything that the row log takes) or texts to encode."""

    op: Literal["upsert", "append"]
    ids: Any
    vectors: Any
    texts: list[str] | None
    metadata: pa.Table

    def __len__(self) -> int:
        return len(self.ids)


def parse_rows(kind: str, body: bytes, op: str, dim: int, schema: pa.Schema) -> Change:
    """Read a body of the content type `kind`; op: for Arrow bodies. Raises `HilbertflowError`."""
    if kind == JSON:
        asked, vectors = json_vectors(RowsRequest, body)
        if (vectors is None) == (asked.texts is None):
            raise HilbertflowError("give either vectors or texts", where="body")
        vectors = floats(base64_bytes(vectors), dim) if isinstance(vectors, str) else vectors
        return Change(asked.op, asked.ids, vectors, asked.texts, _columns(asked.metadata, schema))
    if op not in ("upsert", "append"):
        raise HilbertflowError(f"op is {op[:40]!r}", where="URL", remedy="upsert or append")
    table = arrow_table(body)
    if "id" not in table.column_names:
        raise HilbertflowError(
            "has no column 'id'", where="body", remedy="send id, vector or text, and metadata columns"
        )
    ids, texts = strings(table, "id"), None
    if "vector" in table.column_names:
        vectors = vector_column(table)
    else:
        vectors, texts = None, strings(table, "text")
    used = {"id", "vector" if texts is None else "text"}
    rest = table.select([name for name in table.column_names if name not in used])
    return Change(op, ids, vectors, texts, rest)  # type: ignore[arg-type]


def _columns(given: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    """Columns in the types of the collection; a name that it lacks stays, and is refused by name later."""
    columns = {}
    for name, values in given.items():
        try:
            columns[name] = pa.array(values, schema.field(name).type) if name in schema.names else pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            kind = schema.field(name).type if name in schema.names else "of one type"
            raise HilbertflowError(
                f"the values are not {kind}", where=f"metadata column {name[:80]!r}",
                remedy="send values of that type, or null; GET /v1/collections/{c} tells the columns' types",
            ) from None  # fmt: skip
    if len({len(values) for values in columns.values()}) > 1:
        raise HilbertflowError("metadata columns have different lengths", where="body", remedy="give a value an id")
    return pa.table(columns)
