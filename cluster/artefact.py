"""The trained artefact: learned once on a sample, named by the hash of its content, shared by all shards of an index.

Shards whose centroids or codebooks were trained apart cannot answer one query together, so the hash is computed from
what an index file really holds, and a shard of another hash is refused. Reading goes through a whitelist of FAISS
structures: whatever else a file decodes to, and any row number or graph edge outside the shard, is refused before a
search can follow it.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from dataclasses import dataclass
from typing import Any, BinaryIO

import faiss
import numpy as np

from cluster.device import Device, runs_on_gpu
from cluster.faiss_errors import useful
from cluster.index_kind import FAISS_METRIC, IndexKind
from cluster.vectors import F32, prepared
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

SEED = 20260101
SAMPLE_RUN = 16  # neighbouring rows taken together: fewer requests, still spread over the whole collection
READ_ROWS = 8192
_LIMITS = threading.Lock()  # FAISS's deserialization limits are global to the process
_METRICS = {faiss.METRIC_L2: "squared distance", faiss.METRIC_INNER_PRODUCT: "inner product"}
_SPARE = 512 << 20  # beyond the file: FAISS tabulates distances between codebooks and centroids on loading


@dataclass(frozen=True)
class Artefact:
    """An empty FAISS index with everything learned in it.

    hash: `content_hash` of the structure; data: its serialized bytes; kind: the resolved options it was made with.
    """

    kind: IndexKind
    metric: str
    dim: int
    hash: str
    data: bytes

    def empty(self) -> Any:
        """A fresh index to add a shard's rows to."""
        return read_index(io.BytesIO(self.data), len(self.data), f"artefact {self.hash[:12]}")


def train(collection: CollectionArchive, kind: IndexKind, threads: int = 1, device: Device = "cpu") -> Artefact:
    """Train `kind` for a collection: a seeded sample, fixed seeds, the same artefact whenever it is trained.

    device: of k-means; a GPU rounds otherwise, and so learns another artefact, as good.
    """
    if collection.count == 0:
        raise HilbertflowError(
            "the collection is empty", where=str(getattr(collection, "url", "")), remedy="add rows first"
        )
    kind = kind.resolved(collection.count, collection.dim, collection.metric)
    faiss.omp_set_num_threads(threads)
    sample = prepared(draw(collection, kind.sample_rows(collection.count)), collection.metric)
    gpu = kind.trains_on_gpu and runs_on_gpu(device, "index.device")
    index = kind.trained(sample, collection.dim, collection.metric, gpu)
    data = bytes(faiss.serialize_index(index))
    return Artefact(kind, collection.metric, collection.dim, content_hash(index), data)


def draw(collection: CollectionArchive, rows: int) -> F32:
    """About `rows` vectors (n, dim) in short runs spread evenly, each at a seeded place in its stretch of the rows."""
    count = collection.count
    if rows <= 0:
        return np.empty((0, collection.dim), np.float32)
    if rows * 2 > count:  # most of it: read all, keep rows at even distances
        wanted = np.unique(np.linspace(0, count - 1, rows).round().astype(np.int64))
        kept = []
        for start in range(0, count, READ_ROWS):
            part = collection.read(start, min(start + READ_ROWS, count))
            low, high = np.searchsorted(wanted, [start, start + len(part)])
            kept.append(part[wanted[low:high] - start])
        return np.concatenate(kept)
    runs = -(-rows // SAMPLE_RUN)
    borders = np.linspace(0, count - SAMPLE_RUN, runs + 1)
    place = borders[:-1] + np.random.default_rng(SEED).random(runs) * np.diff(borders)
    return collection.take(np.unique(place.astype(np.int64)[:, None] + np.arange(SAMPLE_RUN)))


def read_index(file: BinaryIO, size: int, where: str) -> Any:
    """Deserialize a FAISS index of `size` bytes with limits that fit its size; any failure is a `HilbertflowError`."""
    with _LIMITS:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(size + _SPARE)
        faiss.set_deserialization_loop_limit(max(size, 1 << 16))
        try:
            return faiss.read_index(faiss.PyCallbackIOReader(file.read))  # already downcast, and owned
        except Exception as error:  # FAISS raises RuntimeError, MemoryError or what the reader raised
            if isinstance(error, HilbertflowError):
                raise
            raise HilbertflowError(
                f"not a readable index ({useful(error)})", where=where, remedy="build the index again"
            ) from None
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def content_hash(index: Any) -> str:
    """SHA-256 over the structure and everything trained; equal for all shards of one artefact, empty or full."""
    digest = hashlib.sha256()
    _describe(index, digest)
    return digest.hexdigest()


def check_shard(index: Any, artefact_hash: str, rows: int, dim: int, metric: str, where: str) -> None:
    """Refuse an index of another artefact, size or collection, and one whose numbers point outside its rows."""
    again = "build the index again"
    if index.d != dim:
        raise HilbertflowError(f"is an index of {index.d} values a row, not of {dim}", where=where, remedy=again)
    if index.metric_type != FAISS_METRIC[metric]:
        found = _METRICS.get(index.metric_type, f"FAISS's metric {index.metric_type}")
        raise HilbertflowError(
            f"compares by {found}, and the collection's metric is {metric}: it is not this collection's index",
            where=where, remedy=again,
        )  # fmt: skip
    if index.ntotal != rows:
        raise HilbertflowError(f"holds {index.ntotal} rows where {rows} are expected", where=where, remedy=again)
    try:
        found = content_hash(index)
    except HilbertflowError as error:
        raise HilbertflowError(error.what, where=where, remedy=again) from None
    if found != artefact_hash:
        raise HilbertflowError(
            f"belongs to another artefact ({found[:12]}, not {artefact_hash[:12]}): shards trained apart do not mix",
            where=where, remedy=again,
        )  # fmt: skip
    if not _sound(index, rows):
        raise HilbertflowError("has row numbers or edges outside its rows", where=where, remedy=again)


def _describe(index: Any, digest: Any) -> None:
    """Feed type, parameters and learned arrays into `digest`; only structures that our kinds build are known."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    if name in ("IndexFlatL2", "IndexFlatIP"):
        name = "IndexFlat"  # reading a file names the metric in the type, making one does not
    note: dict[str, Any] = {"type": name, "d": index.d, "metric": index.metric_type}
    arrays: list[Any] = []
    inner: list[Any] = []
    if name == "IndexPreTransform":
        width = index.d
        for i in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(i))
            if type(step).__name__ not in ("RandomRotationMatrix", "LinearTransform"):
                raise HilbertflowError(f"holds a {type(step).__name__}, which no kind of index uses")
            arrays += [faiss.vector_to_array(step.A), faiss.vector_to_array(step.b)]
            if step.d_in != width or arrays[-2].size != step.d_in * step.d_out:
                raise HilbertflowError("has a transform of other dimensions")
            width = step.d_out
        if width != index.index.d:
            raise HilbertflowError("has a transform of other dimensions")
        inner = [index.index]
    elif name in ("IndexRefine", "IndexRefineFlat"):
        note["type"] = "IndexRefine"  # the other is how a file with an exact store is read
        inner = [index.base_index, index.refine_index]
    elif name in ("IndexIVFPQFastScan", "IndexIVFPQ"):
        coarse = faiss.downcast_index(index.quantizer)
        if not isinstance(coarse, faiss.IndexFlat):
            raise HilbertflowError(f"holds a {type(coarse).__name__} over its lists, which no kind of index uses")
        note |= {"lists": index.nlist, "m": index.pq.M, "bits": index.pq.nbits, "residual": bool(index.by_residual)}
        if coarse.ntotal != index.nlist or coarse.d != index.d or index.pq.d != index.d:
            raise HilbertflowError("has another number of lists than centroids")
        arrays = [coarse.reconstruct_n(0, coarse.ntotal), faiss.vector_to_array(index.pq.centroids)]
    elif name == "IndexScalarQuantizer":
        note["store"] = index.sq.qtype
        arrays = [faiss.vector_to_array(index.sq.trained)]
    elif name in ("IndexHNSWFlat", "IndexHNSWSQ"):
        note |= {"links": faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)[:2].tolist()}
        note |= {"ef_construction": index.hnsw.efConstruction}
        inner = [index.storage]
    elif name != "IndexFlat":
        raise HilbertflowError(f"holds a {name}, which no kind of index uses")
    digest.update(json.dumps(note, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    for part in inner:
        _describe(part, digest)


def _sound(index: Any, rows: int) -> bool:
    """Whether every stored number that a search follows lies inside the shard."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    if index.ntotal != rows:
        return False
    if name == "IndexPreTransform":
        return _sound(index.index, rows)
    if name in ("IndexRefine", "IndexRefineFlat"):
        return _sound(index.base_index, rows) and _sound(index.refine_index, rows)
    if name in ("IndexIVFPQFastScan", "IndexIVFPQ"):
        return _lists_sound(index, rows)
    if name in ("IndexHNSWFlat", "IndexHNSWSQ"):
        return _graph_sound(index.hnsw, rows) and _sound(index.storage, rows)
    return bool(faiss.vector_to_array(index.codes).size == rows * index.code_size)


def _lists_sound(index: Any, rows: int) -> bool:
    lists, seen = index.invlists, np.zeros(rows, np.bool_)
    if lists.nlist != index.nlist:
        return False
    total = 0
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size == 0:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        if ids.min() < 0 or ids.max() >= rows:
            return False
        seen[ids] = True
        total += size
    return total == rows and bool(seen.all())


def _graph_sound(graph: Any, rows: int) -> bool:
    levels = faiss.vector_to_array(graph.levels).astype(np.int64)
    offsets = faiss.vector_to_array(graph.offsets).astype(np.int64)
    edges = faiss.vector_to_array(graph.neighbors)
    widths = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != rows or len(offsets) != rows + 1 or offsets[0] != 0 or offsets[-1] != len(edges):
        return False
    if rows == 0:
        return int(graph.entry_point) == -1
    if levels.min() < 1 or levels.max() >= len(widths) or not np.array_equal(np.diff(offsets), widths[levels]):
        return False
    inside = int(edges.min(initial=-1)) >= -1 and int(edges.max(initial=-1)) < rows
    entry, top = int(graph.entry_point), int(graph.max_level)
    return inside and 0 <= entry < rows and 0 <= top == int(levels[entry]) - 1 == int(levels.max()) - 1
