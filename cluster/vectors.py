"""Vectors as search handles them: float32 rows, and the form an index holds them in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def prepared(vectors: F32, metric: str) -> F32:
    """Vectors (n, d) as an index holds them: unit length for `cosine` (zero stays zero), otherwise as they are."""
    if metric != "cosine":
        return np.ascontiguousarray(vectors, np.float32)
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.ascontiguousarray(wide / np.where(norms > 0, norms, 1.0), np.float32)
