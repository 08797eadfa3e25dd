"""The last level: what makes a float bit-exact, given the levels beneath it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from operators.floats import Words, dtype_info, from_ordered, round_to, to_ordered


def encode(
    bits: Words, dtype: str, index: npt.NDArray[np.integer], steps: npt.NDArray[np.float32]
) -> Words:
    """Residual words (rows, side): how many representable numbers a value lies from its reconstruction, folded.

    ``bits`` (rows, side) are words of ``dtype``, ``index`` the cumulative lattice index, ``steps`` (rows,) its step.
    """
    word = f"<u{dtype_info(dtype).word}"
    difference = to_ordered(bits, dtype) - _predicted(dtype, index, steps)
    negative = difference >> np.array(8 * difference.itemsize - 1, word)
    return ((difference << np.array(1, word)) ^ (np.array(0, word) - negative)).astype(word)


def decode(
    symbols: Words, dtype: str, index: npt.NDArray[np.integer], steps: npt.NDArray[np.float32]
) -> Words:
    """Inverse of :func:`encode`: the words of the source, bit for bit."""
    word = f"<u{dtype_info(dtype).word}"
    symbols = symbols.astype(word, copy=False)
    one = np.array(1, word)
    difference = (symbols >> one) ^ (np.array(0, word) - (symbols & one))
    return from_ordered((difference + _predicted(dtype, index, steps)).astype(word), dtype)


def _predicted(dtype: str, index: npt.NDArray[np.integer], steps: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return to_ordered(round_to(index.astype(np.float32) * steps[:, None], dtype), dtype)
