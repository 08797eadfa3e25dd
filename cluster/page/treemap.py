"""A model's tensors as a squarified treemap (Bruls, Huizing and van Wijk, 2000): areas are bytes, boxes near squares.

Boxes are given in percent of the picture, so that it stretches with the page while its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HEADER = 20.0
"""Pixels above a layer's tensors, for its name."""
LETTER = 6.6
"""Pixels that a letter of a label takes, about."""
LEAST_AREA = 90.0
"""Square pixels; smaller tensors of a layer are drawn as one."""
MOST_LAYERS = 80


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width, height."""

    x: float
    y: float
    width: float
    height: float

    def of(self, whole: Box) -> Box:
        """In percent of `whole`, which begins at 0, 0."""
        return Box(
            100 * self.x / whole.width, 100 * self.y / whole.height,
            100 * self.width / whole.width, 100 * self.height / whole.height,
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A tensor, or the small ones of a layer together (then `tensor` is empty). box: in percent; label: what fits."""

    box: Box
    tensor: str
    kind: str
    label: str
    title: str
    bytes: int


@dataclass(frozen=True)
class Layer:
    """Tensors that belong together. box: in percent; cells: in percent of the whole picture too."""

    box: Box
    name: str
    label: str
    bytes: int
    cells: list[Cell]


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Boxes within `box`, areas in proportion to `sizes` (positive, descending), in their order."""
    total, scale = sum(sizes), box.width * box.height
    areas = [size / total * scale for size in sizes] if total else []
    boxes: list[Box] = []
    start = 0
    while start < len(areas):
        short, stop = min(box.width, box.height), start + 1
        while stop < len(areas) and _worst(areas[start : stop + 1], short) <= _worst(areas[start:stop], short):
            stop += 1
        row, box = _row(areas[start:stop], box)
        boxes += row
        start = stop
    return boxes


def layers(tensors: Sequence[dict[str, Any]], width: float, height: float, least: float) -> list[Layer]:
    """The treemap of `tensors` (name, kind, bytes) for a picture of `height` pixels, drawn for `width`.

    least: pixels of width that the picture has at least; labels are cut for those.
    """
    whole, squeeze = Box(0, 0, width, height), least / width
    groups: dict[str, list[dict[str, Any]]] = {}
    for tensor in tensors:
        if tensor["bytes"]:
            groups.setdefault(layer_of(tensor["name"]), []).append(tensor)
    ordered = sorted(groups.items(), key=lambda item: (-_sum(item[1]), item[0]))
    if len(ordered) > MOST_LAYERS:
        rest = [tensor for _, some in ordered[MOST_LAYERS - 1 :] for tensor in some]
        ordered = [*ordered[: MOST_LAYERS - 1], ("others", rest)]
    found = []
    for (name, some), box in zip(ordered, squarify([_sum(some) for _, some in ordered], whole), strict=True):
        inner, label = box, ""
        if box.height > 2.5 * HEADER and box.width * squeeze > 6 * LETTER:
            label = _fitting(name, box.width * squeeze - 8)
            inner = Box(box.x, box.y + HEADER, box.width, box.height - HEADER)
        found.append(Layer(box.of(whole), name, label, _sum(some), _cells(name, some, inner, whole, squeeze)))
    return found


def layer_of(name: str) -> str:
    """What a tensor belongs to: its name up to its first number, else the first two of the words before the last."""
    words = name.replace("/", ".").split(".")
    for at, word in enumerate(words[:-1]):
        if word.isdigit():
            return ".".join(words[: at + 1])
    return ".".join(words[:-1][:2]) or name


def _cells(layer: str, tensors: list[dict[str, Any]], box: Box, whole: Box, squeeze: float) -> list[Cell]:
    ordered = sorted(tensors, key=lambda tensor: (-tensor["bytes"], tensor["name"]))
    each = box.width * box.height / max(1, _sum(tensors))
    kept = [tensor for tensor in ordered if tensor["bytes"] * each >= LEAST_AREA]
    small = ordered[len(kept) :]
    if len(small) == 1:
        kept, small = ordered, []
    sizes = [float(tensor["bytes"]) for tensor in kept] + ([float(_sum(small))] if small else [])
    # The small ones together may be more than the smallest of those that are drawn: order matters only to the eye.
    cells = []
    for at, place in enumerate(squarify(sizes, box)):
        wide = place.width * squeeze
        if at < len(kept):
            tensor = kept[at]
            label = _fitting(_telling(tensor["name"], layer), wide - 10) if place.height > 18 else ""
            title = f"{tensor['name']}, {tensor['kind']}, {' × '.join(map(str, tensor['shape'])) or 'scalar'}"
            cells.append(Cell(place.of(whole), tensor["name"], tensor["kind"], label, title, tensor["bytes"]))
        else:
            kinds = {tensor["kind"] for tensor in small}
            kind = kinds.pop() if len(kinds) == 1 else "other"
            cells.append(Cell(place.of(whole), "", kind, "", f"{len(small)} small tensors of {layer}", _sum(small)))
    return cells


def _telling(name: str, layer: str) -> str:
    """What tells a tensor from the others of its layer: its name without the layer's and without stock endings."""
    return name.removeprefix(layer).strip("./").removesuffix(".weight").removesuffix(".dense") or name


def _row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """One row of boxes along the short side, and what is left of the box."""
    total = sum(areas)
    boxes, at = [], 0.0
    if box.width >= box.height:
        thick = total / box.height if box.height else 0.0
        for area in areas:
            long = area / thick if thick else 0.0
            boxes.append(Box(box.x, box.y + at, thick, long))
            at += long
        return boxes, Box(box.x + thick, box.y, max(0.0, box.width - thick), box.height)
    thick = total / box.width if box.width else 0.0
    for area in areas:
        long = area / thick if thick else 0.0
        boxes.append(Box(box.x + at, box.y, long, thick))
        at += long
    return boxes, Box(box.x, box.y + thick, box.width, max(0.0, box.height - thick))


def _worst(areas: Sequence[float], short: float) -> float:
    """The largest aspect ratio in a row of these areas along a side of this length."""
    total = sum(areas)
    if not total or not short:
        return float("inf")
    return max(short * short * max(areas) / total**2, total**2 / (short * short * min(areas)))


def _fitting(name: str, pixels: float) -> str:
    """As many of the last words of a dotted name as there is room for; empty where there is none for the last."""
    words, room = name.split("."), int(pixels / LETTER)
    return next((text for at in range(len(words)) if len(text := ".".join(words[at:])) <= room), "")


def _sum(tensors: Sequence[dict[str, Any]]) -> int:
    return sum(tensor["bytes"] for tensor in tensors)
