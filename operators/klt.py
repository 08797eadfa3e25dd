"""The Karhunen-Loève transform of a collection, in integers, so that it comes out alike on every machine.

Rows are centred, turned onto their principal axes and coded there (:mod:`operators.rowcode`), where a coefficient's
variance says how many bits it deserves. What the exact level is coded against must be the same number today and in ten
years, whatever the BLAS, the thread count or the processor. So rows become integers in units of ``2**-shift``, the axes
are integers in units of ``2**-15``, and products of the two are summed by a float64 matrix product: every term and
every partial sum is an integer below 2**53, hence exact, hence the same in any order. :meth:`Klt.check` keeps to that
bound. An axis is stored with only as many bits as its variance needs; the encoder goes by the least-squares inverse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

AXIS = 15
"""Axes are multiples of 2**-AXIS."""
MOST_DIM = 8192
_ROOM = 53 - AXIS - 1  # bits of a sum of coefficients or values, in magnitude
_LARGEST = float(np.finfo(np.float32).max)
_ANCHORS, _POOL, _NEAR = 512, 20_000, 10


@dataclass(frozen=True, eq=False)
class Klt:
    """A transform of d values to r ≤ d coefficients, and back.

    Parameters
    ----------
    mean: int32 (d,), in units of ``2**-shift``.
    axes: int16 (r, d), most variance first; row i in units of ``2**-bits[i]``.
    bits: uint8 (r,), at most AXIS.
    deviation: float32 (r,), of the coefficients, in units of the values.
    spread: float32 (r,), root mean square difference between a row and its nearest ones, a coefficient.
    shift: coefficients are integers in units of ``2**-shift``.
    unit: whether rows have unit length; reconstructions are then scaled to it.
    """

    mean: I32
    axes: npt.NDArray[np.int16]
    bits: npt.NDArray[np.uint8]
    deviation: F32
    spread: F32
    shift: int
    unit: bool

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self.axes.shape[1])

    @property
    def rank(self) -> int:
        """Number of coefficients."""
        return int(self.axes.shape[0])

    @property
    def limit(self) -> int:
        """Values and coefficients are clipped to ± this many units, so that sums stay exact."""
        return 1 << min(26, _ROOM - max(self.dim, 2).bit_length())

    @cached_property
    def plain(self) -> bool:
        """Whether coefficients are the values themselves, less the mean (:func:`identity`)."""
        return not self.bits.any() and np.array_equal(self.axes, np.eye(*self.axes.shape, dtype=np.int16))

    @cached_property
    def basis(self) -> F64:
        """Axes (r, d) in units of ``2**-AXIS``, whole numbers."""
        return np.asarray(np.ldexp(self.axes.astype(np.float64), (AXIS - self.bits.astype(np.int32))[:, None]))

    @cached_property
    def analysis(self) -> F64:
        """Least-squares inverse of the basis (d, r) in units of ``2**-AXIS``, whole numbers: for the encoder only."""
        basis = np.ldexp(self.basis, -AXIS)
        gram = basis @ basis.T
        gram[np.diag_indices_from(gram)] += 1e-9
        found = np.rint(np.ldexp(np.linalg.solve(gram, basis).T, AXIS))
        return np.asarray(np.clip(found, -(1 << AXIS), 1 << AXIS))

    @cached_property
    def hash(self) -> str:
        """Of everything the transform depends on; rows coded by one transform never mix with another's."""
        digest = hashlib.sha256(f"klt {self.shift} {self.unit}".encode())
        for name, array in sorted(self.to_arrays().items()):
            digest.update(f" {name} {array.shape} {array.dtype.str} ".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def forward(self, rows: F32) -> I32:
        """Coefficients (n, r) int32, in units of ``2**-shift``, of rows (n, d) float32 without NaN."""
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise HilbertflowError(f"rows of shape {rows.shape}", where="klt", remedy=f"rows of {self.dim} values")
        values = np.rint(np.ldexp(rows.astype(np.float64), self.shift)) - self.mean
        np.clip(values, -self.limit, self.limit, out=values)
        out = values[:, : self.rank] if self.plain else np.rint(np.ldexp(values @ self.analysis, -AXIS))
        return np.asarray(np.clip(out, -self.limit, self.limit), np.int32)

    def inverse(self, coefficients: npt.NDArray[np.integer[Any]], scaled: bool = True) -> F32:
        """Rows (n, d) float32 from coefficients (n, k), k ≤ r, the missing ones zero: the same bits everywhere.

        ``scaled=False`` for what is no row but a mean of some: it is not brought to unit length.
        """
        clipped = np.clip(coefficients, -self.limit, self.limit).astype(np.float64)
        sums = self._turned_back(clipped)
        sums += np.ldexp(self.mean.astype(np.float64), AXIS)
        if not (self.unit and scaled):
            sums *= 2.0 ** (-AXIS - self.shift)  # exact, and faster than ldexp
            return np.asarray(np.clip(sums, -_LARGEST, _LARGEST, out=sums), np.float32)
        # Lengths from integers as well: wrapping int64 sums are the same in any order.
        sums *= 2.0 ** (24 - AXIS - self.shift)
        whole = np.rint(sums).astype(np.int64)
        length = np.sqrt(np.maximum(np.einsum("ij,ij->i", whole, whole), 1).astype(np.float64))
        sums /= length[:, None]
        return np.asarray(sums, np.float32)

    def _turned_back(self, coefficients: F64) -> F64:
        count = coefficients.shape[1]
        if not self.plain:
            return np.asarray(coefficients @ self.basis[:count])
        out = np.zeros((len(coefficients), self.dim))
        out[:, :count] = np.ldexp(coefficients, AXIS)
        return out

    def check(self) -> None:
        """Raise when the parts do not fit together or sums might not be exact."""
        rank, dim = self.axes.shape
        good = (
            self.mean.shape == (dim,)
            and self.bits.shape == self.deviation.shape == self.spread.shape == (rank,)
            and rank <= dim <= MOST_DIM
            and int(self.bits.max(initial=0)) <= AXIS
            and -200 <= self.shift <= 200
            and bool(np.isfinite(self.deviation).all() and np.isfinite(self.spread).all())
            and int(np.abs(self.mean.astype(np.int64)).max(initial=0)) <= self.limit
            and float(np.abs(self.basis).max(initial=0)) <= 1 << AXIS
        )
        if not good:
            raise HilbertflowError("the transform is malformed", where="klt")

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that an archive stores; ``shift`` and ``unit`` are attributes."""
        names = ("mean", "axes", "bits", "deviation", "spread")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], shift: int, unit: bool) -> Self:
        """Inverse of :meth:`to_arrays`; checks what it is given."""
        made = cls(**{name: np.asarray(arrays[name]) for name in ("mean", "axes", "bits", "deviation", "spread")},
                   shift=int(shift), unit=bool(unit))  # fmt: skip
        made.check()
        return made


def fit(sample: F32, noise: float = 0.03, seed: int = 0) -> Klt:
    """The transform of a sample.

    Parameters
    ----------
    sample: float32 (n, d), n ≥ 1, finite; some 10,000 rows are plenty for d in the hundreds.
    noise: deviation that the stored axes may add to a row, relative to the root mean square distance of rows from the
        mean; it sets how many bits an axis is stored with.
    seed: of the choice of rows among which neighbours are sought.
    """
    sample = _checked(sample)
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample - mean
    variance, axes = np.linalg.eigh(centred.T @ centred / len(sample))
    variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1].T
    axes = axes * np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    keep = max(1, int((variance > variance[0] * 1e-12).sum())) if variance[0] > 0 else 1
    variance, axes = variance[:keep], axes[:keep]
    bits = _axis_bits(variance, noise, sample.shape[1])
    stored = np.clip(np.rint(np.ldexp(axes, bits[:, None])), -32768, 32767).astype(np.int16)
    deviation = np.sqrt(variance)
    return _settled(sample, mean, stored, bits, deviation, _spread(centred, axes, deviation, seed))


def identity(sample: F32, mean: F64 | None = None) -> Klt:
    """The transform that leaves values as they are, less a mean: where axes would cost more than they save.

    Parameters
    ----------
    sample: float32 (n, d), n ≥ 1, finite.
    mean: float64 (d,); by default there is none.
    """
    sample, dim = _checked(sample), sample.shape[1]
    mean = np.zeros(dim) if mean is None else mean
    deviation = np.sqrt(np.square(sample - mean).mean(axis=0))
    return _settled(sample, mean, np.eye(dim, dtype=np.int16), np.zeros(dim, np.int32), deviation, deviation)


def _checked(sample: F32) -> F32:
    sample = np.ascontiguousarray(sample, np.float32)
    if sample.ndim != 2 or not sample.size or sample.shape[1] > MOST_DIM:
        raise HilbertflowError(
            f"a sample of shape {sample.shape}", where="klt", remedy=f"at least one row of 1 to {MOST_DIM} values"
        )
    if not np.isfinite(sample).all():
        raise HilbertflowError("the sample holds NaN or Inf", where="klt", remedy="drop those rows")
    return sample


def _settled(
    sample: F32, mean: F64, axes: npt.NDArray[np.int16], bits: npt.NDArray[np.int32], deviation: F64, spread: F64 | F32
) -> Klt:
    """The transform in integers as fine as exact sums allow, with two bits of room for rows unlike the sample."""
    largest = max(float(np.linalg.norm(sample - mean, axis=1).max()), float(np.abs(mean).max()), 2.0**-120)
    lengths = np.einsum("ij,ij->i", sample, sample, dtype=np.float64)
    found = Klt(
        mean=np.zeros(sample.shape[1], np.int32), axes=axes, bits=bits.astype(np.uint8),
        deviation=np.minimum(deviation, _LARGEST).astype(np.float32), spread=spread.astype(np.float32),
        shift=0, unit=bool(np.abs(lengths - 1).max() < 1e-4),
    )  # fmt: skip
    shift = found.limit.bit_length() - 1 - 2 - int(np.ceil(np.log2(largest)))
    settled = replace(found, mean=np.rint(np.ldexp(mean, shift)).astype(np.int32), shift=shift)
    settled.check()
    return settled


def _axis_bits(variance: F64, noise: float, dim: int) -> npt.NDArray[np.int32]:
    """Bits a stored axis needs for all of them together to add ``noise``: more where the coefficients are larger."""
    total = float(variance.sum())
    if total <= 0:
        return np.zeros(len(variance), np.int32)
    share = noise * noise * total / len(variance)  # squared error of a row that one axis may cause
    step = np.sqrt(12 * share / (dim * np.maximum(variance, total * 1e-15)))
    return np.asarray(np.clip(np.ceil(-np.log2(step)), 4, AXIS), np.int32)


def _spread(centred: F64, axes: F64, deviation: F64, seed: int) -> F32:
    """Root mean square difference between rows of the sample and their nearest ones, along each axis."""
    rng = np.random.default_rng(seed)
    pool = centred[rng.permutation(len(centred))[:_POOL]] if len(centred) > _POOL else centred
    scale = max(float(deviation.max()), 1e-150)
    turned = (pool / scale @ axes.T).astype(np.float32)
    near = min(_NEAR, len(pool) - 1)
    if near < 1:
        return np.asarray(np.minimum(deviation, _LARGEST), np.float32)
    anchors = turned[: min(_ANCHORS, len(turned))]
    score = anchors @ turned.T - 0.5 * np.einsum("ij,ij->i", turned, turned)
    np.fill_diagonal(score, -np.inf)
    nearest = np.argpartition(score, score.shape[1] - near, axis=1)[:, -near:]
    difference = turned[nearest] - anchors[:, None]
    spread = scale * np.sqrt(np.mean(np.square(difference, dtype=np.float64), axis=(0, 1)))
    return np.asarray(np.clip(spread, 1e-3 * deviation, np.minimum(2 * deviation, _LARGEST)), np.float32)
