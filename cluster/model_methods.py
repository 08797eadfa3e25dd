"""Ways to compare the models of a root with one of them, each a score a model; none is taken on trust.

``signature``  the signatures (:mod:`operators.relation`)
``exact``      cosine of the weights, tensors of one name and shape, every byte read: the oracle without a known truth
``features``   planes as pictures (:mod:`operators.plane_features`), mean of the five
``temporal``   the signature's score, averaged with those of the two neighbours in a tour through the signatures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cluster.model_root import ModelRoot
from operators.hilbert_map import to_layout
from operators.plane_features import PlaneFeatures, compared, features_of, picture_of
from operators.relation import code_score, relate
from storage.model import ModelArchive

Scores = dict[str, float]
PLANES = 3
"""Planes of a model that are looked at, spread evenly over its matrices."""


def by_signature(root: ModelRoot, name: str) -> Scores:
    """Scores of all other models."""
    own = root.signature(name)
    return {other: relate(own, root.signature(other)).score for other in root.rows if other != name}


def by_weights(root: ModelRoot, name: str) -> Scores:
    """Cosines of all weights at the exact level, or the finest there is; 0 for tensors without a counterpart."""
    return {other: _cosine(root.handle(name), root.handle(other)) for other in root.rows if other != name}


def by_features(root: ModelRoot, name: str) -> Scores:
    """Means of the features of a few planes, in the same places of the two models."""
    own = plane_features(root.handle(name))
    return {
        other: float(feature_scores(own, plane_features(root.handle(other))).mean())
        for other in root.rows if other != name
    }  # fmt: skip


def by_neighbours(root: ModelRoot, name: str) -> Scores:
    """Scores by signature, each averaged with those of its neighbours in :func:`tour`; neighbours weigh a half."""
    alone = by_signature(root, name) | {name: 1.0}
    names = list(root.rows)
    order = [names[i] for i in tour(np.stack([root.code(other) for other in names]))]
    smoothed: Scores = {}
    for at, other in enumerate(order):
        beside = [alone[order[i]] for i in (at - 1, at + 1) if 0 <= i < len(order)]
        smoothed[other] = (alone[other] + 0.5 * sum(beside)) / (1 + 0.5 * len(beside))
    smoothed.pop(name)
    return smoothed


METHODS: dict[str, Callable[[ModelRoot, str], Scores]] = {
    "signature": by_signature, "exact": by_weights, "features": by_features, "temporal": by_neighbours,
}  # fmt: skip


def tour(codes: npt.NDArray[np.int8]) -> list[int]:
    """An order of models in which neighbours are alike: from the first, always on to the nearest that is left."""
    left, order = set(range(1, len(codes))), [0] if len(codes) else []
    while left:
        rows = sorted(left)
        order.append(rows[int(np.argmax(code_score(codes[order[-1]], codes[rows])))])
        left.discard(order[-1])
    return order


def agreement(scores: Scores, truth: Scores) -> float:
    """Rank correlation (Spearman) of two methods over the models that both score; NaN for fewer than two."""
    names = [name for name in scores if name in truth]
    if len(names) < 2:
        return float("nan")
    first, second = (_ranks([told[name] for name in names]) for told in (scores, truth))
    if not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def plane_features(handle: ModelArchive) -> list[PlaneFeatures]:
    """Features of a few planes of level 0."""
    groups = [group for group in handle.layout.groups if not group.opaque]
    planes = [plane for group in groups for plane in range(group.first, group.first + group.planes)]
    found = []
    for at in np.unique(np.linspace(0, len(planes) - 1, PLANES).round().astype(int)) if planes else ():
        ((_, values),) = handle.words(planes[at], planes[at] + 1, 0)
        square = to_layout(np.asarray(values, np.float32), "hilbert").reshape(handle.layout.side, -1)
        found.append(features_of(picture_of(square)))
    return found


def feature_scores(first: Sequence[PlaneFeatures], second: Sequence[PlaneFeatures]) -> npt.NDArray[np.float64]:
    """(5,) means over the planes that both have."""
    pairs = list(zip(first, second, strict=False))
    return np.mean([compared(a, b) for a, b in pairs], axis=0) if pairs else np.zeros(5)


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
