"""Drawings of a run's page as SVG that stretches: shapes only, in thousandths of the width; words stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Tick:
    """A place on an axis in percent, and what stands there."""

    at: float
    label: str


def area(rates: Sequence[float], slot: float, whole: float, most: float, colour: str, said: str) -> Markup:
    """A filled curve of steps: ``rates`` by slots of ``slot`` seconds, over ``whole`` seconds, as high as ``most``.

    colour: a CSS class; said: for those who do not see it.
    """
    corners, wide = [], 1000 * slot / max(whole, 1e-9)
    for at, rate in enumerate(rates):
        left, right = min(1000.0, at * wide), min(1000.0, (at + 1) * wide)
        up = 100 - 100 * min(1.0, rate / max(most, 1e-9))
        if right > left:
            corners.append(f"{left:.1f} {up:.1f}L{right:.1f} {up:.1f}")
    end = min(1000.0, len(rates) * wide)
    path = f"M0 100L{'L'.join(corners)}L{end:.1f} 100Z" if corners else ""
    shape = Markup('<path class="{}" d="{}"/>').format(colour, path)
    return _picture(shape, said)


def bar(parts: Sequence[tuple[str, float]], said: str) -> Markup:
    """One bar of parts: CSS class and share of the width of each, drawn from the left."""
    left, shapes = 0.0, Markup("")
    for colour, share in parts:
        width = 1000 * max(0.0, min(share, 1 - left / 1000))
        shapes += Markup('<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="100"/>').format(colour, left, width)
        left += width
    return _picture(shapes, said)


def time_ticks(whole: float) -> list[Tick]:
    """Round times from 0 to ``whole`` seconds, eight at most."""
    step = next((step for step in _STEPS_S if whole / step <= 7), 86400 * -(-whole // (7 * 86400)))
    return [Tick(100 * at * step / max(whole, 1e-9), clock(at * step)) for at in range(int(whole / step + 1e-9) + 1)]


def clock(seconds: float) -> str:
    """``0``, ``0.5 s``, ``45 s``, ``2 min``, ``1:30 min``, ``2 h``, ``2:30 h``."""
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            whole, rest = divmod(round(seconds), length)
            return f"{whole}:{rest * 60 // length:02d} {unit}" if rest else f"{whole} {unit}"
    raise AssertionError("a minute is at least a minute")


def _picture(shapes: Markup, said: str) -> Markup:
    frame = '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(said, shapes)
