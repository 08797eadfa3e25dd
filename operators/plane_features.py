"""Planes of weights compared as pictures: ORB, template matching, histogram, SSIM and local binary patterns.

A plane is clipped at three deviations. At 256 × 256 the detectors find corners in what is noise to the eye; smaller
planes are laid side by side until the picture is that large. What such features are worth for weights is for
``similar --compare`` to say; each is in 0 … 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
NAMES = ("orb", "template", "histogram", "ssim", "texture")
SIDE, TEMPLATE, POINTS = 256, 64, 200


@dataclass(frozen=True)
class PlaneFeatures:
    """Of one picture: itself, descriptors of its corners (n, 256) bool, histograms of its greys and of its texture."""

    picture: U8
    corners: npt.NDArray[np.bool_]
    greys: F64
    texture: F64


def picture_of(values: npt.NDArray[np.float32]) -> U8:
    """A square plane as 256 × 256 greys, 128 is zero."""
    side = values.shape[0]
    times = max(1, SIDE // side)
    wide = np.tile(values, (times, times))[:SIDE, :SIDE]
    deviation = float(np.std(wide)) or 1.0
    return np.asarray(np.clip(wide / deviation * 42 + 128, 0, 255), np.uint8)


def features_of(picture: U8) -> PlaneFeatures:
    """What is compared of a picture (256, 256); needs scikit-image."""
    try:
        from skimage.feature import ORB, local_binary_pattern
    except ImportError as error:
        raise HilbertflowError("scikit-image is not installed", where="method features",
                               remedy="pip install 'hilbertflow[models]'") from error  # fmt: skip
    detector = ORB(n_keypoints=POINTS, n_scales=3, fast_threshold=0.05)
    try:
        detector.detect_and_extract(picture.astype(np.float64) / 255)
        corners = np.asarray(detector.descriptors, np.bool_)
    except RuntimeError:  # it found none
        corners = np.zeros((0, 256), np.bool_)
    texture = np.bincount(local_binary_pattern(picture, 8, 1, "uniform").astype(np.int64).reshape(-1), minlength=10)
    greys = np.bincount(picture.reshape(-1) >> 2, minlength=64)
    return PlaneFeatures(picture, corners, greys / greys.sum(), texture / texture.sum())


def compared(first: PlaneFeatures, second: PlaneFeatures) -> F64:
    """(5,) in the order of :data:`NAMES`."""
    from skimage.feature import match_descriptors, match_template
    from skimage.metrics import structural_similarity

    matches = 0
    if len(first.corners) and len(second.corners):
        matches = len(match_descriptors(first.corners, second.corners, max_distance=0.2, cross_check=True))
    middle = slice((SIDE - TEMPLATE) // 2, (SIDE + TEMPLATE) // 2)
    found = match_template(second.picture, first.picture[middle, middle])
    return np.array(
        [
            matches / max(1, min(len(first.corners), len(second.corners))), max(0.0, float(found.max())),
            float(np.minimum(first.greys, second.greys).sum()),
            max(0.0, float(structural_similarity(first.picture, second.picture))),
            float(np.minimum(first.texture, second.texture).sum()),
        ]
    )  # fmt: skip
