"""Levels of a model as points: bytes read against signal to noise, with axes and units, in percent of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import Any


@dataclass(frozen=True)
class Tick:
    """A place on an axis in percent, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """A level: place in percent (x from the left, y from the top), name, what it is, whether it is bit-exact."""

    x: float
    y: float
    name: str
    said: str
    exact: bool
    left: bool


@dataclass(frozen=True)
class Plot:
    """Points in order of size, ticks of both axes, their titles, and the source's size in percent along x."""

    points: list[Point]
    x: list[Tick]
    y: list[Tick]
    x_title: str
    y_title: str
    source: float


@dataclass(frozen=True)
class Rung:
    """A level: its own bytes, bytes up to it with all that it needs, bits a weight of those, dB (None of exact)."""

    name: str
    own: int
    upto: int
    bits: float
    decibels: float | None


def rungs(about: dict[str, Any]) -> list[Rung]:
    """Levels of a model, from what `GET /v1/models/{m}` tells of it; those of its parent have no bytes here."""
    sizes: dict[str, int] = about["level_bytes"]
    steps = [name for name in sizes if name.startswith("level") or name == "exact"]
    upto = sum(size for name, size in sizes.items() if name not in steps)
    found = []
    for name in sorted(steps, key=lambda name: (name == "exact", name)):
        upto += sizes[name]
        bits = 8 * upto / max(1, about["parameters"])
        found.append(Rung(name, sizes[name], upto, bits, about["quality"].get(f"sqnr_db_{name}")))
    return found


def levels_plot(steps: list[Rung], source_bytes: int) -> Plot | None:
    """The picture; None where there is nothing to compare. Exact has no noise: it stands on the upper edge."""
    known = [step for step in steps if step.decibels is not None or step.name == "exact"]
    heights = [step.decibels for step in known if step.decibels is not None]
    if len(known) < 2 or not heights:
        return None
    unit, divisor = _unit(max(source_bytes, known[-1].upto))
    x_step, x_most = _scale(max(source_bytes, known[-1].upto) / divisor)
    y_step, y_most = _scale(1.15 * max(max(heights), 1.0))
    points = []
    for step in known:
        x = 100 * step.upto / divisor / x_most
        y = 0.0 if step.decibels is None else 100 - 100 * max(0.0, step.decibels) / y_most
        said = "bit-exact" if step.decibels is None else f"{step.decibels:.1f} dB"
        points.append(Point(x, y, step.name, f"{said}, {step.bits:.2f} bits a weight", step.decibels is None, x > 60))
    return Plot(
        points, _ticks(x_step, x_most, False), _ticks(y_step, y_most, True),
        f"bytes read, {unit}", "signal to noise, dB", 100 * source_bytes / divisor / x_most,
    )  # fmt: skip


def _ticks(step: float, most: float, downwards: bool) -> list[Tick]:
    count = round(most / step)
    shares = [100 * at / count for at in range(count + 1)]
    return [Tick(100 - share if downwards else share, f"{step * at:g}") for at, share in enumerate(shares)]


def _scale(most: float) -> tuple[float, float]:
    """A round step and a whole number of them, four to seven, that reach `most`."""
    rough = most / 5
    power = 10 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    count = -(-most // step)
    return step, step * count


def _unit(size: float) -> tuple[str, float]:
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= divisor:
            return unit, divisor
    return "bytes", 1.0
