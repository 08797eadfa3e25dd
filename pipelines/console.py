"""What the terminal shows: tables, sizes, JSON, one red line for an error. Rich is imported when something is drawn."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.amounts import size as size

if TYPE_CHECKING:
    from rich.console import Console

_MEASURE = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?( ([kMGTP]?B|%|dB|s))?")


def out() -> Console:
    """Standard output; colour only on a terminal."""
    from rich.console import Console

    # A pipe has no width: wide enough that no cell is cut on its way into another program.
    return Console(soft_wrap=False, highlight=False, width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    """One plain line on standard output."""
    print(text, flush=True)


def note(text: str) -> None:
    """One plain line on standard error: what a person wants to know and a program does not."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """One line on standard error, red on a terminal."""
    line = " ".join(text.split())
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[31m{line}\x1b[0m" if red else line, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output; NaN and infinities, which JSON has not, become null."""
    print(json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, default=_plain), flush=True)


def write(path: str, data: bytes) -> None:
    """Write a file that was asked for; raises ``HilbertflowError`` when it cannot be."""
    from operators.errors import HilbertflowError

    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise HilbertflowError("cannot be written", where=path, remedy=(error.strerror or "").lower()) from error


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", stretch: str = "") -> None:
    """Draw a table; numbers are right-aligned and whole, and the column ``stretch`` is cut where the terminal ends."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    rows = [list(row) for row in rows]
    for i, column in enumerate(columns):
        cells = [row[i] for row in rows if row[i] not in ("", None)]
        numeric = bool(cells) and all(isinstance(cell, (int, float)) or _measure(cell) for cell in cells)
        cut = column == stretch
        drawn.add_column(
            column, justify="right" if numeric else "left", no_wrap=cut or numeric,
            overflow="ellipsis" if cut else "fold", ratio=1 if cut else None,
        )  # fmt: skip
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))  # Text: what comes from data is never markup
    out().print(drawn)


@contextmanager
def progress(title: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while the block runs; yields ``tick(done, total)``. Shows only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[moved]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None, moved="")

        def tick(done: int, total: int) -> None:
            speed = bar.tasks[task].speed
            rate = f", {size(round(speed))}/s" if speed else ""
            moved = f"{size(done)} of {size(total)}{rate}" if in_bytes else ""
            bar.update(task, completed=done, total=total, moved=moved)

        yield tick


def confirm(question: str, otherwise: str) -> None:
    """Ask on standard error, and return when the answer is yes.

    Raises `HilbertflowError` that says ``otherwise`` when it is no, which it is by default, or when nobody answers.
    """
    from operators.errors import HilbertflowError

    while True:
        try:
            print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            note("")
            raise
        if not line:
            note("")
            raise HilbertflowError(f"{otherwise}: nobody answered", remedy="--yes goes on without asking")
        answer = line.strip().lower()
        if answer in ("y", "yes"):
            return
        if answer in ("", "n", "no"):
            raise HilbertflowError(otherwise)
        note("answer y or n")


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line."""
    rows = [(name, _cell(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def count(number: int, noun: str) -> str:
    """A number and its noun: ``1 unit``, ``2,000 units``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _measure(value: Any) -> bool:
    return isinstance(value, str) and _MEASURE.fullmatch(value) is not None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    # Control characters of an id or a docstring must not reach the terminal.
    return "".join(c if c.isprintable() else " " for c in str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy
        return _finite(value.tolist())
    return str(value)
