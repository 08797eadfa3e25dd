"""What `bench search` compares: our tiers as a user reaches them, and the libraries that people use instead.

Each contender names what it builds and the settings that are swept; it runs in a process of its own
(`pipelines.bench.arena`). Builds of peers take the parameters that their authors suggest for some 100,000 rows of a few
hundred dimensions, and two threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Setting = dict[str, int]
BUILD_THREADS = 2


class Searcher(Protocol):
    """An index in memory."""

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """Answers of a batch in the library's own form."""

    def rows(self, answer: Any) -> I64:
        """Row numbers (q, k) of answers; not timed."""

    def save(self, folder: Path) -> int:
        """Write the index; bytes of its files."""


@dataclass(frozen=True)
class Contender:
    """One way to search.

    name: as printed. module: what must be installed. settings: swept. make: the searcher of vectors (n, d) under a
    metric; None for a tier of ours, which opens the collection that holds them with an index of these `options`.
    """

    name: str
    module: str
    settings: tuple[Setting, ...]
    make: Callable[[F32, str], Searcher] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it is this project's."""
        return self.make is None

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return find_spec(self.module) is not None

    def open(self, vectors: F32, metric: str, url: str) -> Searcher:
        """Have it in memory: a peer is built, a tier of ours opened."""
        return Tier(url, self.options) if self.make is None else self.make(vectors, metric)

    def build(self, url: str) -> float:
        """Build the index files of a tier of ours, again if they are there; seconds, of training and adding."""
        from shutil import rmtree

        from cluster.build import build_indexes, build_name, open_collection
        from cluster.index_store import indexes_of
        from cluster.indexes import index_kind

        collection, kind = open_collection(url), index_kind(dict(self.options))
        rmtree(indexes_of(collection).join(build_name(collection, kind)).url, ignore_errors=True)
        began = time.perf_counter()
        build_indexes(url, [kind], actors=0, threads=BUILD_THREADS, device="cpu")
        return time.perf_counter() - began

    def warm(self, vectors: F32, metric: str) -> None:
        """On a few vectors, whatever is loaded, compiled or started once."""
        if self.make is not None:
            self.make(vectors, metric).search(vectors[:16], 10, self.settings[0], BUILD_THREADS)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        import cluster.engine  # noqa: F401
        from cluster.indexes import index_kind

        pq.write_table(pa.table({"id": ["0", "1"]}), buffer := pa.BufferOutputStream())
        pq.read_table(pa.BufferReader(buffer.getvalue())).column("id").take(pa.array([1]))
        kind = index_kind(dict(self.options)).resolved(len(vectors), vectors.shape[1], metric)
        index = kind.trained(vectors, vectors.shape[1], metric)
        index.add(vectors)
        opened = kind.opened(index)
        kind.search(opened, vectors[:16], 10, kind.defaults(opened), None)


class Tier:
    """A tier of ours through `SearchEngine`, ids and all, over the archived collection."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from cluster.build import build_name, open_collection
        from cluster.index_store import indexes_of, load_build
        from cluster.indexes import index_kind

        kind = index_kind(dict(options))
        self._collection, self._tier = open_collection(url), kind.kind
        self._build = load_build(indexes_of(self._collection), build_name(self._collection, kind))
        self._engines: dict[int, Any] = {}

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        from cluster.engine import SearchEngine

        if threads not in self._engines:  # one at a time, so that memory is that of one
            self._engines = {threads: SearchEngine(self._collection, {self._tier: self._build}, threads)}
        return self._engines[threads].search(queries, k, self._tier, **setting)

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer.ids).astype(np.int64)  # the archive may have another order of rows

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        return int(self._build.bytes)


class Faiss:
    """A factory string of FAISS."""

    def __init__(self, vectors: F32, metric: str, factory: str, **build: int) -> None:
        import faiss

        faiss.omp_set_num_threads(BUILD_THREADS)
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self._index = faiss.index_factory(vectors.shape[1], factory, kind)
        for name, value in build.items():
            faiss.ParameterSpace().set_index_parameter(self._index, name, value)
        self._index.train(vectors)
        self._index.add(vectors)

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        import faiss

        faiss.omp_set_num_threads(threads)
        for name, value in setting.items():
            faiss.ParameterSpace().set_index_parameter(self._index, name, value)
        return self._index.search(queries, k)[1]

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer, np.int64)

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        import faiss

        faiss.write_index(self._index, str(folder / "index"))
        return (folder / "index").stat().st_size


class Hnswlib:
    """hnswlib's graph."""

    def __init__(self, vectors: F32, metric: str) -> None:
        import hnswlib

        self._index = hnswlib.Index(space=metric, dim=vectors.shape[1])
        self._index.init_index(max_elements=len(vectors), M=16, ef_construction=200, random_seed=1)
        self._index.add_items(vectors, num_threads=BUILD_THREADS)

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        self._index.set_ef(setting["ef"])
        return self._index.knn_query(queries, k, num_threads=threads)[0]

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer, np.int64)

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        self._index.save_index(str(folder / "index"))
        return (folder / "index").stat().st_size


class Usearch:
    """usearch's graph."""

    def __init__(self, vectors: F32, metric: str) -> None:
        from usearch.index import Index

        kind = "l2sq" if metric == "l2" else metric
        self._index: Any = Index(
            ndim=vectors.shape[1], metric=kind, dtype="f32", connectivity=16, expansion_add=200, expansion_search=64
        )
        self._index.add(np.arange(len(vectors)), vectors, threads=BUILD_THREADS)

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        self._index.expansion_search = setting["expansion"]
        return self._index.search(queries, k, threads=threads)

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer.keys).astype(np.int64)

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        self._index.save(str(folder / "index"))
        return (folder / "index").stat().st_size


class Scann:
    """ScaNN's tree with anisotropic hashing and reordering."""

    def __init__(self, vectors: F32, metric: str) -> None:
        import scann

        leaves = round(np.sqrt(len(vectors)) * 1.5)
        distance = "squared_l2" if metric == "l2" else "dot_product"
        builder = scann.scann_ops_pybind.builder(vectors, 10, distance).set_n_training_threads(BUILD_THREADS)
        builder = builder.tree(num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=len(vectors))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=float("nan") if metric == "l2" else 0.2)
        self._index = builder.reorder(100).build()

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        how = {"leaves_to_search": setting["leaves"], "pre_reorder_num_neighbors": setting["reorder"]}
        if threads == 1:
            return self._index.search_batched(queries, k, **how)[0]
        return self._index.search_batched_parallel(queries, k, **how)[0]

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer).astype(np.int64)

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        self._index.serialize(str(folder))
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Svs:
    """Intel's Scalable Vector Search, float32; its LVQ and LeanVec end the process on machines that are not Intel's."""

    def __init__(self, vectors: F32, metric: str) -> None:
        import svs

        kind = svs.DistanceType.L2 if metric == "l2" else svs.DistanceType.MIP
        how = svs.VamanaBuildParameters(graph_max_degree=32, window_size=128, alpha=1.2 if metric == "l2" else 0.95)
        self._index = svs.Vamana.build(how, vectors, kind, num_threads=BUILD_THREADS)

    def search(self, queries: F32, k: int, setting: Setting, threads: int) -> Any:
        """See `Searcher`."""
        if self._index.num_threads != threads:
            self._index.num_threads = threads
        self._index.search_window_size = setting["window"]
        return self._index.search(queries, k)[0]

    def rows(self, answer: Any) -> I64:
        """See `Searcher`."""
        return np.asarray(answer).astype(np.int64)

    def save(self, folder: Path) -> int:
        """See `Searcher`."""
        self._index.save(*(str(folder / part) for part in ("config", "graph", "data")))
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sweep(**values: tuple[int, ...]) -> tuple[Setting, ...]:
    """Every combination."""
    settings: list[Setting] = [{}]
    for name, choices in values.items():
        settings = [setting | {name: choice} for setting in settings for choice in choices]
    return tuple(settings)


def _faiss_graph(vectors: F32, metric: str) -> Searcher:
    return Faiss(vectors, metric, "HNSW16", efConstruction=200)


def _faiss_lists(vectors: F32, metric: str) -> Searcher:
    return Faiss(vectors, metric, f"IVF512,PQ{vectors.shape[1] // 2}x4fs,RFlat")


_WIDTHS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320)
_OURS = _sweep(ef=_WIDTHS, refine=(2, 3, 6))
_PROBES = (4, 8, 12, 18, 27, 40, 60, 90, 140)

CONTENDERS = {
    entry.name: entry
    for entry in (
        Contender("ours hnsw sq8", "faiss", _OURS, options={"kind": "hnsw", "store": "sq8"}),
        Contender("ours hnsw fp16", "faiss", _OURS, options={"kind": "hnsw", "store": "fp16"}),
        Contender("ours ivfpq", "faiss", _sweep(nprobe=_PROBES, refine=(4, 8, 16, 32)), options={"kind": "ivfpq"}),
        Contender("faiss HNSW16", "faiss", _sweep(efSearch=_WIDTHS), _faiss_graph),
        Contender("faiss IVF-PQfs", "faiss", _sweep(nprobe=_PROBES, k_factor_rf=(4, 8, 16, 32)), _faiss_lists),
        Contender("hnswlib", "hnswlib", _sweep(ef=_WIDTHS), Hnswlib),
        Contender("usearch", "usearch", _sweep(expansion=_WIDTHS), Usearch),
        Contender("ScaNN", "scann", _sweep(leaves=_PROBES, reorder=(30, 60, 100, 200)), Scann),
        Contender("SVS Vamana32", "svs", _sweep(window=_WIDTHS), Svs),
    )
}
"""By name, ours first."""
