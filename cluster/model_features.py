"""A model looked at as pictures: features of a few of its planes, and how alike those of two models are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.hilbert_map import to_layout
from operators.plane_features import NAMES, PlaneFeatures, compared, features_of, picture_of
from storage.layout import Layout
from storage.model import ModelArchive

PLANES = 3
"""Planes of a model that are looked at, spread evenly over its matrices."""


def plane_features(handle: ModelArchive) -> list[PlaneFeatures]:
    """Features of a few planes of level 0."""
    found = []
    for plane in sampled(handle.layout):
        ((_, values),) = handle.words(plane, plane + 1, 0)
        found.append(features_along(values, handle.layout.side))
    return found


def sampled(layout: Layout) -> list[int]:
    """Planes by which a model is looked at: a few of those that are not opaque, spread evenly."""
    planes = [p for group in layout.groups if not group.opaque for p in range(group.first, group.first + group.planes)]
    return planes if len(planes) <= PLANES else [planes[(len(planes) - 1) * i // (PLANES - 1)] for i in range(PLANES)]


def features_along(values: npt.NDArray[np.float32], side: int) -> PlaneFeatures:
    """Features of side² values in source order, laid along the Hilbert curve."""
    return features_of(picture_of(to_layout(np.asarray(values, np.float32), "hilbert").reshape(side, -1)))


def feature_scores(first: Sequence[PlaneFeatures], second: Sequence[PlaneFeatures]) -> npt.NDArray[np.float64]:
    """(5,) means over the planes that both have."""
    pairs = list(zip(first, second, strict=False))
    return np.mean([compared(a, b) for a, b in pairs], axis=0) if pairs else np.zeros(len(NAMES))
