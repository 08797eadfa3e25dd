"""Work arrays that a thread keeps, so that each step of a plane need not fetch fresh pages from the system."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialized array, valid until this thread asks for the same name again. Never hand it to a caller."""
    kind = np.dtype(dtype)
    wanted = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    kept: npt.NDArray[np.uint8] | None = getattr(_KEPT, name, None)
    if kept is None or kept.size < wanted:
        kept = np.empty(wanted, np.uint8)
        setattr(_KEPT, name, kept)
    return kept[:wanted].view(kind).reshape(shape)
