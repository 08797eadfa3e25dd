"""Where the bits above the Gaussian bound go: the quantizer, tables that do not quite fit, and what is not symbols."""

from __future__ import annotations

from typing import Any

import numpy as np

from operators import rans, rans_tables, scales, trellis
from operators.capacity import entropy, gaussian_rate
from operators.rans_bits import SLOTS_LOG
from operators.rans_side import room
from pipelines.bench.material import Material
from pipelines.bench.rate import sqnr
from pipelines.bench.report import Table

COLUMNS = ("coder", "SQNR dB", "quantizer", "tables' fit", "tables", "states, headers", "scales", "excess bits")


def split(material: Material, states: tuple[int, ...], sides: tuple[int, ...], decibels: tuple[float, ...]) -> Table:
    """The excess of the trellis, in bits a value, by cause."""
    rows = [_row(material.cut(side), n, db) for n in states for side in sides for db in decibels]
    notes = (
        "quantizer: entropy of a plane's symbols above the bound; fit: what the tables' frequencies cost above it",
        "states, headers: the coder's last states, run lengths, check sums and rounding to words",
    )
    return Table(f"where the excess goes: {material.name}", COLUMNS, tuple(rows), notes)


def _row(material: Material, states: int, decibels: float) -> tuple[Any, ...]:
    step, side, count = trellis.step_for(decibels, states), material.words.shape[-1], material.count
    codes = [scales.encode(words, material.dtype) for words in material.words]
    symbols = [trellis.quantize(v, c, step, states) for v, c in zip(material.values, codes, strict=True)]
    decoded = np.stack(
        [trellis.index(s, states) * scales.row_steps(c, step)[:, None] for s, c in zip(symbols, codes, strict=True)]
    )
    reached = sqnr(material, decoded.astype(np.float32))
    ideal = 8 * sum(entropy(plane) * plane.size / 8 for plane in symbols)
    coded, tables = (sum(part) for part in zip(*map(_fitted, symbols), strict=True))
    whole = 8 * sum(len(rans.encode(plane)) for plane in symbols)
    kept = 8 * len(rans.encode(scales.stored(np.stack(codes))))
    quantizer = ideal - count * gaussian_rate(reached)
    parts = (quantizer, coded - ideal, tables, whole - coded - tables, kept)
    shown = (f"{part / count:.4f}" for part in (*parts, sum(parts)))
    return f"trellis, {states} states, planes of {side}²", f"{reached:.2f}", *shown


def _fitted(plane: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Bits of a plane's symbols under the tables that the coder gives them, and of these tables."""
    values, every = rans_tables.fold(plane)
    grouped = rans_tables.group(values, every, rans.BLOCK, rans.MOST_TABLES)
    head = np.zeros(room(values.size, rans.MOST_TABLES), np.uint8)
    bits, tables = rans_tables.write(grouped.counts, grouped.shifts, head, 0)
    lengths = SLOTS_LOG - np.log2(np.maximum(tables.freq, 1))
    return float((grouped.counts * lengths).sum()) + grouped.parts.bits, float(bits)
