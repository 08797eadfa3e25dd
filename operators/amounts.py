"""Amounts written for people, and the order that levels are told in."""

from __future__ import annotations


def size(count: int | float) -> str:
    """Bytes for people, powers of 1000: ``90.9 MB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def in_order(levels: dict[str, int]) -> dict[str, int]:
    """Bytes by array, coarse to fine: ``level0`` …, ``exact``, then what belongs to all of them."""
    place = {"cells": 1, "exact": 2, "scales": 3, "means": 4, "code": 4, "tables": 5, "rows": 6, "ids": 7}
    return dict(sorted(levels.items(), key=lambda item: (place.get(item[0], 0), item[0])))
