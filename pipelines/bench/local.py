"""Archive a checkpoint in this process, without Ray: what a benchmark times or looks at is then the operators alone."""

from __future__ import annotations

from pathlib import Path

from pipelines.recipe import Recipe, load
from pipelines.run import run_here
from storage import archive
from storage.model import ModelArchive


def archive_model(source: str, folder: Path, *settings: str) -> ModelArchive:
    """Archive the checkpoint ``source`` under ``folder`` with the recipe of the quickstart, changed by ``settings``."""
    return archive_with(load("quickstart-model", [f"source.path={source}", f"sink.path={folder}", *settings]))


def archive_with(recipe: Recipe) -> ModelArchive:
    """Run a model's recipe to its end; returns the archive."""
    handle: ModelArchive = archive.open(run_here(recipe).url)
    return handle
