"""Work arrays that a thread keeps, so that each step of a plane need not fetch fresh pages from the system."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT = threading.local()
MOST = 8 << 20
"""Bytes of an array that is kept: planes of side 1024 fit, what is larger is rare and given back."""


def scratch(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialized array, valid until this thread asks for the same name again. Never hand it to a caller."""
    kept: npt.NDArray[Any] | None = _KEPT.__dict__.get(name)
    if kept is not None and kept.shape == shape and kept.dtype == dtype:
        return kept
    array = np.empty(shape, dtype)
    if array.nbytes <= MOST:
        _KEPT.__dict__[name] = array
    return array
