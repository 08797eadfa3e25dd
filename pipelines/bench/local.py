"""Run a recipe in this process, without Ray: what a benchmark times or looks at is then the operators alone."""

from __future__ import annotations

from pathlib import Path

from pipelines.plan import make_plan
from pipelines.recipe import Recipe, load
from storage import archive
from storage.model import ModelArchive
from storage.spec import open_for_writing
from storage.writer import finish, write_unit


def archive_model(source: str, folder: Path, *settings: str) -> ModelArchive:
    """Archive the checkpoint ``source`` under ``folder`` with the recipe of the quickstart, changed by ``settings``."""
    return archive_with(load("quickstart-model", [f"source.path={source}", f"sink.path={folder}", *settings]))


def archive_with(recipe: Recipe) -> ModelArchive:
    """Run a model's recipe to its end; returns the archive."""
    plan = make_plan(recipe)
    open_for_writing(plan.spec)
    for unit in range(plan.spec.units):
        table = plan.source.read(unit)
        for operator in plan.operators:
            table = operator.apply(table)
        if table.num_rows:
            write_unit(plan.spec, table)
    finish(plan.spec, plan.extra)
    handle: ModelArchive = archive.open(plan.spec.url)
    return handle
