"""A code tree as a picture: a row a layer, a box a cell, as wide as it has codes below it."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from operators.codetree import CodeTree

WIDTH, ROW, LEFT, TOP = 1200, 80, 150, 60
THINNEST = 0.4
"""Pixels: narrower boxes are drawn together with their neighbours."""


def svg(tree: CodeTree, title: str) -> bytes:
    """The picture as SVG; cells of like points have like colours, by their two principal components."""
    borders = [_borders(tree, layer) for layer in range(tree.depth)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {TOP + ROW * tree.depth + 20}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="24" font-size="16">{_escaped(title)}</text>'
        f'<text x="{LEFT}" y="46" fill="#555">{tree.size:,} points of {tree.points[-1].shape[1]} values; '
        "a box is as wide as the points that its cell holds</text>"
    ]
    before = 1
    for layer, edges in enumerate(borders):
        y, cells = TOP + ROW * layer, len(tree.points[layer])
        parts.append(
            f'<text x="8" y="{y + ROW / 2 - 4:.0f}">layer {layer}</text><text x="8" y="{y + ROW / 2 + 13:.0f}" '
            f'fill="#555">{cells:,} cells, +{np.log2(cells / before):.1f} bits</text>'
        )
        parts += _boxes(edges, _colours(tree.points[layer], tree.points[-1]), y)
        before = cells
    return "".join([*parts, "</svg>\n"]).encode()


def _borders(tree: CodeTree, layer: int) -> npt.NDArray[np.int64]:
    """Codes before each cell of a layer, and all of them at the end."""
    edges: npt.NDArray[np.int64] = np.arange(len(tree.points[layer]) + 1)
    for below in range(layer + 1, tree.depth):
        edges = tree.first[below][edges].astype(np.int64)
    return edges


def _boxes(edges: npt.NDArray[np.int64], colours: list[str], y: float) -> Iterator[str]:
    scale, start = WIDTH / edges[-1], 0.0
    for cell, edge in enumerate(edges[1:] * scale):
        if edge - start < THINNEST and cell + 2 < len(edges):
            continue
        wide = edge - start > 3
        line = ' stroke="white" stroke-width="0.6"' if wide else ""
        under = 0 if wide or cell + 2 == len(edges) else 0.6  # below the next box: no background shows between them
        yield (
            f'<rect x="{LEFT + start:.2f}" y="{y}" width="{edge - start + under:.2f}" height="{ROW - 4}" '
            f'fill="{colours[cell]}"{line}/>'
        )
        start = float(edge)


def _colours(points: npt.NDArray[np.float32], all_points: npt.NDArray[np.float32]) -> list[str]:
    centred = all_points - all_points.mean(axis=0)
    axes = np.linalg.svd(centred[:4096].astype(np.float64), full_matrices=False)[2][:2]
    placed = (points - all_points.mean(axis=0)) @ axes.T
    x, y = placed[:, 0], placed[:, 1] if placed.shape[1] > 1 else np.zeros(len(placed))
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    reach = np.minimum(1, np.hypot(x, y) / max(1e-12, 2 * float(np.std(centred @ axes.T))))
    rgb = (colorsys.hls_to_rgb(h, 0.82 - 0.34 * r, 0.25 + 0.5 * r) for h, r in zip(hue, reach, strict=True))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in rgb]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
