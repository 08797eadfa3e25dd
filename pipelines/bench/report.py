"""What a benchmark gives: tables of figures, printed for people or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from pipelines import console


@dataclass(frozen=True)
class Chart:
    """How a table is drawn.

    Parameters
    ----------
    x, y: columns of numbers.
    series: column whose equal values are joined by a line.
    log_x, log_y: a logarithmic axis.
    complement: draw one minus ``y``, for shares near one.
    """

    x: str
    y: str
    series: str
    log_x: bool = False
    log_y: bool = False
    complement: bool = False


@dataclass(frozen=True)
class Table:
    """One table of figures.

    Parameters
    ----------
    title: what was measured, on what.
    columns: names with units.
    rows: one a contender; None where a figure does not apply.
    notes: how to read it; what missed its target.
    chart: how ``--plots`` draws it; None for tables without a curve.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    chart: Chart | None = None


def show(tables: Sequence[Table]) -> None:
    """Print the tables."""
    for table in tables:
        console.table(table.columns, table.rows, title=table.title)
        for note in table.notes:
            console.say(f"  {note}")


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The tables for other programs."""
    return [{k: v for k, v in asdict(table).items() if k != "chart"} for table in tables]


def median_seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of a call after one that is not counted (it compiles and fills caches)."""
    work()
    taken = []
    for _ in range(repeats):
        began = perf_counter()
        work()
        taken.append(perf_counter() - began)
    return sorted(taken)[repeats // 2]
