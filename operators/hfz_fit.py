"""Which code packs a matrix of vectors best: within a number of bytes, at a recall, or exactly.

A Karhunen-Loève transform saves a part of every row and costs its axes once; so it pays from some number of rows on,
and below that rows are coded as they are, less their mean; a handful of rows not even that. The candidates are coded
and compared at equal error, every byte counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import hfz, klt, rowcode
from operators.errors import HilbertflowError
from operators.klt import Klt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

NEAR = 10
"""Neighbours that recall counts."""
QUERIES = 1000
_SAMPLE = 16_384
_WIDEST = 2048  # of a transform with axes: finding more takes minutes
_BLOCK = 2048  # columns that are coded together where rows are wider
_LEAST, _MOST = 0.01, 20.0  # bits a value
_STATES = 32
_FEW = 1 << 16  # bytes of values: so few are packed exactly in no time, and often in less than a code takes


@dataclass(frozen=True)
class _Transform:
    """A way to code rows. factor: error that the stored axes may cause; None: no axes. mean, pooled: as in rowcode."""

    name: str
    factor: float | None = None
    mean: bool = True
    pooled: bool = False


_POOLED = _Transform("none", mean=False, pooled=True)
_CENTRED = _Transform("mean")
_TURNED = _Transform("klt", 0.16)
_COARSE = _Transform("klt, coarse", 0.4)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows (n, d) float32 to pack, and what they came as."""

    values: F32
    dtype: np.dtype[Any]

    @cached_property
    def sample(self) -> F32:
        """Some of the rows, if there are many."""
        if len(self.values) <= _SAMPLE:
            return self.values
        return self.values[np.sort(np.random.default_rng(0).permutation(len(self.values))[:_SAMPLE])]

    @property
    def room(self) -> float:
        """How many times as far out as the sample other rows may lie."""
        return 1.25 if len(self.values) <= _SAMPLE else 4.0  # a step is rounded to a few bits

    def code(self, transform: _Transform, bits: float, emphasis: float) -> bytes:
        """A lossy file at about this many bits a value."""
        count, dim = self.values.shape
        files, step = [], dim if dim <= _WIDEST else _BLOCK
        for start in range(0, dim, step):
            part = slice(start, start + step)
            turn = _made(self.sample[:, part], transform, bits)
            made = rowcode.fit(self.sample[:, part], (bits,), states=_STATES, klt=turn, pooled=transform.pooled,
                               emphasis=0.0 if turn.plain else emphasis, block=1, room=self.room)  # fmt: skip
            files.append(hfz.from_rows(made, self.values[:, part], self.dtype))
        return files[0] if len(files) == 1 else hfz.from_columns(files, count, dim, self.dtype)

    def candidates(self) -> Iterator[_Transform]:
        """Transforms that may pay for so many rows."""
        count, dim = self.values.shape
        if count < 256:
            yield _POOLED
        if 1 < count < 64 * dim or dim > _WIDEST:
            yield _CENTRED
        if dim <= _WIDEST and count >= dim / 2:
            if count < 16 * dim:
                yield _COARSE
            yield _TURNED

    def best(self, bits: float, emphasis: float) -> _Transform:
        """The transform that packs the rows smallest, at equal error."""
        found = list(self.candidates())
        if len(found) == 1:
            return found[0]

        def price(transform: _Transform) -> float:
            file = self.code(transform, bits, emphasis)
            return 8 * len(file) + self.values.size / 2 * float(np.log2(max(error(self.values, file), 1e-300)))

        return min(found, key=price)


def lossless(values: npt.NDArray[Any]) -> bytes:
    """The smallest exact file of a matrix of any dtype of ``hfz.DTYPES``."""
    candidates = [hfz.from_words(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.ascontiguousarray(values, np.float32)
        same = np.isfinite(rows).all() and np.array_equal(rows.astype(values.dtype), values)
    if same and values.dtype.itemsize <= 4 and values.shape[1] <= _WIDEST:
        some = _Rows(rows, values.dtype)
        for transform in some.candidates():
            if transform is _COARSE:
                continue
            made = rowcode.fit(some.sample, (1.5,), klt=_made(some.sample, transform, 4.0), pooled=transform.pooled)
            candidates.append(hfz.from_rows(made, rows, values.dtype, exact=True))
    return min(candidates, key=len)


def within(values: npt.NDArray[Any], size: float) -> bytes:
    """The file of least error that is no longer than ``size`` bytes a row on average."""
    rows = checked(values)
    count, dim = rows.values.shape
    budget = int(size * count)
    exact = lossless(values) if budget > values.nbytes / 8 or values.nbytes <= _FEW else None
    if exact is not None and len(exact) <= budget:
        return exact
    bits = min(max(0.9 * 8 * budget / rows.values.size, _LEAST), _MOST)
    transform = rows.best(bits, 0.0)
    found, least, low, high, over = None, budget + 1, 0.0, 2 * _MOST, 0
    for _ in range(8):
        file = rows.code(transform, bits, 0.0)
        least = min(least, len(file)) if found is None and least <= budget else len(file)
        if len(file) <= budget:
            found, low, over = file, bits, 0
            if len(file) > 0.99 * budget or bits >= _MOST:
                break
        else:
            high, over = bits, over + 1
        guess = bits + 8 * (0.996 * budget - len(file)) / rows.values.size
        if over > 1:  # as fine as symbols reach, a code does not shrink at the first bits less
            guess = min(guess, max((low + high) / 2, 0.75 * bits))
        bits = min(guess if low < guess < high else (low + high) / 2, _MOST)
        if bits < _LEAST:
            break
    if found is None:
        least = least if exact is None else min(least, len(exact))  # a handful of rows is less than a code of them
        what = f"{count} vectors of {dim} values do not fit in {size:g} bytes each"
        raise HilbertflowError(what, remedy=f"allow at least {int(np.ceil(least / count))} bytes a vector")
    return found


def reaching(values: npt.NDArray[Any], recall: float, metric: str = "l2") -> bytes:
    """The smallest file found whose vectors, searched exhaustively with the originals, give at least this recall@10.

    Rows of the set itself ask for their nearest others; up to 1,000 of them, chosen by a fixed seed. A row is left out
    of what it should find and of what it finds. Exact where a lossy file is larger than that.
    """
    if not 0 < recall <= 1:
        raise HilbertflowError(f"recall {recall:g}", remedy="a number above 0 and at most 1")
    rows = checked(values)
    truth = Truth.of(rows.values, metric)
    transform = rows.best(1.5, 1.0)
    miss = max(1 - recall, 0.2 / truth.asked)
    tried: list[tuple[float, float, bytes]] = []  # bits, share missed, file
    bits = 1.5
    for _ in range(10):
        file = rows.code(transform, bits, 1.0)
        missed = 1 - truth.recall(hfz.decode(file))
        tried.append((bits, missed, file))
        good = [entry for entry in tried if entry[1] <= 1 - recall + 1e-12]
        if good and (bits <= _LEAST or 1 - recall - min(good)[1] < 0.1 * miss + 0.5 / truth.asked):
            break
        low = max((b for b, m, _ in tried if m > 1 - recall + 1e-12), default=0.0)
        high = min((b for b, m, _ in tried if m <= 1 - recall + 1e-12), default=2 * _MOST)
        if low >= _MOST or high - low < 0.01:
            break
        # The share missed falls by about half with each bit a value: along that line, kept inside the bracket.
        step = float(np.log2(max(missed, 0.3 / truth.asked) / (0.97 * miss)))
        guess = bits + min(max(step, -2.0), 2.0)
        inside = low + 0.05 * (high - low) <= guess <= high - 0.05 * (high - low)
        bits = min(max(guess if inside or high > _MOST else (low + high) / 2, _LEAST), _MOST)
    good = [entry for entry in tried if entry[1] <= 1 - recall + 1e-12]
    if not good:
        return lossless(values)
    found = min(good)[2]
    return min(found, lossless(values), key=len) if len(found) > values.nbytes / 4 else found


@dataclass(frozen=True, eq=False)
class Truth:
    """Which rows of a set are nearest to some of its own.

    queries: (q, d) float32. own: (q,) their row numbers. nearest: (q, k) row numbers, none its own.
    """

    queries: F32
    own: I64
    nearest: I64
    metric: str

    @property
    def asked(self) -> int:
        """Neighbours asked for in all."""
        return max(self.nearest.size, 1)

    @classmethod
    def of(cls, rows: F32, metric: str) -> Truth:
        """By exhaustive scan; ``metric`` is l2, ip or cosine."""
        if metric not in ("l2", "ip", "cosine"):
            raise HilbertflowError(f"unknown metric {metric!r}", remedy="use one of l2, ip, cosine")
        own = np.sort(np.random.default_rng(1).permutation(len(rows))[:QUERIES])
        queries = _scaled(rows, metric)[own]
        empty = cls(queries, own, np.zeros((len(own), 0), np.int64), metric)
        return replace(empty, nearest=empty._search(rows))

    def recall(self, rows: npt.NDArray[Any]) -> float:
        """Share of the nearest that a scan of these rows finds."""
        found = self._search(np.ascontiguousarray(rows, np.float32))
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, self.nearest, strict=True))
        return hits / self.asked if self.nearest.size else 1.0

    def _search(self, rows: F32) -> I64:
        import faiss

        count = min(NEAR, len(rows) - 1)
        if not count:
            return np.zeros((len(self.own), 0), np.int64)
        kind = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        found = faiss.knn(self.queries, _scaled(rows, self.metric), min(count + 1, len(rows)), metric=kind)[1]
        found = np.asarray(found, np.int64)
        order = np.argsort(found == self.own[:, None], axis=1, kind="stable")  # its own row last
        return np.asarray(np.take_along_axis(found, order, axis=1)[:, :count])


def checked(values: npt.NDArray[Any]) -> _Rows:
    """The rows as float32, or HilbertflowError where a lossy code cannot take them."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise HilbertflowError("a value beyond what float32 holds", where=f"row {bad}", remedy="pack it exactly")
    return _Rows(rows, values.dtype)


def error(rows: F32, file: bytes) -> float:
    """Mean squared error of a file's vectors, on the first rows."""
    part = rows[:4096].astype(np.float64)
    return float(np.mean(np.square(part - hfz.decode(file)[:4096])))


def _made(sample: F32, transform: _Transform, bits: float) -> Klt:
    if transform.factor is None:
        mean = sample.mean(axis=0, dtype=np.float64) if transform.mean else None
        turn = klt.identity(sample, mean)
    else:
        turn = klt.fit(sample, noise=transform.factor * 2.0**-bits)
    grain = float(np.ldexp(np.sqrt(np.mean(np.square(turn.deviation, dtype=np.float64))), turn.shift)) * 2.0**-bits / 4
    unit = 1 << max(int(np.floor(np.log2(max(grain, 1.0)))), 0)
    return replace(turn, mean=(np.rint(turn.mean / unit) * unit).astype(np.int32))


def _scaled(rows: F32, metric: str) -> F32:
    if metric != "cosine":
        return np.ascontiguousarray(rows, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30), np.float32)
