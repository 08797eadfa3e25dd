"""The test bed of ``bench models``: checkpoints whose lineage is known, because it was made here or is published.

Real weights only: checkpoints that packages carry, small networks trained here, and what was really done to them. Made
by ``python tests/benchmarks/prepare.py models``, cached as ``.safetensors``; ``about.json`` holds the truth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from operators.errors import HilbertflowError
from pipelines.bench.datasets import cache_dir

FOLDER = "models-1"


@dataclass(frozen=True)
class Member:
    """One checkpoint.

    Parameters
    ----------
    name: unique; its file is ``NAME/model.safetensors``.
    family: those of one family descend from one training from scratch.
    parents: whom it was made of, by name; several for a merge, none for a first one.
    how: what was done: ``scratch``, ``published``, ``fine-tune``, ``pruned``, …
    final: its family is used for the final figures only, not to choose anything by.
    """

    name: str
    family: str
    parents: tuple[str, ...]
    how: str
    final: bool

    @property
    def path(self) -> Path:
        """Its file."""
        return folder() / self.name / "model.safetensors"


def folder() -> Path:
    """Where the test bed lies."""
    return cache_dir() / FOLDER


def members() -> list[Member]:
    """All of it; raises when it was not made yet."""
    about = folder() / "about.json"
    if not about.exists():
        raise HilbertflowError(
            "the test bed of models is not there", where=str(about),
            remedy="make it with: python tests/benchmarks/prepare.py models (about 15 minutes)",
        )  # fmt: skip
    return [Member(**{**row, "parents": tuple(row["parents"])}) for row in json.loads(about.read_text())]
