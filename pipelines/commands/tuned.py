"""What tuning found of the indexes of a collection, in the words of a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from operators.errors import HilbertflowError


def recall_told(reached: float | None, asked: float | None) -> str:
    """Recall@10 that an index reached when it was tuned, and what was asked for where that is more; else empty."""
    if reached is None or asked is None:
        return ""
    said = f"recall@10 {reached:.4f} when tuned"
    return said if reached >= asked else f"{said}, {asked:g} was asked for"


def built_lines(url: str, kinds: Iterable[str]) -> list[str]:
    """About the indexes that were just built: their recall, and what to do where one misses its target."""
    from cluster.build import open_collection
    from cluster.index_store import current_builds, indexes_of

    try:
        builds = current_builds(indexes_of(open_collection(url)))
    except HilbertflowError:  # what was to be done is done, and these are words about it
        builds = {}
    words, missed = [], []
    for kind in kinds:
        build = builds.get(kind)
        reached, asked = (build.reached, build.kind.target_recall) if build else (None, None)
        said = recall_told(reached, asked)
        words.append(f"{kind} ({said})" if said else kind)
        if reached is not None and reached < (asked or 0.0):
            missed.append(kind)
    lines = [f"indexes: {', '.join(words)}"]
    if missed:
        lines.append(
            f"{' and '.join(missed)}: no setting that was tried finds what was asked for among these rows;"
            f" `hilbertflow info {url} --recall` compares the tiers, `--tier exact` finds everything"
        )
    return lines
