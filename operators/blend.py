"""Several scores made one: a logistic regression, whose weights are learnt where the truth is known.

Ways to compare models are on different scales and know different things; a sum by hand (60 parts of this, 40 of that)
says nothing of either. Here the weights are those under which pairs of relatives and pairs of strangers are likeliest
(maximum likelihood with a small ridge, by Newton's method; both kinds of pairs weigh the same, whatever their number).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
RIDGE, STEPS = 1e-3, 50


def learn(scores: F64, related: npt.NDArray[np.bool_]) -> F64:
    """Weights (columns + 1,), the constant last.

    Parameters
    ----------
    scores: (pairs, columns), each column about 0 … 1.
    related: (pairs,), with both kinds among them.
    """
    if related.all() or not related.any():
        raise ValueError("weights are learnt from relatives and strangers, both")
    columns = np.column_stack([scores, np.ones(len(scores))])
    share = np.where(related, 0.5 / related.sum(), 0.5 / (~related).sum())
    penalty = RIDGE * np.append(np.ones(scores.shape[1]), 0.0)
    weights = np.zeros(columns.shape[1])
    for _ in range(STEPS):
        likely = blend(scores, weights)
        slope = columns.T @ (share * (likely - related)) + penalty * weights
        bend = (columns * (share * likely * (1 - likely))[:, None]).T @ columns + np.diag(penalty + 1e-12)
        step = np.linalg.solve(bend, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def blend(scores: F64, weights: F64) -> F64:
    """How likely relatives are, 0 … 1, for scores (..., columns) under weights (columns + 1,)."""
    return np.asarray(1 / (1 + np.exp(-np.clip(scores @ weights[:-1] + weights[-1], -60, 60))))
