"""From a recipe to its plan."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.plan import Pass, Plan
from pipelines.plan_model import model_plan
from pipelines.plan_rows import collection_plan, prepare_collection
from pipelines.plan_vectors import keep_tree
from pipelines.recipe import Recipe


def make_plan(recipe: Recipe) -> Plan:
    """Open the source, apply the operators on tables, resolve ``auto`` on sampled units, fix every array.

    The arrays of a collection are fixed later, by :func:`prepare`.
    """
    return collection_plan(recipe) if recipe.collection else model_plan(recipe)


def prepare(plan: Plan, carry_out: Callable[[Pass], None]) -> Plan:
    """The plan with its last pass settled, once the passes before it are carried out: a collection has some."""
    return prepare_collection(plan, carry_out) if plan.recipe.collection else keep_tree(plan)
