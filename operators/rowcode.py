"""The code of a collection's rows: levels of transform coefficients, then what makes the rows bit-exact.

``level0 … levelK``
    int16 (n, r_k): symbols of a trellis quantizer (:mod:`operators.rowtrellis`) of the principal coefficients, each
    level quantizing what the ones above left over. A level holds only the coefficients that it codes. Steps follow
    reverse water-filling on the error that nearest neighbours feel: a coefficient's error counts by how much close
    rows differ in it, so that at equal bytes more of the true neighbours stay on top.
``cells``
    int32 (n, d): every value lies in a cell ``[q, q + 1) * 2**-cell``; this is q less the cell of the value as
    reconstructed from the levels, a small number. Where values lie on a grid, as pixels do, its distribution depends on
    the reconstruction (black is black), and a block's cells are stored in the order of that.
``exact``
    uint32 (n, d): which of the floats in that cell it is. A cell holds ``2**j`` consecutive floats, so these are j
    mantissa bits, noise, and stored as such; nothing at all for values that are multiples of ``2**-cell``, as pixels
    are. Within a block of rows they lie in order of j, so that the entropy coder sees one j after another.

Every prefix of the levels decodes; the arithmetic is that of :mod:`operators.klt`, so the cells are the same on any
machine. Rows that belong to lists (:mod:`operators.lists`) are coded as differences to the centroid of theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from operators import rowtrellis
from operators.errors import HilbertflowError
from operators.floats import from_ordered, to_ordered
from operators.klt import Klt
from operators.klt import fit as fit_klt
from operators.rowtrellis import Columns

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
Levels = Mapping[str, npt.NDArray[Any]]
Lists = npt.NDArray[np.integer[Any]]
Starts = npt.NDArray[np.integer[Any]]

BITS = (0.9, 1.6, 2.5)
"""Bits a dimension down to each level, by default."""
USUAL_BITS, THIN_BITS = (0.5, 1.4, 3.2), (0.3, 0.6, 1.2)
"""What :func:`usual_bits` chooses from."""
_FREQUENT = 0.2  # share of values on a grid that are alike, from which levels are thin
_CELLS = 12.0  # cells that a deviation of the error spans
_LARGEST = float(np.finfo(np.float32).max)
_FAR = float(1 << 23)
_STEP_BITS = 6


@dataclass(frozen=True, eq=False)
class RowCode:
    """How the rows of one collection are coded.

    Parameters
    ----------
    klt: the transform.
    steps: int32 (levels, r): coefficient = index · step, in units of the transform; 0 where a level does not code it.
    spacing, weight, deviation: float32 (levels, r): what the encoder goes by (:class:`operators.rowtrellis.Columns`).
    centroids: int32 (K, r), of the lists; K is 0 where there are none.
    states: of the trellis.
    cell: cells of the exact level are ``2**-cell`` wide.
    block: rows that are stored together.
    low, high: cells of the least and largest value expected of a grid; None where values lie on none.
    """

    klt: Klt
    steps: I32
    spacing: F32
    weight: F32
    deviation: F32
    centroids: I32
    states: int
    cell: int
    block: int
    low: int | None = None
    high: int | None = None

    @property
    def depth(self) -> int:
        """Number of lossy levels."""
        return len(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays, in the order in which they build on one another."""
        return (*(f"level{k}" for k in range(self.depth)), "cells", "exact")

    def width(self, name: str) -> int:
        """Values of a row in the array of this name."""
        return int((self.steps[int(name[5:])] > 0).sum()) if name.startswith("level") else self.klt.dim

    @cached_property
    def centres(self) -> F32:
        """Centroids (K, d) float32 of the lists as stored, the same everywhere; the mean (1, d) without lists."""
        stored = self.centroids if len(self.centroids) else np.zeros((1, self.klt.rank), np.int32)
        return self.klt.inverse(stored, scaled=False)

    def encode(
        self, rows: F32, lists: Lists | None = None, starts: Starts | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """All levels of rows (n, d) float32; ``lists`` (n,) where there are lists.

        ``starts`` are the rows at which blocks begin, ascending from 0; left out, every ``block`` rows.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        out, total = self._lossy(rows, lists, self.depth)
        out["cells"], out["exact"] = self._exact(rows, self._rows(total, lists), starts)
        return out

    def level0(self, rows: F32, lists: Lists | None = None) -> npt.NDArray[np.int16]:
        """The first level alone of rows (n, d) float32."""
        return self._lossy(np.ascontiguousarray(rows, np.float32), lists, 1)[0]["level0"]

    def _lossy(self, rows: F32, lists: Lists | None, depth: int) -> tuple[dict[str, npt.NDArray[Any]], I32]:
        """The first lossy levels, and the coefficients that they come to without the centroids."""
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise HilbertflowError("a vector holds NaN or Inf", where=f"row {bad}", remedy="drop the row")
        left = self.klt.forward(rows) - self._centre(len(rows), lists)
        out: dict[str, npt.NDArray[Any]] = {}
        total = np.zeros_like(left)
        for level in range(depth):
            columns = Columns(*(a[level].astype(np.float64) for a in (self.spacing, self.weight, self.deviation)))
            symbols = rowtrellis.quantize((left - total).astype(np.float32), columns, self.states)
            out[f"level{level}"] = np.ascontiguousarray(symbols[:, self._coded(level)])
            self._add(total, level, out[f"level{level}"])
        return out, total

    def coefficients(self, levels: Levels, lists: Lists | None = None) -> I32:
        """Coefficients (n, r) int32, in units of ``2**-klt.shift``, from the arrays of levels 0 to some k."""
        total = np.zeros((len(levels["level0"]), self.klt.rank), np.int32)
        for level in range(self.depth):
            if f"level{level}" not in levels:
                break
            self._add(total, level, levels[f"level{level}"])
        return total + self._centre(len(total), lists)

    def decode(self, levels: Levels, lists: Lists | None = None, starts: Starts | None = None) -> F32:
        """Rows (n, d) float32 from the arrays of levels 0 to some k; bit-exact with ``cells`` and ``exact``.

        ``starts`` as for :meth:`encode`; only the exact level needs them.
        """
        missing = [name for name in self.names if name not in levels]
        if len(levels) + len(missing) != len(self.names) or list(self.names[len(levels) :]) != missing:
            raise HilbertflowError(f"levels {', '.join(levels)}", where="rowcode", remedy="give the first, no gaps")
        rows = self.klt.inverse(self.coefficients(levels, lists))
        if len(missing) > 1:
            return rows
        if missing:
            raise HilbertflowError("cells without exact", where="rowcode", remedy="give both or neither")
        return self._from_exact(rows, levels["cells"], levels["exact"], starts)

    def _coded(self, level: int) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self.steps[level] > 0)

    def _centre(self, count: int, lists: Lists | None) -> I32:
        if (lists is None) != (len(self.centroids) == 0) or (lists is not None and len(lists) != count):
            raise HilbertflowError("the list of each row is needed", where="rowcode", remedy="where there are lists")
        return np.zeros((1, self.klt.rank), np.int32) if lists is None else self.centroids[lists]

    def _add(self, total: I32, level: int, symbols: npt.NDArray[Any]) -> None:
        coded = self._coded(level)
        total[:, coded] += rowtrellis.index(symbols, self.states) * self.steps[level][coded]

    def _rows(self, total: I32, lists: Lists | None) -> F32:
        return self.klt.inverse(total + self._centre(len(total), lists))

    def _cells(self, rows: F32) -> I32:
        cells = np.floor(np.ldexp(rows.astype(np.float64), self.cell))
        cells[(rows == 0) & np.signbit(rows)] = -1  # -0.0 is the last number below 0.0
        return np.clip(cells, -_FAR, _FAR).astype(np.int32)

    def _lowest(self, cells: I32) -> U32:
        edge = np.clip(np.ldexp(cells.astype(np.float64), -self.cell), -_LARGEST, _LARGEST).astype(np.float32)
        return np.asarray(to_ordered(edge.view(np.uint32), "F32"), np.uint32)

    def _predicted(self, decoded: F32) -> tuple[I32, I32]:
        """The expected cells, and what the cells of a grid are stored in the order of."""
        near = np.clip(np.rint(decoded.astype(np.float64) * 2.0**self.cell), -_FAR, _FAR).astype(np.int32)
        return (near if self.low is None else np.clip(near, self.low, self.high)), near

    def _exact(self, rows: F32, decoded: F32, starts: Starts | None) -> tuple[I32, U32]:
        cells = self._cells(rows)
        within = np.asarray(to_ordered(rows.view(np.uint32), "F32"), np.uint32) - self._lowest(cells)
        expected, context = self._predicted(decoded)
        residual = cells - expected
        for part in self._blocks(len(rows), starts):
            within[part] = _take(within[part], _open_bits(cells[part]))
            if self.low is not None:
                residual[part] = _take(residual[part], context[part])
        return residual, within

    def _from_exact(self, decoded: F32, residual: I32, within: U32, starts: Starts | None) -> F32:
        expected, context = self._predicted(decoded)
        cells, within = residual.astype(np.int32), within.astype(np.uint32)
        for part in self._blocks(len(decoded), starts):
            if self.low is not None:
                cells[part] = _put(cells[part], context[part])
            cells[part] += expected[part]
            within[part] = _put(within[part], _open_bits(cells[part]))
        words = from_ordered(within + self._lowest(cells), "F32")
        return np.asarray(words, np.uint32).view(np.float32)

    def _blocks(self, count: int, starts: Starts | None) -> list[slice]:
        edges = [*(range(0, count, self.block) if starts is None else map(int, starts)), count]
        return [slice(low, high) for low, high in pairwise(edges)]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What an archive stores beside the levels; the numbers go with :meth:`attributes`."""
        own = ("steps", "spacing", "weight", "deviation", "centroids")
        return {f"klt_{k}": v for k, v in self.klt.to_arrays().items()} | {k: getattr(self, k) for k in own}

    def attributes(self) -> dict[str, int | bool]:
        """The numbers that an archive stores."""
        numbers = {"shift": self.klt.shift, "unit": self.klt.unit, "states": self.states, "cell": self.cell,
                   "block": self.block}  # fmt: skip
        return numbers if self.low is None or self.high is None else numbers | {"low": self.low, "high": self.high}

    @property
    def hash(self) -> str:
        """Content hash: rows coded under one never mix with another's."""
        digest = hashlib.sha256((self.klt.hash + repr(sorted(self.attributes().items()))).encode())
        for name, array in sorted(self.to_arrays().items()):
            digest.update(f" {name} {array.shape} {array.dtype.str} ".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @classmethod
    def from_arrays(cls, arrays: Levels, attributes: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_arrays` and :meth:`attributes`; checks what it is given."""
        klt = Klt.from_arrays({k[4:]: v for k, v in arrays.items() if k.startswith("klt_")},
                              attributes["shift"], attributes["unit"])  # fmt: skip
        steps, spacing, weight, deviation, centroids = (
            np.asarray(arrays[k]) for k in ("steps", "spacing", "weight", "deviation", "centroids")
        )
        made = cls(
            klt=klt, steps=steps, spacing=spacing, weight=weight, deviation=deviation, centroids=centroids,
            states=int(attributes["states"]), cell=int(attributes["cell"]), block=int(attributes["block"]),
            low=attributes.get("low"), high=attributes.get("high"),
        )  # fmt: skip
        shapes = {steps.shape, spacing.shape, weight.shape, deviation.shape}
        if (
            shapes != {(made.depth, klt.rank)}
            or centroids.shape[1:] != (klt.rank,)
            or steps.min(initial=0) < 0
            or abs(made.cell) > 200
            or made.block < 1
        ):
            raise HilbertflowError("the code of the rows is malformed", where="rowcode")
        return made


def fit(
    sample: F32,
    bits: Sequence[float] = BITS,
    centroids: F32 | None = None,
    lists: Lists | None = None,
    states: int = 8,
    block: int = 64,
    emphasis: float = 1.0,
    seed: int = 0,
    klt: Klt | None = None,
    pooled: bool = False,
    room: float = 4.0,
) -> RowCode:
    """A code made for rows like the sample.

    Parameters
    ----------
    sample: float32 (n, d), finite.
    bits: a dimension, down to each level, ascending.
    centroids, lists: float32 (K, d) and, for each row of the sample, which of them is its own; or neither.
    states: of the trellis: 4 to 256; more are slower to write, and a little smaller.
    block: rows that are stored, and fetched, together.
    emphasis: how far the error is shaped for nearest neighbours: 0 for least squared error.
    klt: the transform, where it is known already; else one is made for the sample.
    pooled: one step for all coefficients, where the rows are too few to tell their deviations apart.
    room: how many times as far out as the sample rows may lie before they are clipped; it bounds how fine a level is.
    """
    if not bits or any(b <= a for a, b in zip((0.0, *bits), bits, strict=False)):
        raise HilbertflowError(f"bits {list(bits)}", where="rowcode", remedy="ascending numbers above 0")
    sample = np.ascontiguousarray(sample, np.float32)
    klt = klt or fit_klt(sample, seed=seed)
    unit = 2.0**klt.shift
    stored = np.zeros((0, klt.rank), np.int32)
    left = klt.forward(sample).astype(np.float64)
    spread = klt.spread.astype(np.float64) * unit
    steps, spacings, weights, deviations = [], [], [], []
    if centroids is not None and lists is not None:
        # a power of two, so that an archive can leave the zeros behind out
        grain = 2.0 ** max(0, round(np.log2(max(1.0, float(np.sqrt(np.mean(left.var(axis=0)))) / 16))))
        stored = (np.rint(klt.forward(np.ascontiguousarray(centroids, np.float32)) / grain) * grain).astype(np.int32)
        left -= stored[lists]
    spent = 0.0
    for budget in bits:
        deviation = np.sqrt(np.mean(left**2, axis=0))
        if pooled:
            deviation[:] = np.sqrt(np.mean(deviation**2))
        distortion = _distortion(deviation, spread, emphasis, (budget - spent) * klt.dim, states)
        furthest = room * np.abs(left).max(axis=0, initial=0.0)
        if pooled:
            furthest[:] = furthest.max()
        wanted = rowtrellis.allocate(deviation, distortion, states)
        columns = rowtrellis.reaching(wanted, furthest)
        symbols = rowtrellis.quantize(left.astype(np.float32), columns, states)
        coded = np.flatnonzero(columns.spacing > 0)
        points = rowtrellis.index(symbols[:, coded], states).astype(np.float64)
        step = np.zeros(klt.rank, np.int32)
        best = (points * left[:, coded]).sum(axis=0) / np.maximum((points * points).sum(axis=0), 1)
        if pooled and coded.size:
            best[:] = np.median(best)
        short, finest = _short(best), columns.spacing[coded] > wanted.spacing[coded]
        step[coded] = np.where(finest & (room * short < best), np.ceil(best), short)  # rounded down it would not reach
        columns.spacing[coded] *= np.where(best > 0, step[coded] / np.where(best > 0, best, 1), 1)
        left[:, coded] -= points * step[coded]
        steps.append(step)
        spacings.append(columns.spacing)
        weights.append(columns.weight)
        deviations.append(columns.deviation)
        spent = budget
    code = RowCode(klt, np.array(steps), np.array(spacings, np.float32), np.array(weights, np.float32),
                   np.array(deviations, np.float32), stored, states, 0, block)  # fmt: skip
    return _with_cells(_cut(code), sample, lists)


def usual_bits(sample: F32) -> tuple[float, ...]:
    """Bits a dimension down to each level for rows like the sample (n, d) float32.

    Where values lie on a grid and one of them is frequent, as black is in pictures, the exact level says "black" in a
    fraction of a bit, but coefficients of a transform cannot: what fine levels spend there comes on top of a lossless
    copy. On Fashion-MNIST levels of 3.2 bits and the exact one take 509 bytes a row, of 0.6 bits 377.
    """
    if _grid(sample) is None:
        return USUAL_BITS
    most = int(np.unique(sample[:4096], return_counts=True)[1].max())
    return THIN_BITS if most >= _FREQUENT * sample[:4096].size else USUAL_BITS


def _short(steps: F64) -> I32:
    """Steps as whole numbers of a few leading bits, which take little room."""
    exponent = np.maximum(np.frexp(steps)[1] - _STEP_BITS, 0)
    return np.asarray(np.maximum(1, np.ldexp(np.rint(np.ldexp(steps, -exponent)), exponent)), np.int32)


def _distortion(deviation: F64, spread: F64, emphasis: float, bits: float, states: int) -> F64:
    """Mean squared error of each coefficient, shaped by ``spread``, that costs ``bits`` a row."""
    felt = np.log(np.maximum(spread, max(1e-6 * float(spread.max()), 1e-300)))
    shape = np.exp(-2 * emphasis * (felt - felt.mean()))
    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        spent = rowtrellis.rate(deviation, shape * 2.0**middle, states).sum()
        low, high = (middle, high) if spent > bits else (low, middle)
    return np.asarray(shape * 2.0**high)


def _cut(code: RowCode) -> RowCode:
    """The code without the axes beyond the last that any level codes."""
    rank = int(np.flatnonzero((code.steps > 0).any(axis=0)).max(initial=0)) + 1
    klt = code.klt
    cut = Klt(klt.mean, klt.axes[:rank], klt.bits[:rank], klt.deviation[:rank], klt.spread[:rank], klt.shift, klt.unit)
    arrays = {k: getattr(code, k)[:, :rank] for k in ("steps", "spacing", "weight", "deviation", "centroids")}
    return replace(code, klt=cut, **arrays)


def _with_cells(code: RowCode, sample: F32, lists: Lists | None) -> RowCode:
    """The code with cells that are the grid of the values, where they lie on one, or else some to the error's width."""
    grid = _grid(sample)
    if grid is not None:
        span = np.ldexp(np.array([sample.min(), sample.max()], np.float64), grid)
        return replace(code, cell=grid, low=int(span[0]), high=int(span[1]))
    part = slice(0, 4096)
    rows, mine = sample[part], None if lists is None else lists[part]
    levels = code.encode(rows, mine)
    decoded = code.decode({k: v for k, v in levels.items() if k.startswith("level")}, mine)
    error = max(float(np.std(rows.astype(np.float64) - decoded)), 1e-30)
    largest = max(float(np.abs(sample).max()), 1e-30)
    return replace(code, cell=int(min(np.ceil(np.log2(_CELLS / error)), np.floor(np.log2(_FAR / largest)) - 1)))


def _grid(sample: F32) -> int | None:
    """The least k from -16 to 16 for which every value is a multiple of ``2**-k``, or None."""
    values = sample.astype(np.float64)
    for k in range(-16, 17):
        scaled = np.ldexp(values, k)
        if np.abs(scaled).max() >= _FAR:
            return None
        if np.array_equal(scaled, np.rint(scaled)):
            return k if scaled.any() else None
    return None


def _open_bits(cells: I32) -> npt.NDArray[np.int32]:
    """Rank of cells by the bits that they leave open, fewest first."""
    magnitude = np.where(cells < 0, -1 - cells, cells)
    return -np.frexp(magnitude.astype(np.float32))[1]


def _take(values: npt.NDArray[Any], rank: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Values of a block in the order of their rank."""
    return values.reshape(-1)[np.argsort(rank.reshape(-1), kind="stable")].reshape(values.shape)


def _put(values: npt.NDArray[Any], rank: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Inverse of :func:`_take`."""
    out = np.empty_like(values)
    out.reshape(-1)[np.argsort(rank.reshape(-1), kind="stable")] = values.reshape(-1)
    return out
