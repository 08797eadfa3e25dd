"""Weights learnt from pairs of known relation order unseen pairs better than any score alone."""

from __future__ import annotations

import numpy as np
import pytest

from operators.blend import blend, learn


def pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two scores that each know half, one that knows nothing; a tenth are relatives."""
    random = np.random.default_rng(seed)
    related = random.random(count) < 0.1
    noise = random.normal(0, 0.25, (count, 3))
    return np.column_stack([related * 0.5, related * 0.5, np.zeros(count)]) + 0.3 + noise, related


def area(scores: np.ndarray, related: np.ndarray) -> float:
    """Of a relative and a stranger, how often the relative scores higher."""
    order = np.argsort(np.argsort(scores))
    hits = int(related.sum())
    return float((order[related].sum() - hits * (hits - 1) / 2) / (hits * (~related).sum()))


def test_learnt_weights_hold_on_other_pairs() -> None:
    weights = learn(*pairs(4000, 1))
    scores, related = pairs(4000, 2)
    blended = blend(scores, weights)
    assert area(blended, related) > max(area(scores[:, i], related) for i in range(3)) + 0.03
    assert abs(weights[2]) < 0.1 * min(weights[0], weights[1]) and blended.min() >= 0 and blended.max() <= 1


def test_the_gradient_is_nought() -> None:
    scores, related = pairs(500, 3)
    weights, step = learn(scores, related), 1e-4

    def loss(at: np.ndarray) -> float:
        likely = blend(scores, at)
        told = np.where(related, np.log(likely) / related.sum(), np.log(1 - likely) / (~related).sum())
        return float(-told.sum() / 2 + 0.5e-3 * np.square(at[:-1]).sum())

    for i in range(len(weights)):
        nudge = step * np.eye(len(weights))[i]
        assert loss(weights) <= min(loss(weights + nudge), loss(weights - nudge))


def test_needs_both_kinds_of_pairs() -> None:
    with pytest.raises(ValueError, match="strangers"):
        learn(np.zeros((3, 2)), np.ones(3, bool))
