"""Where indexes are trained and searched: `auto`, `cpu`, `cuda`; the only place that knows FAISS's GPU part.

Files always hold the CPU's index; what runs on a GPU is a copy of it, made when it is loaded. What a GPU holds and
takes is FAISS's (wiki, "Faiss on the GPU"; `GpuIndexIVFPQ`, without cuVS): codes of 8 bits of residuals, numbers of
codes from a list, at most 2,048 answers and lists a query, and no selector.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import faiss
import numpy.typing as npt

from cluster.faiss_errors import useful
from cluster.vectors import F32, I64
from operators.errors import HilbertflowError

Device = Literal["auto", "cpu", "cuda"]

CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Numbers of 8-bit codes of a vector that a GPU scans."""
WIDE_CODES = 48  # beyond it the float32 tables of a query outgrow 48 KB of shared memory, and are kept as float16
MOST = 2048  # answers of one query, and lists that it reads

_log = logging.getLogger("hilbertflow.device")
_one_at_a_time = threading.Lock()  # indexes that share FAISS's GPU resources must not be used by two threads at once


def missing() -> str:
    """Why FAISS has no GPU here; empty where it has one."""
    if not hasattr(faiss, "StandardGpuResources"):
        return "the installed FAISS is built without GPUs"
    # FAISS ends the process where it counts GPUs and the driver is missing or too old.
    if not _driver_starts() or faiss.get_num_gpus() == 0:
        return "there is no GPU that this process may use"
    return ""


def runs_on_gpu(device: Device, where: str) -> bool:
    """Whether `device`, given as the field `where`, means a GPU here.

    `auto` takes one where there is one, and says once in the life of a process that it runs on the CPU. Raises
    `HilbertflowError` for `cuda` where there is none.
    """
    if device == "cpu":
        return False
    reason = missing()
    if device == "cuda" and reason:
        raise HilbertflowError(
            f"is cuda, but {reason}", where=where, remedy="install FAISS's GPU build and a driver, or use auto or cpu"
        )
    if reason:
        say_once(f"device: auto trains and searches ivfpq on the CPU: {reason}")
    return not reason


@cache
def say_once(text: str) -> None:
    """Log a line that is not logged again by this process."""
    _log.warning(text)


def takes(width: int, nprobe: int, filtered: bool) -> bool:
    """Whether a GPU answers a query for `width` candidates out of `nprobe` lists; others stay on the CPU."""
    return not filtered and max(width, nprobe) <= MOST


def codes_of(dim: int, spread: int) -> int:
    """8-bit codes of a vector, one for `spread` of its `dim` values, rounded up to what a GPU holds, at most 96."""
    wanted = -(-dim // spread)
    return next((codes for codes in CODES if codes >= wanted), CODES[-1])


@contextmanager
def gpu_means(index: Any) -> Iterator[None]:
    """While open, an index over inverted lists that is trained assigns points to means on all GPUs."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    with _one_at_a_time, assigning(ivf, faiss.index_cpu_to_all_gpus):
        yield


@contextmanager
def assigning(ivf: Any, placed: Any) -> Iterator[None]:
    """While open, k-means of the lists and of the codes assign through flat indexes that `placed` has put somewhere."""
    lists, codes = faiss.IndexFlat(ivf.d, ivf.metric_type), faiss.IndexFlatL2(ivf.pq.dsub)
    lists, codes = placed(lists), placed(codes)
    ivf.clustering_index, ivf.pq.assign_index = lists, codes
    try:
        yield
    finally:
        ivf.clustering_index = ivf.pq.assign_index = None


def gpu_copy(index: Any) -> Any:
    """The same on the first GPU that this process may use; vectors for re-ranking stay in main memory.

    index: `IndexIVFPQ` of 8-bit codes of residuals, with or without a rotation before it and a finer store behind it;
    it must outlive the copy. Raises `HilbertflowError` where the GPU cannot hold it.
    """
    return copied(index, _to_gpu)


def copied(index: Any, placed: Any) -> Any:
    """`index` with its codes where `placed` puts them, under the finer store that it had."""
    if not isinstance(index, faiss.IndexRefine):
        return placed(index)
    return faiss.IndexRefine(placed(faiss.downcast_index(index.base_index)), index.refine_index)


def gpu_search(copy: Any, queries: F32, k: int, params: Any) -> tuple[F32, I64]:
    """Search a `gpu_copy`; one search at a time in this process."""
    with _one_at_a_time:
        found: tuple[npt.NDArray[Any], npt.NDArray[Any]] = copy.search(queries, k, params=params)
    return found


def _to_gpu(index: Any) -> Any:
    options = faiss.GpuClonerOptions()
    options.use_cuvs = False  # its limits are others, and so are its answers
    options.useFloat16 = faiss.downcast_index(faiss.extract_index_ivf(index)).pq.M > WIDE_CODES
    try:
        with _one_at_a_time:
            return faiss.index_cpu_to_gpu(_resources(), 0, index, options)
    except RuntimeError as error:
        raise HilbertflowError(
            f"the GPU does not take the index ({useful(error)})", where="device",
            remedy="use more shards, each on a GPU of its own, or device: cpu",
        ) from error  # fmt: skip


@cache
def _resources() -> Any:
    """Streams and scratch memory (1.5 GB at most), for all indexes of this process."""
    return faiss.StandardGpuResources()


@cache
def _driver_starts() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False
