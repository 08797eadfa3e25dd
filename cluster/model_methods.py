"""Ways to compare the models of a root with one of them, each a score a model; none is taken on trust.

``signature``  the signatures (:mod:`operators.relation`)
``exact``      cosine of the weights, tensors of one name and shape, every byte read: the oracle without a known truth
``features``   planes as pictures (:mod:`operators.plane_features`), mean of the five
``temporal``   the signature's score, averaged with those of the two models archived just before and just after
``hybrid``     signature and features in one, by weights that were learnt where the truth is known
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cluster.model_features import feature_scores, plane_features
from cluster.tours import along
from operators.blend import blend
from operators.errors import HilbertflowError
from operators.relation import relate
from operators.signature import Signature
from storage.model import ModelArchive

Scores = dict[str, float]


class Models(Protocol):
    """Models that are compared: those of a root, or those that a service may show."""

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """By name; of each at least ``parent``, the name of the one that it is coded by, or nothing."""

    @property
    def in_time(self) -> Sequence[str]:
        """Names in the order in which the models were archived."""

    def handle(self, name: str) -> ModelArchive:
        """The archive of a model."""

    def signature(self, name: str) -> Signature:
        """The signature of a model."""


HYBRID = np.array([6.30, 0.70, 1.87, 2.05, 1.91, 1.13, -6.56])
"""Weights of the signature's score, of the five features in their order, and the constant: learnt on half of the
families of the test bed by `hilbertflow bench models`, which learns them anew and tells if these are others."""


def by_signature(root: Models, name: str) -> Scores:
    """Scores of all other models."""
    own = root.signature(name)
    return {other: relate(own, root.signature(other)).score for other in root.rows if other != name}


def by_weights(root: Models, name: str) -> Scores:
    """Cosines of all weights at the exact level, or the finest there is; 0 for tensors without a counterpart."""
    return {other: _cosine(root.handle(name), root.handle(other)) for other in root.rows if other != name}


def by_features(root: Models, name: str) -> Scores:
    """Means of the features of a few planes, in the same places of the two models."""
    own = plane_features(root.handle(name))
    return {
        other: float(feature_scores(own, plane_features(root.handle(other))).mean())
        for other in root.rows if other != name
    }  # fmt: skip


def by_neighbours(root: Models, name: str) -> Scores:
    """Scores by signature, each averaged with those of its neighbours in time; neighbours weigh a half.

    What was archived in a row is often a run of checkpoints: then the order knows what a signature alone does not.
    """
    alone, names = by_signature(root, name) | {name: 1.0}, root.in_time
    smoothed = along(np.array([alone[other] for other in names]), range(len(names)))
    return {other: float(score) for other, score in zip(names, smoothed, strict=True) if other != name}


def by_hybrid(root: Models, name: str) -> Scores:
    """How likely each is a relative, by signature and features together; 0 … 1."""
    own = plane_features(root.handle(name))
    return {
        other: float(blend(np.array([score, *feature_scores(own, plane_features(root.handle(other)))]), HYBRID))
        for other, score in by_signature(root, name).items()
    }


METHODS: dict[str, Callable[[Models, str], Scores]] = {
    "signature": by_signature, "exact": by_weights, "features": by_features, "temporal": by_neighbours,
    "hybrid": by_hybrid,
}  # fmt: skip
PICTURES = ("features", "hybrid")
"""Methods that need scikit-image."""


def missing(method: str) -> str:
    """What a method needs and is not installed; empty where nothing lacks."""
    if method in PICTURES:
        try:
            import skimage.feature
            import skimage.metrics  # noqa: F401
        except ImportError as error:
            return f"{method} needs scikit-image ({error}): pip install 'hilbertflow[models]'"
    return ""


def scored(method: str, models: Models, name: str) -> Scores:
    """Scores of all other models by a method; raises where something that it needs is not installed."""
    if why := missing(method):
        raise HilbertflowError(why, where="method", remedy="or choose another: " + ", ".join(METHODS))
    return METHODS[method](models, name)


def agreement(scores: Scores, truth: Scores) -> float:
    """Rank correlation (Spearman) of two methods over the models that both score; NaN for fewer than two."""
    names = [name for name in scores if name in truth]
    if len(names) < 2:
        return float("nan")
    first, second = (_ranks([told[name] for name in names]) for told in (scores, truth))
    if not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def known_relatives(root: Models, name: str) -> set[str]:
    """The truth as far as the catalog has it: models that hang together with one by the parents they were coded by."""
    beside: dict[str, set[str]] = {other: set() for other in root.rows}
    for other, row in root.rows.items():
        if (parent := row.get("parent")) in beside:
            beside[other].add(parent)
            beside[parent].add(other)
    found, ahead = {name}, [name]
    while ahead:
        new = beside[ahead.pop()] - found
        found |= new
        ahead += new
    return found - {name}


def known_strangers(root: Models, name: str) -> set[str]:
    """Models whose parents are told and are none of its own; of a model without parent or child nothing is known."""
    linked = {other for other in root.rows if known_relatives(root, other)}
    return linked - known_relatives(root, name) - {name}


def average_precision(scores: Scores, truth: Set[str]) -> float:
    """Of the models that are relatives, best score first; NaN where none is. Others scored count as strangers."""
    order = sorted(scores, key=lambda other: (-scores[other], other))
    ranks = [rank for rank, other in enumerate(order, 1) if other in truth]
    return float(np.mean([at / rank for at, rank in enumerate(ranks, 1)])) if ranks else float("nan")


def _cosine(first: ModelArchive, second: ModelArchive) -> float:
    dot, ours, theirs = 0.0, 0.0, 0.0
    for handle, other in ((first, second), (second, first)):
        for place in handle.layout.placements:
            if len(place.shape) < 2 or place.dtype not in ("F32", "F16", "BF16"):
                continue
            twin = other.layout.by_name.get(place.name)
            alike = twin is not None and twin.shape == place.shape
            if handle is second and alike:
                continue
            values = np.asarray(handle[place.name].read(), np.float32).reshape(-1).astype(np.float64)
            square = float(values @ values)
            ours, theirs = (ours + square, theirs) if handle is first else (ours, theirs + square)
            if alike and handle is first:
                beside = np.asarray(other[place.name].read(), np.float32).reshape(-1).astype(np.float64)
                dot += float(values @ beside)
                theirs += float(beside @ beside)
    return dot / float(np.sqrt(ours * theirs)) if ours and theirs else 0.0


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    order = np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable").astype(np.float64)
    listed = np.asarray(values)
    return np.array([order[listed == value].mean() for value in listed])
