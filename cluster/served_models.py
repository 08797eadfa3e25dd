"""The models behind the endpoint as a collection to compare, and how much may be read for one answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from cluster.method_comparison import Comparison, compare
from cluster.model_features import PLANES
from cluster.model_methods import PICTURES, Scores, scored
from cluster.model_root import in_time
from cluster.models import ModelService
from cluster.nearest_models import Nearest, described, neighbours
from cluster.recorded_parents import recorded_parents
from operators.amounts import size
from operators.errors import HilbertflowError
from operators.signature import Signature
from storage.model import ModelArchive

KEPT_SCORES = 64
"""Answers about the same models, which never change under one object, that are kept."""


class ServedModels:
    """Some of the served models, as :class:`cluster.model_root.ModelRoot` has those of a root."""

    def __init__(self, models: Sequence[ModelService]) -> None:
        self._models = {model.name: model for model in models}

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Names, and the parents that they are coded by."""
        parents = recorded_parents(list(self._models.values()))
        return {name: {"name": name, "parent": parent} for name, parent in parents.items()}

    @cached_property
    def in_time(self) -> list[str]:
        """Names in the order in which the models were archived."""
        return in_time({name: model.archive.place for name, model in self._models.items()})

    def handle(self, name: str) -> ModelArchive:
        """The archive of a model."""
        return self._models[name].archive

    def signature(self, name: str) -> Signature:
        """The signature of a model."""
        return self._models[name].signature


def nearest_by(method: str, chosen: ModelService, models: Sequence[ModelService], k: int, most: int) -> list[Nearest]:
    """The ``k`` of the models most like one by a method; all but the score is told from the signatures.

    Blocking. Raises when the method would read more than ``most`` bytes, or needs what is not installed.
    """
    if method == "signature":
        return neighbours(chosen, models, k)
    if trouble := refusal(method, chosen, models, most):
        raise HilbertflowError(
            trouble, where="method", remedy="choose signature, or ask `hilbertflow similar` where the archives lie"
        )
    scores = _scored(method, chosen.name, tuple(models))
    best = sorted(scores, key=lambda name: (-scores[name], name))[:k]
    held = {model.name: model.signature for model in models if model.name in best}
    return [described(name, chosen.signature, held[name], score=scores[name]) for name in best]


def compared_methods(chosen: ModelService, models: Sequence[ModelService], most: int) -> Comparison:
    """Every method that may be used, about one of the models. Blocking."""
    return _compared(chosen.name, tuple(models), most)


def refusal(method: str, chosen: ModelService, models: Sequence[ModelService], most: int) -> str:
    """Why a method may not be used for one answer; empty where it may."""
    needed = _bytes(method, chosen, models)
    if needed > most:
        return f"{method} would read {size(needed)} of these models; for one answer {size(most)} are read at most"
    return ""


def _bytes(method: str, chosen: ModelService, models: Sequence[ModelService]) -> int:
    """What a method decodes: of pairs of models all words, those of their parents too; or a few planes of each."""
    if method == "exact":
        own = _whole(chosen)
        return sum(own + _whole(model) for model in models if model is not chosen)
    return sum(4 * PLANES * model.archive.layout.area for model in models) if method in PICTURES else 0


def _whole(model: ModelService) -> int:
    depth = 0 if model.archive.link is None else model.archive.link.depth
    return int(model.about["source_bytes"]) * (1 + depth)


@lru_cache(maxsize=KEPT_SCORES)
def _scored(method: str, name: str, models: tuple[ModelService, ...]) -> Scores:
    return scored(method, ServedModels(models), name)


@lru_cache(maxsize=KEPT_SCORES)
def _compared(name: str, models: tuple[ModelService, ...], most: int) -> Comparison:
    chosen = next(model for model in models if model.name == name)
    return compare(ServedModels(models), name, lambda method: refusal(method, chosen, models, most))
