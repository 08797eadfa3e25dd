"""Archived collections for the benchmarks of search: written once by the recipe `vectors`, kept in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from operators.errors import HilbertflowError
from pipelines.recipe import load
from pipelines.run import run


def archived(folder: Path, source: Path, metric: str) -> str:
    """The collection of the vectors of a .npy file, under `folder`; its ids are the numbers of the rows."""
    sets = [
        f"source.path={source}", f"source.metric={metric}", f"sink.path={folder / 'archives'}", "index=null",
    ]  # fmt: skip
    recipe = load("vectors", sets)
    try:
        return run(recipe).url
    except HilbertflowError:  # of another version of the recipe or of the format
        shutil.rmtree(folder / "archives")
        return run(recipe).url
