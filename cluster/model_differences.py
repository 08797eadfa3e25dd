"""In which layers two models differ, and how: told from their signatures, and drawn as a map of layers and kinds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from operators.relation import Pair, relate
from operators.signature import Signature

CELL, LEFT, TOP, LINE = 34, 150, 92, 22
MOVED, BLUE, GREY = "neurons in another order", "#4a90d9", "#444444"
STYLE = (
    "<style>.ground{fill:#fff}text{fill:#222}.soft{fill:#555}@media(prefers-color-scheme:dark)"
    "{.ground{fill:#1b1e23}text{fill:#ddd}.soft{fill:#aaa}}</style>"
)
FIRST, SECOND = "only in the first", "only in the second"


@dataclass(frozen=True)
class Difference:
    """What became of a matrix of the first model, or that one model alone has it.

    Parameters
    ----------
    score, change: as :class:`operators.relation.Pair` has them; None without a counterpart.
    what: in words.
    """

    tensor: str
    counterpart: str
    layer: int
    role: str
    kind: str
    score: float | None
    change: float | None
    what: str

    @property
    def weight(self) -> float:
        """By which they are sorted: the change, or more than any where there is no counterpart."""
        if self.score is None:
            return 10.0
        return 2.0 - self.score if self.change is None else self.change

    @property
    def place(self) -> tuple[int, bool]:
        """Its layer, and whether that is a number of the second model: layers count anew where others were left out."""
        return self.layer, self.what == SECOND


def differences(first: Signature, second: Signature) -> list[Difference]:
    """One a matrix of either model, the most changed first."""
    pairs = relate(first, second).pairs
    found = [
        Difference(p.first.name, p.second.name, p.first.layer, p.first.role, p.first.kind, p.score, p.change, said(p))
        for p in pairs
    ]
    for own, paired, where in (
        (first, {p.first.name for p in pairs}, FIRST),
        (second, {p.second.name for p in pairs}, SECOND),
    ):
        found += [
            Difference(t.name, "", t.layer, t.role, t.kind, None, None, where)
            for t in own.tensors if t.name not in paired
        ]  # fmt: skip
    return sorted(found, key=lambda row: -row.weight)


def said(pair: Pair) -> str:
    """What the sketches say of a tensor and its counterpart."""
    a, b = pair.first.moments, pair.second.moments
    if (pair.first.rows, pair.first.columns) != (pair.second.rows, pair.second.columns):
        return f"{pair.first.rows}×{pair.first.columns} became {pair.second.rows}×{pair.second.columns}"
    if pair.change == 0 and pair.score > 0.999:
        return "the same"
    if pair.score > 0.9 and pair.change is not None and pair.change > 0.9:
        return MOVED
    if b[5] > 2 * a[5] + 0.002:
        return "quantized"
    if b[4] > a[4] + 0.01:
        return f"{100 * float(b[4]):.0f} % zeros, {100 * float(a[4]):.0f} % before"
    if pair.score < 0.5:
        return "unrelated"
    scale = float(b[1] / a[1]) if a[1] else 1.0
    if abs(scale - 1) > 0.02:
        return f"deviation times {scale:.2f}"
    return "changed a little" if pair.change is not None and pair.change < 0.05 else "changed"


def heat_map(first: str, second: str, rows: Sequence[Difference]) -> str:
    """An SVG: a column a layer, a row a role, the darker the more was changed; the second alone stands apart."""
    by_place = {(row.role, row.place): row for row in rows}
    roles, layers = list(dict.fromkeys(role for role, _ in sorted(by_place))), sorted({at for _, at in by_place})
    most = max((row.change for row in rows if row.change is not None and row.what != MOVED), default=0.0)
    below = TOP + CELL * len(roles) + 12
    width, height = max(LEFT + CELL * len(layers) + 20, 370), below + 3 * LINE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        STYLE,
        '<rect class="ground" width="100%" height="100%"/>',
        f'<text x="12" y="24" font-size="15">{escape(first)} → {escape(second)}</text>',
        f'<text x="12" y="44" class="soft">change of each matrix over its length; darkest {most:.3g}</text>',
    ]
    for column, (layer, apart) in enumerate(layers):
        x = LEFT + CELL * column + CELL / 2
        label = ("+" if apart else "") + ("–" if layer < 0 else str(layer))
        out.append(f'<text x="{x}" y="{TOP - 8}" text-anchor="middle">{label}</text>')
    out.append(
        f'<text x="12" y="{TOP - 26}" class="soft">columns: layers (– outside them, + of the second only)</text>'
    )
    for line, role in enumerate(roles):
        y = TOP + CELL * line
        out.append(f'<text x="{LEFT - 8}" y="{y + CELL / 2 + 4}" text-anchor="end">{escape(role[-24:])}</text>')
        for column, place in enumerate(layers):
            row, x = by_place.get((role, place)), LEFT + CELL * column
            if row is None:
                out.append(f'<text x="{x + CELL / 2 - 1}" y="{y + CELL / 2 + 4}" text-anchor="middle">·</text>')
                continue
            told = f"{row.tensor}: {row.what}"
            out.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{_colour(row, most)}" '
                f'stroke="#bbb"><title>{escape(told)}</title></rect>'
            )
    meanings = ("#ffffff", "the same"), (_shade(1.0), "changed most"), (BLUE, MOVED), (GREY, "in one model only")
    for number, (colour, text) in enumerate(meanings):
        x, y = 12 + 200 * (number % 2), below + LINE * (number // 2)
        out.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}" stroke="#bbb"/>')
        out.append(f'<text x="{x + 20}" y="{y + 12}">{text}</text>')
    out.append(f'<text x="17" y="{below + 2 * LINE + 12}">·<tspan x="32">no such matrix</tspan></text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def by_layer(rows: Sequence[Difference]) -> list[tuple[str, int, float | None, float | None, str]]:
    """A line a layer: name, tensors, mean score, mean change, and what was said most."""
    groups: dict[tuple[int, bool], list[Difference]] = defaultdict(list)
    for row in rows:
        groups[row.place].append(row)
    out = []
    for layer, apart in sorted(groups):
        some = groups[layer, apart]
        scores = [row.score for row in some if row.score is not None]
        changes = [row.change for row in some if row.change is not None]
        words = [row.what for row in some]
        most = max(dict.fromkeys(words), key=words.count)
        out.append(
            (("outside layers" if layer < 0 else f"layer {layer}") + (" of the second" if apart else ""), len(some),
             float(np.mean(scores)) if scores else None, float(np.mean(changes)) if changes else None, most)
        )  # fmt: skip
    return out


def _colour(row: Difference, most: float) -> str:
    if row.score is None:
        return GREY
    if row.what == MOVED:
        return BLUE
    return _shade(row.change / most if row.change is not None and most > 0 else 0.0)


def _shade(share: float) -> str:
    """White to dark red."""
    share = min(1.0, max(0.0, share)) ** 0.5
    return "#" + "".join(f"{round(255 + share * (dark - 255)):02x}" for dark in (140, 10, 20))
