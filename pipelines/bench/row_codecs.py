"""Codecs of vectors to be compared: what each makes of a set of rows, in bytes with every side cost, and how fast."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import hfz, klt, lists, rowcode, sections
from pipelines.bench.datasets import Metric

F32 = npt.NDArray[np.float32]

SAMPLE = 16_384
"""Rows that any codec is trained on."""
STATES = 32
_ROUNDS = 10  # of k-means in a product quantizer; FAISS's own 25 gain under .003 of recall and take 2.5 times as long


@dataclass(frozen=True)
class Coded:
    """What a codec made of rows (n, d).

    size: bytes in all, transform, tables, centroids, list of each row, headers and check sums counted.
    taken: seconds by what was done: train, encode, decode.
    decoded: float32 (n, d); where there are none, ``search`` finds the 10 rows nearest to each query by the codec's own
    distances.
    """

    family: str
    name: str
    size: int
    taken: Mapping[str, float]
    decoded: F32 | None = None
    search: Callable[[F32], npt.NDArray[Any]] = field(default=lambda _: np.empty((0, 10), np.int64))


@dataclass
class Clock:
    """Seconds by what was done."""

    taken: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Time a block."""
        began = perf_counter()
        yield
        self.taken[what] = self.taken.get(what, 0.0) + perf_counter() - began


def sampled(rows: F32) -> F32:
    """The rows that codecs are trained on."""
    return rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])]


def with_faiss(rows: F32, metric: Metric, factory: str) -> Coded:
    """A codec of FAISS by its factory string: codes as ``sa_encode`` gives them, the trained index as it is saved."""
    import faiss

    clock = Clock()
    index = faiss.index_factory(
        rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    )
    _curb(faiss, index)
    with clock("train"):
        index.train(sampled(rows))
    with clock("encode"):
        codes = index.sa_encode(rows)
    size = codes.nbytes + len(faiss.serialize_index(index))
    family = "IVF RaBitQ" if factory.startswith("IVF") else re.sub(r"RR\d+,|[\dx]+$|\d+,.*", "", factory)
    if "RaBitQ" not in factory:
        with clock("decode"):
            decoded = index.sa_decode(codes)
        return Coded(family, factory, size, clock.taken, decoded)
    base = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    base.add_sa_codes(codes, np.arange(len(rows), dtype=np.int64))
    index.ntotal, base.qb = base.ntotal, 8
    if hasattr(base, "nprobe"):
        base.nprobe = base.nlist
    return Coded(family, factory, size, clock.taken, search=lambda queries: index.search(queries, 10)[1])


def with_embzip(rows: F32, m: int) -> Coded:
    """The package embzip, ``save`` and ``load``: 4-bit product quantizers of 16 centroids, trained on all the rows."""
    import embzip
    import faiss.contrib.torch_utils  # noqa: F401 - embzip hands tensors to FAISS
    import torch

    clock, tensor = Clock(), torch.from_numpy(np.ascontiguousarray(rows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.embzip"
        with clock("encode"):
            embzip.save(tensor, str(path), m=m)
        with clock("decode"):
            decoded = embzip.load(str(path)).numpy()
        return Coded("embzip", f"embzip, m={m}", path.stat().st_size, clock.taken, decoded)


def ours(rows: F32, bits: float, emphasis: float = 1.0) -> Coded:
    """One level of ours in a file of its own (``hilbertflow compress``), rows in their order."""
    clock, sample = Clock(), sampled(rows)
    with clock("train"):
        code = rowcode.fit(sample, (bits,), states=STATES, emphasis=emphasis, klt=klt.fit(sample, 0.16 * 2.0**-bits))
    with clock("encode"):
        file = hfz.from_rows(code, rows, np.float32)
    with clock("decode"):
        decoded = hfz.decode(file)
    return Coded("ours", f"ours, {bits:.2f} bits", len(file), clock.taken, decoded)


def ours_in_lists(rows: F32, bits: float, count: int, emphasis: float = 1.0) -> Coded:
    """The same of the differences to the centroid of each row's list, rows in the order of a tour of the lists.

    Counted beside what :func:`ours` counts: centroids, sizes of the lists, and where each row was.
    """
    clock, sample = Clock(), sampled(rows)
    with clock("train"):
        centroids = lists.train(sample, count, rounds=8)
        mine = lists.nearest(sample, centroids)[:, 0]
        code = rowcode.fit(sample, (bits,), centroids, mine, states=STATES, emphasis=emphasis,
                           klt=klt.fit(sample, 0.16 * 2.0**-bits))  # fmt: skip
    with clock("encode"):
        mine = lists.nearest(rows, centroids)[:, 0]
        order, borders = lists.along(mine, lists.tour(centroids))
        symbols = code.level0(rows[order], mine[order])
        steps = np.diff(order, prepend=0).astype(np.int32)  # rows of a list ascend: small steps
        parts = [sections.put(code.klt.mean), sections.put(code.klt.bits),
                 sections.put(code.klt.axes.T, by_column=True),
                 sections.put(code.steps[0]), sections.put(code.centroids, by_column=True),
                 sections.put(np.diff(borders).astype(np.int32)), sections.put(steps),
                 sections.put(symbols, by_column=True)]  # fmt: skip
    decoded = np.empty_like(rows)
    with clock("decode"):
        symbols = sections.Reader(memoryview(parts[-1])).get(symbols.shape, np.int16, by_column=True)
        decoded[order] = code.decode({"level0": symbols}, mine[order])
    size = sum(map(len, parts)) + 200
    return Coded("ours, in lists", f"ours, {bits:.2f} bits, {count} lists", size, clock.taken, decoded)


def lossless(rows: F32) -> dict[str, int]:
    """Bytes of one lossless copy of float32 rows, by codec; those that are not installed are left out."""
    from operators import hfz_fit

    words = np.ascontiguousarray(rows).view(np.uint8).reshape(*rows.shape, 4)
    found = {"ours, one file": len(hfz_fit.lossless(rows)), "ours, bytes of equal weight": len(hfz.from_words(rows))}
    rivals: dict[str, Callable[[], int]] = {
        "bytes split, zstd -19": lambda: _zstd(np.ascontiguousarray(words.transpose(2, 0, 1))),
        "ZipNN": lambda: _zipnn(words), "lmzip": lambda: _lmzip(rows),
    }  # fmt: skip
    for name, rival in rivals.items():
        try:
            found[name] = rival()
        except ImportError:
            continue
    return found


def _curb(faiss: Any, index: Any) -> None:
    """Fewer rounds of k-means, where there are any; nothing that neither bytes nor recall depend on."""
    if isinstance(index, faiss.IndexPreTransform):
        turn = faiss.downcast_VectorTransform(index.chain.at(0))
        if isinstance(turn, faiss.OPQMatrix):
            turn.niter, turn.niter_pq, turn.niter_pq_0 = 4, 2, 6
        index = faiss.downcast_index(index.index)
    if hasattr(index, "do_polysemous_training"):  # gives the same centroids other numbers, for minutes
        index.do_polysemous_training = False
    if hasattr(index, "pq"):
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = _ROUNDS, 1  # few points: no warnings
    for part in ("rq", "prq", "plsq", "lsq"):
        quantizer = getattr(index, part, None)
        if quantizer is not None and hasattr(quantizer, "max_beam_size"):
            quantizer.max_beam_size = 1


def _zstd(planes: npt.NDArray[np.uint8]) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(planes.tobytes()))


def _zipnn(words: npt.NDArray[np.uint8]) -> int:
    from zipnn import ZipNN

    data = words.tobytes()
    return min(len(ZipNN(method=m, bytearray_dtype="float32").compress(bytearray(data))) for m in ("AUTO", "HUFFMAN"))


def _lmzip(rows: F32) -> int:
    import lmz.api
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        save_file({"rows": rows}, f"{folder}/m.safetensors")
        lmz.api.compress(f"{folder}/m.safetensors", f"{folder}/m.lmz")
        return Path(folder, "m.lmz").stat().st_size
