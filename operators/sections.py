"""Integer arrays one behind another in a string of bytes, entropy coded in pieces.

Neither shape nor dtype is stored: the reader says what it expects, so that no file decides how much memory is taken.
An array is cut in pieces of rows, and each piece is a chunk of :mod:`operators.rans` behind its length. Columns whose
statistics differ are coded one after another (``by_column``), as a coder that cuts its input in runs wants them.
Trailing zero bits that all values of an array have are taken out before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import rans
from operators.errors import HilbertflowError, at, placed

PIECE = 1 << 20
"""Values in a piece, about."""


def put(array: npt.NDArray[Any], *, by_column: bool = False) -> bytes:
    """The bytes of an integer array of 8 to 32 bits with one or two axes."""
    zeros = _common_zeros(array)
    parts = [bytes([zeros])]
    for rows in _pieces(array.shape):
        piece = array[rows] >> zeros
        chunk = rans.encode(np.ascontiguousarray(piece.T if by_column else piece))
        parts += [len(chunk).to_bytes(4, "little"), chunk]
    return b"".join(parts)


class Reader:
    """Takes arrays from bytes, in the order in which they were put.

    Parameters
    ----------
    where, begin: what errors call the file, and the byte of it at which the arrays begin.
    """

    def __init__(self, data: memoryview, where: str = "packed vectors", begin: int = 0) -> None:
        self._data, self._at, self._where, self._begin = data, 0, where, begin

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, by_column: bool = False) -> npt.NDArray[Any]:
        """The next array; HilbertflowError when the bytes are not one of this shape and dtype."""
        zeros = self._take(1)[0]
        if zeros >= 8 * np.dtype(dtype).itemsize:
            raise HilbertflowError("an array is malformed", where=self._place(-1))
        out = np.empty(shape, dtype)
        for rows in _pieces(shape):
            chunk = self._take(int.from_bytes(self._take(4), "little"))
            place = out[rows]
            turned = place.shape[::-1] if by_column else place.shape
            with placed(self._where, self._begin + self._at - len(chunk)):
                piece = rans.decode(chunk, turned, out.dtype)
            place[...] = (piece.T if by_column else piece) << zeros
        return out

    def end(self) -> None:
        """Raise unless everything was taken."""
        if self._at != len(self._data):
            raise HilbertflowError(f"{len(self._data) - self._at} bytes too many", where=self._place())

    def _place(self, past: int = 0) -> str:
        return at(self._where, self._begin + self._at + past)

    def _take(self, count: int) -> memoryview:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise HilbertflowError("cut short", where=self._place(len(part)))
        self._at += count
        return part


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, PIECE // max(1, shape[1] if len(shape) > 1 else 1))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _common_zeros(array: npt.NDArray[Any]) -> int:
    every = int(np.bitwise_or.reduce(array, axis=None)) if array.size else 0
    return (every & -every).bit_length() - 1 if every else 0
