"""A checkpoint told by its parent: exact differences, in an order that tells the entropy coder how large they are.

A training step moves a weight by an amount that hangs on its row and hardly on its own size, while the grid of floats
is as fine as the weight is small. So a difference, counted in floats between the two, spreads with the step of its row
over the grid of its weight; both are known before it is decoded, and a plane's differences lie sorted by that ratio:
the coder, whose statistics follow the place, sees one spread after another. Steps of momentum optimizers go on in one
direction, so the parent's own step (parent less grandparent), shortened by a factor a row, is taken as a forecast.

XOR with the parent, the way of BitX (Wang et al., "ZipLLM", 2025), has neither: a carry flips many bits at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import plane_index
from operators.errors import HilbertflowError
from operators.floats import Words, dtype_info, from_ordered, round_to, to_float32, to_ordered
from operators.operator import Operator, Over
from operators.planes import with_arrays, with_column
from operators.scales import APART

Codes = npt.NDArray[np.uint32]
_OCTAVE, _ZERO = 8, 1280
"""Codes of spreads an octave, and that of a spread of 1; 0 is for rows that follow the forecast to the bit."""
_FACTORS = 32
"""Factors of the parent's step: 0, 1/16 … 31/16."""
_COARSE = 4
"""Of so many codes one is used where values are short: their differences are worth few bits, a row's codes must be."""
_SMALLEST = np.float32(2.0**-100)  # shorter forecasts are none, so that no subnormal enters the arithmetic


def encode(bits: Words, parent: Words, before: Words | None, dtype: str) -> tuple[Words, Codes]:
    """Symbols (rows, side) of the words' own type and codes (2·rows,), in the form of scales: spreads, then factors.

    Parameters
    ----------
    bits, parent: words (rows, side) of ``dtype``; any patterns.
    before: words of the parent's parent, or None.
    """
    if not dtype_info(dtype).lossy:
        return _zigzag(bits - parent), np.zeros(2 * len(bits), np.uint32)
    factors = np.zeros(len(bits), np.int64) if before is None else _factors(bits, parent, before, dtype)
    guess = _forecast(parent, before, factors, dtype)
    spreads = _spreads(bits, guess, dtype)
    steps = _zigzag(to_ordered(bits, dtype) - to_ordered(guess, dtype))
    symbols = steps.reshape(-1)[_order(guess, spreads, dtype)].reshape(bits.shape)
    return symbols, np.concatenate([spreads, factors]).astype(np.uint32) * APART


def decode(symbols: Words, codes: Codes, parent: Words, before: Words | None, dtype: str) -> Words:
    """Inverse of :func:`encode`: the words (rows, side), bit for bit."""
    if not dtype_info(dtype).lossy:
        return np.asarray(_unzigzag(symbols) + parent, parent.dtype)
    spreads, factors = np.split(codes.astype(np.int64) // APART, [len(parent)])
    if factors.size != len(parent) or int(factors.max(initial=0)) >= _FACTORS:
        raise HilbertflowError("the codes of rows are not those of a delta", where="delta", remedy="they are damaged")
    guess = _forecast(parent, before, factors, dtype)
    steps = np.empty(symbols.size, symbols.dtype)
    steps[_order(guess, spreads, dtype)] = symbols.reshape(-1)
    return from_ordered(to_ordered(guess, dtype) + _unzigzag(steps).reshape(guess.shape), dtype)


def _forecast(parent: Words, before: Words | None, factors: npt.NDArray[np.int64], dtype: str) -> Words:
    """The parent, moved on by a part of its own last step: single IEEE operations, the same everywhere."""
    if before is None or not factors.any():
        return parent
    with np.errstate(all="ignore"):
        value = to_float32(parent, dtype)
        step = (value - to_float32(before, dtype)) * (factors[:, None].astype(np.float32) * np.float32(2 / _FACTORS))
        moved = value + step
        sound = np.isfinite(moved) & (np.abs(step) >= _SMALLEST)
        return np.where(sound, round_to(np.where(sound, moved, np.float32(0)), dtype), parent)


def _factors(bits: Words, parent: Words, before: Words, dtype: str) -> npt.NDArray[np.int64]:
    """For each row the factor that leaves least squared error."""
    value = _finite(parent, dtype)
    last, own = value - _finite(before, dtype), _finite(bits, dtype) - value
    best = (last * own).sum(axis=1) / np.maximum((last * last).sum(axis=1), 1e-300)
    grain = _grain(dtype)
    return np.asarray(np.clip(np.rint(best * _FACTORS / 2 / grain) * grain, 0, _FACTORS - grain), np.int64)


def _spreads(bits: Words, guess: Words, dtype: str) -> npt.NDArray[np.int64]:
    """Root mean square of what the forecast leaves, a row, in eighths of an octave."""
    left = np.sqrt(np.square(_finite(bits, dtype) - _finite(guess, dtype)).mean(axis=1))
    grain = _grain(dtype)
    codes = np.rint(np.log2(np.maximum(left, 1e-300)) * _OCTAVE / grain) * grain + _ZERO
    return np.where(left > 0, codes, 0).astype(np.int64)


def _grain(dtype: str) -> int:
    return 1 if dtype_info(dtype).width == 4 else _COARSE


def _finite(words: Words, dtype: str) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.nan_to_num(to_float32(words, dtype).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _order(guess: Words, spreads: npt.NDArray[np.int64], dtype: str) -> npt.NDArray[np.int64]:
    """Positions of a plane by spread over grid: the spread less the forecast's exponent, in eighths of an octave."""
    form = dtype_info(dtype)
    exponent = np.maximum((guess.astype(np.int64) & (form.sign - 1)) >> form.mantissa, 1)
    spread = spreads[:, None]
    ratio = np.where(spread > 0, spread + _OCTAVE * (form.bias - exponent), -(1 << 15))
    return np.argsort(ratio.reshape(-1).astype(np.int16), kind="stable")  # 16 bits are sorted by radix


def _zigzag(steps: Words) -> Words:
    """Differences modulo the word as unsigned numbers, small ones for small distances either way."""
    width = 8 * steps.dtype.itemsize
    signed = steps.view(f"i{steps.dtype.itemsize}")
    return np.asarray((signed << 1) ^ (signed >> (width - 1))).view(steps.dtype)


def _unzigzag(symbols: Words) -> Words:
    one = symbols.dtype.type(1)
    return np.asarray((symbols >> one) ^ (symbols.dtype.type(0) - (symbols & one)), symbols.dtype)


@dataclass(frozen=True)
class Delta(Operator):
    """Code planes as differences to the same planes of a parent, in place of quantizing and layering them.

    A recipe does not name it: ``parent:`` puts it there.
    """

    kind: Literal["delta"] = "delta"

    over: ClassVar[Over] = "planes"

    def apply(self, batch: pa.Table) -> pa.Table:
        """From ``bits``, ``parent`` and ``before`` (binary; empty where there is none) to ``exact`` and ``scales``.

        Adds ``means`` (:mod:`operators.plane_index`), ``crc`` of the words, ``energy`` and ``error_parent`` (sums of
        squares of the values and of what they differ from the parent's by); planes are in raster order.
        """
        coded = [_plane(row) for row in batch.to_pylist()]
        batch = batch.drop_columns(["bits", "parent", "before"])
        batch = with_arrays(batch, "exact", [plane["exact"] for plane in coded])
        batch = with_arrays(batch, "scales", [plane["scales"] for plane in coded])
        batch = with_arrays(batch, "means", [plane["means"] for plane in coded])
        for name, kind in (("crc", pa.uint32()), ("energy", pa.float64()), ("error_parent", pa.float64())):
            batch = with_column(batch, name, pa.array([plane[name] for plane in coded], kind))
        return batch


def _plane(row: dict[str, Any]) -> dict[str, Any]:
    shape, word, dtype = (row["height"], row["width"]), f"u{row['word']}", row["dtype"]
    bits, parent = (np.frombuffer(row[name], word).reshape(shape) for name in ("bits", "parent"))
    before = np.frombuffer(row["before"], word).reshape(shape) if row["before"] else None
    symbols, codes = encode(bits, parent, before, dtype)
    energy, error, index = 0.0, 0.0, b""
    if not row["opaque"]:
        index = plane_index.means(to_float32(bits, dtype)).tobytes()
    if dtype_info(dtype).lossy:
        values = _finite(bits, dtype)
        energy, error = (float(np.square(part).sum()) for part in (values, values - _finite(parent, dtype)))
    return {
        "exact": symbols.tobytes(), "scales": codes.tobytes() if dtype_info(dtype).lossy else b"",
        "crc": google_crc32c.value(bits.tobytes()), "energy": energy, "error_parent": error,
        "means": index,
    }  # fmt: skip
