"""Resolve ``auto``: try layouts and coders on sampled planes and keep the cheapest, with what was compared."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from operators.coders import CoderKind, coded_sizes
from operators.frame_encode import FrameEncode, level_planes
from operators.hilbert import Layout
from operators.hilbert_map import HilbertMap
from operators.operator import Operator
from operators.planes import level_columns
from pipelines.plan import Trials, Units
from storage.planes import PlaneUnits

SAMPLED_UNITS, SAMPLED_PLANES, SAMPLED_ROWS = 3, 4, 256
CANDIDATES: tuple[CoderKind, ...] = ("rans", "hevc", "h264", "av1", "ffv1")
LAYOUTS: tuple[Layout, ...] = ("raster", "hilbert")  # the first of equals wins, here and above


def tune(stream: tuple[Operator, ...], source: Units) -> tuple[tuple[Operator, ...], Trials]:
    """The operators with every ``auto`` resolved.

    The layout is the one whose levels, each at its cheapest coder, take the fewest bytes in all; then each level has
    its cheapest coder. Sampled planes come from units spread evenly over the source.
    """
    mapper = next((o for o in stream if isinstance(o, HilbertMap)), None)
    encoder = next((o for o in stream if isinstance(o, FrameEncode)), None)
    layouts: tuple[Layout, ...] = LAYOUTS if mapper and mapper.layout == "auto" else (_named(mapper),)
    kinds = CANDIDATES if encoder and encoder.coder == "auto" else ()
    if len(layouts) == 1 and not kinds:
        return stream, Trials()
    sampled = sample(source)
    measured: dict[str, int] = {}
    best: dict[str, dict[str, CoderKind]] = {}
    levels = sampled
    for layout in layouts:
        chain = tuple(dataclasses.replace(o, layout=layout) if isinstance(o, HilbertMap) else o for o in stream)
        levels = sampled
        for operator in chain:
            if not isinstance(operator, FrameEncode):
                levels = operator.apply(levels)
        best[layout] = {}
        for column in level_columns(levels.column_names):
            arrays = [plane for plane in level_planes(levels, column) if plane is not None]
            sizes = coded_sizes(arrays, kinds or ((encoder.coder_of(column) if encoder else "rans"),))
            measured |= {f"{layout}/{column}/{kind}": size for kind, size in sizes.items()}
            best[layout][column] = min(sizes, key=lambda kind: sizes[kind])
    chosen = min(layouts, key=lambda name: sum(measured[f"{name}/{c}/{k}"] for c, k in best[name].items()))
    resolved: list[Operator] = []
    for operator in stream:
        if isinstance(operator, HilbertMap):
            operator = dataclasses.replace(operator, layout=chosen)
        elif isinstance(operator, FrameEncode) and kinds:
            operator = dataclasses.replace(operator, coder=best[chosen])
        resolved.append(operator)
    return tuple(resolved), Trials(levels.num_rows, sum(levels.column("count").to_pylist()), measured)


def _named(mapper: HilbertMap | None) -> Layout:
    return "raster" if mapper is None or mapper.layout == "auto" else mapper.layout


def sample(source: Units, planes: int = SAMPLED_UNITS * SAMPLED_PLANES) -> pa.Table:
    """A few planes, or rows, of units spread evenly over a source; of more ``planes`` in all, more of more units."""
    count = SAMPLED_UNITS * (1 if planes <= SAMPLED_UNITS * SAMPLED_PLANES else 3)
    picked = sorted({source.units * (2 * i + 1) // (2 * count) for i in range(count)})
    each, tables = max(SAMPLED_PLANES, -(-planes // len(picked))), []
    for unit in picked:
        if isinstance(source, PlaneUnits):
            tables.append(source.read_some(unit, each))
        else:  # rows, which an operator of the stream will group into planes
            tables.append(source.read(unit).slice(0, SAMPLED_ROWS))
    return pa.concat_tables(table for table in tables if table.num_rows)
