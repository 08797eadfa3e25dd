"""Draw the tables that have curves: one PNG a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.bench.report import Chart, Table


def draw(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write a PNG for each table that has a chart; needs matplotlib (extra ``bench``)."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        if table.chart is None:
            continue
        figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(_points(table, table.chart).items()):
            xs, ys = zip(*points, strict=True)
            colour, mark = f"C{i % 10}", "osD^"[i // 10 % 4]  # ten colours, then the next mark
            axes.plot(xs, ys, f"{mark}-" if len(points) > 1 else mark, color=colour, label=name, markersize=5)
        axes.set(xlabel=table.chart.x, ylabel=("1 − " if table.chart.complement else "") + table.chart.y)
        axes.set(xscale="log" if table.chart.log_x else "linear", yscale="log" if table.chart.log_y else "linear")
        if table.chart.log_x:
            low, high = axes.get_xlim()
            round_ones = (digit * 10**power for power in range(7) for digit in (1, 1.5, 2, 3, 5, 7))
            ticks = [tick for tick in round_ones if low <= tick <= high]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_title(table.title, fontsize=10)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)  # beside the curves, never over them
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', table.title.split(', ')[0].lower()).strip('-')}.png"
        figure.savefig(path)
        written.append(path)
    return written


def _points(table: Table, chart: Chart) -> dict[str, list[tuple[float, float]]]:
    x, y, series = (table.columns.index(name) for name in (chart.x, chart.y, chart.series))
    found: dict[str, list[tuple[float, float]]] = {}
    for row in table.rows:
        if row[x] in (None, "") or row[y] in (None, ""):
            continue
        value = 1 - float(row[y]) if chart.complement else float(row[y])
        if value > 0 or not chart.log_y:
            found.setdefault(str(row[series]), []).append((float(row[x]), value))
    return found
