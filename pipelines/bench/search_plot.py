"""The picture of `bench search`: recall against queries a second, one thread, every contender's front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bench.contenders import CONTENDERS

if TYPE_CHECKING:
    from pipelines.bench.search import Field


def draw(field: Field, file: Path) -> None:
    """Write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for corner in field.corners:
        front = [point for point in field.front(corner.name, 1) if point.recall >= 0.85]
        if front:
            ours = CONTENDERS[corner.name].ours
            axes.plot(
                [point.recall for point in front], [point.rates[1] for point in front], label=corner.name,
                marker="o" if ours else ".", linewidth=2.2 if ours else 1.2, linestyle="-" if ours else "--",
            )  # fmt: skip
    axes.set(
        xlabel="recall@10", ylabel="queries a second, one thread", yscale="log",
        title=f"{field.dataset}, {field.rows:,} x {field.dim}",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
