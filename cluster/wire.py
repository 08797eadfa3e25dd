"""The search request and its answer on the wire: JSON, Arrow IPC, raw float32 and NDJSON.

In:  application/json                     `SearchRequest`
     application/vnd.apache.arrow.stream  a column `vector` (lists of float) or `text`, a row a query
     application/octet-stream             float32, little-endian, queries * dim of them
     pictures                             see `cluster.picture_wire`
     Options of a body that is not JSON are in the URL.
Out: application/json                     {"results": [{"ids", "scores", "rows", "metadata", "partial"}, …]}
     application/x-ndjson                 the same results, one a line
     application/vnd.apache.arrow.stream  a row a query: ids, scores, rows as lists, partial; nothing else
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from cluster.field_faults import explained
from cluster.json_vectors import LARGE, MARK, Vectors, apart
from cluster.media import ARROW, FLOATS, JSON, NDJSON
from cluster.query import MAX_K, Query
from cluster.results import Results
from operators.errors import HilbertflowError

OUTPUTS = (JSON, NDJSON, ARROW)
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow stream
TOGETHER = 4096  # rows of an answer that are written at once

M = TypeVar("M", bound=BaseModel)
Whole = Annotated[int, Field(strict=True, ge=1)]


class SearchOptions(BaseModel):
    """How to search, whatever form the queries take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: Whole = Field(default=10, le=MAX_K, description="Rows wanted for each query; more than there are gives all.")
    tier: str | None = Field(
        default=None, max_length=64, description="`exact`, `cold`, `ivfpq` or `hnsw`; left out, the best one built.",
        examples=["exact"],
    )  # fmt: skip
    filter: str | None = Field(
        default=None, max_length=4096, examples=['package == "numpy" and lines > 20'],
        description="Only rows whose metadata match: comparisons, and, or, not, in. A column whose name has blanks or"
        " dashes, or is a word of the grammar, stands between backticks: `` `release date` > 2019 ``.",
    )  # fmt: skip
    radius: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None, examples=[0.8],
        description="Only rows of at least this similarity (ip, cosine), or within this squared distance (l2).",
    )  # fmt: skip
    nprobe: Whole | None = Field(
        default=None,
        le=1_000_000,
        examples=[16],
        description="Inverted lists read (tiers ivfpq and cold); left out, as tuned, and more for a k above 10.",
    )
    ef: Whole | None = Field(
        default=None,
        le=1_000_000,
        examples=[64],
        description="Width of the graph search in rows (tier hnsw); left out, as tuned, and more for a k above 10.",
    )
    refine: Whole | None = Field(
        default=None, le=1_000_000, examples=[4],
        description="Candidates re-ranked, as a multiple of k (tiers ivfpq and cold).",
    )  # fmt: skip
    level: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None,
        le=64,
        examples=[1],
        description="Finest level read; the one behind the last lossy one is exact (tiers cold and exact).",
    )
    dim: Whole | None = Field(
        default=None, le=1_000_000, examples=[384],
        description="Values of a vector where they come as base64 or raw float32, which do not tell it: another number"
        " than the collection's is refused; left out, the collection's is taken.",
    )  # fmt: skip
    version: int = Field(
        default=0, ge=0, le=1 << 62, strict=True,
        description="Answer about this version of the rows, as a change returned it, or a later one; 0: as last seen.",
    )  # fmt: skip
    metadata: bool = Field(default=True, description="Return the rows' metadata (JSON and NDJSON).")
    explain: bool = Field(default=False, description="Return what the search did and took.")

    def query(self) -> Query:
        """As the engine takes it; raises `HilbertflowError`."""
        return _query(
            self.k, self.tier, self.filter, radius=self.radius, nprobe=self.nprobe, ef=self.ef, refine=self.refine,
            level=self.level,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _query(k: int, tier: str | None, filter: str | None, **overrides: Any) -> Query:
    return Query.of(k, tier, filter, overrides)


class SearchRequest(SearchOptions):
    """One or many queries, as vectors or as texts."""

    vectors: Vectors | str | None = Field(
        default=None,
        examples=[[[0.1, 0.2, 0.3]], "zczMPc3MTD6amZk+"],
        description="Query vectors: arrays of numbers, or base64 of little-endian float32, one after another.",
    )
    texts: list[str] | None = Field(
        default=None, description="Texts that the service's encoder turns into vectors.",
        examples=[["singular value decomposition"]],
    )  # fmt: skip
    images: list[str] | None = Field(
        default=None,
        examples=[["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="]],
        description="JPEG or PNG files in base64, which the service's encoder turns into vectors (CLIP models only).",
    )


class Hits(BaseModel):
    """The answer to one query, best first; all lists have the same length."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "ids": ["numpy.linalg.svd", "torch.svd"], "scores": [0.7108, 0.6918], "rows": [411, 2093],
                "metadata": [{"package": "numpy"}, {"package": "torch"}], "partial": False, "explain": None,
            }
        }
    )  # fmt: skip

    ids: list[str | int | None] = Field(description="Row ids.")
    scores: list[float | None] = Field(
        description="Similarity for ip and cosine (higher is better), squared distance for l2 (lower is better)."
    )
    rows: list[int] = Field(description="Positions of the rows in the archive.")
    metadata: list[dict[str, Any] | None] | None = Field(default=None, description="Metadata of the rows.")
    partial: bool = Field(description="True when a shard did not answer, so that better rows may be missing.")
    explain: dict[str, Any] | None = Field(default=None, description="What the search did and took.")


class SearchResponse(BaseModel):
    """One entry a query, in the order asked."""

    results: list[Hits] = Field(description="One entry a query.")


@dataclass(frozen=True)
class Asked:
    """A parsed request: vectors (anything `checked_vectors` takes), texts or files of pictures, and the options."""

    options: SearchOptions
    vectors: Any = None
    texts: list[str] | None = None
    pictures: list[bytes] | None = None

    def __len__(self) -> int:
        for given in (self.vectors, self.texts, self.pictures):
            if given is not None:
                return len(given)
        return 0


def parse_request(kind: str, body: bytes, url_options: Mapping[str, str], dim: int) -> Asked:
    """Read a body of the content type `kind`; raises `HilbertflowError` saying what is wrong with it."""
    if kind == JSON:
        request, vectors = json_vectors(SearchRequest, body)
        if sum(given is not None for given in (vectors, request.texts, request.images)) != 1:
            raise HilbertflowError("give one of vectors, texts and images", where="body")
        if request.images is not None:
            return Asked(request, pictures=_pictures(request.images))
        if vectors is not None and not len(vectors):
            raise HilbertflowError("vectors is empty", where="body")
        vectors = floats(base64_bytes(vectors), dim, request.dim) if isinstance(vectors, str) else vectors
        if isinstance(vectors, list) and len({len(vector) for vector in vectors}) > 1:
            raise HilbertflowError("vectors have different lengths", where="body", remedy=f"give {dim} values each")
        return Asked(request, vectors, request.texts)
    options = url_search_options(url_options)
    if kind == FLOATS:
        return Asked(options, floats(body, dim, options.dim))
    table = arrow_table(body)
    if "text" in table.column_names and "vector" not in table.column_names:
        return Asked(options, texts=strings(table, "text"))
    return Asked(options, vector_column(table))


def _pictures(images: list[str]) -> list[bytes]:
    """Files out of base64, with or without the `data:image/…;base64,` that browsers write."""
    if not images:
        raise HilbertflowError("images is empty", where="body")
    texts = (text.partition(",")[2] if text.startswith("data:") else text for text in images)
    return [base64_bytes(text, f"images.{number} is") for number, text in enumerate(texts)]


def render(kind: str, results: Results, metadata: list[list[Any]] | None, explain: bool) -> Iterator[bytes]:
    """The answer in the content type `kind`, in pieces."""
    if kind == ARROW:
        yield _to_arrow(results, explain)
        return
    rows, scores, ids = results.rows.tolist(), results.scores.tolist(), results.ids.tolist()
    hits = (
        {"ids": ids[i], "scores": scores[i], "rows": rows[i], "metadata": metadata[i] if metadata else None,
         "partial": results.partial, "explain": results.explain if explain else None}
        for i in range(len(rows))
    )  # fmt: skip
    if kind == NDJSON:
        yield from (_json(hit) + b"\n" for hit in hits)
        return
    lead = b'{"results":['
    step = max(1, TOGETHER // max(1, results.rows.shape[1]))
    while some := list(islice(hits, step)):
        yield lead + _json(some)[1:-1]
        lead = b","
    yield b"]}" if len(rows) else b'{"results":[]}'


def _json(value: Any) -> bytes:
    return to_json(value, exclude_none=False, bytes_mode="base64", inf_nan_mode="null", serialize_unknown=True)


def json_model(kind: type[M], body: bytes) -> M:
    """A JSON body as a model; raises `HilbertflowError` with the first fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _first(error, "body", kind) from None


def json_vectors(kind: type[M], body: bytes) -> tuple[M, Any]:
    """A JSON body as a model, and its `vectors`: lists or base64 as sent, an array where they were many."""
    if len(body) >= LARGE and (found := apart(body)) is not None:
        asked: Any = json_model(kind, found[0])
        if asked.vectors == MARK:
            return asked, found[1]
    whole: Any = json_model(kind, body)
    return whole, whole.vectors


def url_search_options(given: Mapping[str, str]) -> SearchOptions:
    """Options as a URL or a form holds them; raises `HilbertflowError`."""
    return _url_search_options(tuple(given.items()))


@lru_cache(maxsize=1024)  # clients ask in the same way again and again
def _url_search_options(given: tuple[tuple[str, str], ...]) -> SearchOptions:
    body: dict[str, Any] = dict(given)
    for name in ("k", "nprobe", "ef", "refine", "level", "dim", "version"):
        if isinstance(body.get(name), str) and body[name].isascii() and body[name].isdigit():
            body[name] = int(body[name][:20])
    try:
        return SearchOptions.model_validate(body)
    except ValidationError as error:
        raise _first(error, "URL", SearchOptions) from None


def _first(error: ValidationError, where: str, kind: type[BaseModel]) -> HilbertflowError:
    first = error.errors(include_url=False, include_input=False)[0]
    detail, remedy = explained(first, list(kind.model_fields))
    return HilbertflowError(detail, where=where, remedy=remedy)


def base64_bytes(text: str, what: str = "vectors is a string but") -> bytes:
    """The bytes of a base64 text; what: begins the error."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HilbertflowError(f"{what} not base64", where="body") from None


def floats(data: bytes, dim: int, told: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Little-endian float32 as (n, dim); told: the values of a vector by whom sent them, if they said so."""
    if told not in (None, dim):
        raise HilbertflowError(f"vectors of {told} values", where="body", remedy=f"give {dim} values each")
    if not data or len(data) % (4 * dim):
        raise HilbertflowError(
            f"{len(data)} bytes are no whole number of vectors",
            where="body",
            remedy=f"send {4 * dim} bytes each ({dim} float32)",
        )
    return np.frombuffer(data, "<f4").reshape(-1, dim)


def arrow_table(body: bytes) -> pa.Table:
    """A whole Arrow IPC stream, validated."""
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            table = reader.read_all()
            table.validate(full=True)
            return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise HilbertflowError(f"is not an Arrow stream ({str(error).splitlines()[0][:120]})", where="body") from None


def strings(table: pa.Table, name: str) -> list[str]:
    """A column of texts."""
    if name not in table.column_names:
        raise HilbertflowError(f"has no column {name!r}", where="body")
    column = table.column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        raise HilbertflowError(f"column {name!r} holds other than strings", where="body")
    texts: list[str] = column.to_pylist()
    return texts


def vector_column(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The lists of column `vector` as (n, dim) float32."""
    if "vector" not in table.column_names:
        raise HilbertflowError("has no column 'vector' and no column 'text'", where="body")
    column = table.column("vector")
    kinds = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    if not any(test(column.type) for test in kinds) or not pa.types.is_floating(column.type.value_type):
        raise HilbertflowError(f"column 'vector' is {column.type}", where="body", remedy="send lists of float32")
    lengths = set(pa.compute.list_value_length(column).to_pylist())
    if len(lengths) != 1 or None in lengths:
        raise HilbertflowError("vectors are missing or have different lengths", where="body")
    values = pa.compute.list_flatten(column)
    if values.null_count:
        raise HilbertflowError("a vector has a null in it", where="body")
    matrix: np.ndarray[Any, np.dtype[np.float32]] = values.to_numpy().astype(np.float32).reshape(-1, lengths.pop())
    return matrix


def _to_arrow(results: Results, explain: bool) -> bytes:
    """An Arrow stream of one record batch: its schema, the batch, its end."""
    queries, width = results.rows.shape
    columns = [pa.array(values.reshape(-1)) for values in (results.ids, results.scores, results.rows)]
    schema, head = _schema(*(column.type for column in columns))
    if explain:
        schema = schema.with_metadata({"explain": _json(results.explain)})
        head = schema.serialize()
    offsets = _offsets(queries, width)
    arrays = [pa.ListArray.from_arrays(offsets, column) for column in columns]
    batch = pa.RecordBatch.from_arrays([*arrays, pa.array(np.full(queries, results.partial))], schema=schema)
    return b"".join((head, batch.serialize(), _END))


@lru_cache(maxsize=64)
def _schema(*values: pa.DataType) -> tuple[pa.Schema, pa.Buffer]:
    """The schema of an answer, and as it is sent."""
    names = ("ids", "scores", "rows")
    lists = [(name, pa.list_(kind)) for name, kind in zip(names, values, strict=True)]
    schema = pa.schema([*lists, ("partial", pa.bool_())])
    return schema, schema.serialize()


@lru_cache(maxsize=64)
def _offsets(queries: int, width: int) -> pa.Array:
    return pa.array(np.arange(queries + 1, dtype=np.int32) * width)
