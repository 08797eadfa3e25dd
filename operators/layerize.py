"""Split what is known of a plane into levels: a base, refinements, and the residual that makes it bit-exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import exact, plane_index, refine
from operators.errors import HilbertflowError
from operators.floats import to_float32
from operators.hilbert_map import from_layout
from operators.operator import Operator, Over
from operators.planes import with_arrays, with_column

Level = Literal["base", "fine", "finer", "exact"]
ORDER = ("base", "fine", "finer", "exact")


@dataclass(frozen=True)
class Layerize(Operator):
    """Turn lattice indices into levels, each coded given those beneath it.

    By the chain rule, H(v) = H(base) + H(refinement | base) + H(v | both): the layers together need not cost more than
    one lossless copy.

    Parameters
    ----------
    levels: ``base`` first, then ``fine`` and ``finer`` if wanted, then ``exact`` to have the source's bytes back.
    fine_bits: how many bits a refinement adds to the lattice index, about 6 dB each; 1 to 6.
    """

    kind: Literal["layerize"] = "layerize"
    levels: tuple[Level, ...] = ("base", "fine", "exact")
    fine_bits: int = 4

    over: ClassVar[Over] = "planes"

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0] != "base" or list(self.levels) != [n for n in ORDER if n in self.levels]:
            raise HilbertflowError(
                f"levels are {list(self.levels)}", where="layerize", remedy="use base, then any of fine, finer, exact"
            )
        if not 1 <= self.fine_bits <= 6:
            raise HilbertflowError(f"fine_bits is {self.fine_bits}", where="layerize", remedy="use 1 to 6")

    @property
    def refinements(self) -> int:
        """Number of levels between base and exact."""
        return sum(name in ("fine", "finer") for name in self.levels)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Add ``level1`` …, ``exact``, ``crc``, ``energy``, ``error0`` …, ``means``; drop ``bits`` and ``index``."""
        split = [self._plane(row) for row in batch.to_pylist()]
        batch = batch.drop_columns(["bits", "index"])
        for level in range(1, self.refinements + 1):
            batch = with_arrays(batch, f"level{level}", [plane.refinements[level - 1] for plane in split])
        batch = with_arrays(batch, "exact", [plane.exact for plane in split])
        batch = with_column(batch, "crc", pa.array([plane.crc for plane in split], pa.uint32()))
        batch = with_column(batch, "energy", pa.array([plane.energy for plane in split], pa.float64()))
        batch = with_arrays(batch, "means", [plane.means for plane in split])
        for level in range(self.refinements + 1):
            errors = [plane.errors[level] for plane in split]
            batch = with_column(batch, f"error{level}", pa.array(errors, pa.float64()))
        return batch

    def _plane(self, row: dict[str, Any]) -> _Split:
        word, layout, dtype = f"u{row['word']}", row["layout"], row["dtype"]
        plane = np.frombuffer(row["bits"], word)
        bits = from_layout(plane, layout)
        crc = google_crc32c.value(bits.tobytes())
        if row["opaque"]:
            nothing = [b""] * self.refinements
            return _Split(nothing, plane.tobytes(), crc, 0.0, [0.0] * (self.refinements + 1), b"")
        shape = row["height"], row["width"]
        values = to_float32(bits, dtype).reshape(shape)
        codes = np.frombuffer(row["scales"], np.uint32)
        index = np.frombuffer(row["index"], np.int32).reshape(shape)
        lattice = refine.Lattice(row["step"], row["reach"], self.fine_bits, row["inset"])
        refinements, errors = [], [_squared_error(values, refine.reconstruct(index, dtype, codes, lattice, 0))]
        for level in range(1, self.refinements + 1):
            symbols, index = refine.refine(values, dtype, codes, index, lattice, level)
            refinements.append(symbols.tobytes())  # in an order of its own: noise has no neighbourhood
            errors.append(_squared_error(values, refine.reconstruct(index, dtype, codes, lattice, level)))
        residual = b""
        if self.levels[-1] == "exact":
            residual = exact.encode(bits.reshape(shape), dtype, index, codes, lattice, self.refinements).tobytes()
        finite = values[np.isfinite(values)].astype(np.float64)
        energy = float(np.einsum("i,i->", finite, finite))  # no BLAS: the last bits would tell how many threads it had
        return _Split(refinements, residual, crc, energy, errors, plane_index.means(values).tobytes())


@dataclass(frozen=True)
class _Split:
    refinements: list[bytes]
    exact: bytes
    crc: int
    energy: float
    errors: list[float]
    means: bytes


def _squared_error(values: npt.NDArray[np.float32], approximate: npt.NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        difference = approximate.astype(np.float64) - values
    difference = difference[np.isfinite(difference)]
    return float(np.einsum("i,i->", difference, difference))
