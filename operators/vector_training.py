"""The codebook of ``vq``: k-means on sampled planes or one of the user's own, and the tree that its cells become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import codetree, scales
from operators.codetree import CodeTree
from operators.errors import HilbertflowError
from operators.floats import to_float32
from operators.vector_code import F32, TreeLayers, VectorQuantize, nearest, runs

TRAINING = 1 << 18
"""Runs of values that a small codebook is trained on, at most."""


def training_runs(vq: VectorQuantize) -> int:
    """Runs of values that the codebook is trained on, where there are as many: eight a point at least."""
    return max(TRAINING, 8 * vq.codes)


def training_sample(planes: Sequence[tuple[npt.NDArray[Any], str]], vq: VectorQuantize) -> F32:
    """Runs (n, dim) of sampled planes, which are words (height, width) and their dtype; no more than are trained on."""
    parts = []
    for words, dtype in planes:
        codes = scales.encode(words, dtype)
        parts.append(runs(to_float32(words, dtype), codes, vq.dim)[np.repeat(codes > 0, words.shape[1] // vq.dim)])
    sample = np.concatenate(parts) if parts else np.zeros((0, vq.dim), np.float32)
    return sample[np.sort(np.random.default_rng(0).permutation(len(sample))[: training_runs(vq)])]


def train(sample: F32, vq: VectorQuantize) -> F32:
    """A codebook (codes, dim) of sampled runs (n, dim). Seeded; k-means of FAISS."""
    import faiss

    if len(sample) < vq.codes:
        raise HilbertflowError(
            f"{vq.codes} codes from {len(sample)} sampled runs of values", where="vq", remedy="use fewer codes"
        )
    means = faiss.Kmeans(vq.dim, vq.codes, niter=16, seed=1, min_points_per_centroid=1, max_points_per_centroid=1 << 20)
    means.train(sample)
    return np.asarray(means.centroids, np.float32)


def tree_of(points: F32, sample: F32, layers: TreeLayers) -> tuple[CodeTree, float | None]:
    """The nested codebooks of a flat one (codes, dim), and how well it fits a sample of runs (n, dim).

    Points weigh as many runs as they are nearest to. The fit is the runs' signal to noise, in decibels; None without
    any noise or signal.
    """
    found = nearest(points, sample)
    noise = float(np.square(points[found] - sample, dtype=np.float64).sum())
    signal = float(np.square(sample, dtype=np.float64).sum())
    fit = 10 * math.log10(signal / noise) if noise and signal else None
    return codetree.build(points, layers.widths, np.bincount(found, minlength=len(points)), layers.layers), fit
