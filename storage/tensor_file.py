"""A tensor as a file, .safetensors or .npy, whose bytes can be produced from any place: nothing is held whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, Literal

import numpy as np

from operators.errors import HilbertflowError
from operators.floats import round_to, to_float32
from storage.handle import Level
from storage.layout import Placement
from storage.model import NUMPY, Tensor, seen

Format = Literal["safetensors", "npy"]


@dataclass(frozen=True)
class TensorFile:
    """Leading-dimension rows start … stop - 1 of a tensor at a level, as the bytes of a file.

    As safetensors the values keep their dtype (levels below exact are rounded to it). As npy, levels below exact are
    float32, and so are bfloat16 and float8, which NumPy has no name for; tensors that are exact at every level keep
    their dtype.
    """

    tensor: Tensor
    level: Level
    format: Format
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        self.tensor.archive.check_level(self.level)
        rows = self.place.shape[0] if self.place.shape else 1
        stop = rows if self.stop is None else self.stop
        if not 0 <= self.start <= stop <= rows or (not self.place.shape and (self.start, stop) != (0, 1)):
            raise HilbertflowError(
                f"rows {self.start} to {stop} of {rows}", where=self.place.name, remedy=f"ask for 0:{rows}"
            )
        object.__setattr__(self, "stop", stop)

    @cached_property
    def place(self) -> Placement:
        """The tensor as it reads at the level."""
        return seen(self.tensor.place, self.level)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the file holds."""
        if not self.place.shape:
            return ()
        return (int(self.stop or 0) - self.start, *self.place.shape[1:])

    @cached_property
    def header(self) -> bytes:
        """Everything before the values."""
        if self.format == "npy":
            out = BytesIO()
            described = {
                "descr": np.lib.format.dtype_to_descr(self._npy), "fortran_order": False, "shape": self.shape
            }  # fmt: skip
            np.lib.format.write_array_header_1_0(out, described)
            return out.getvalue()
        place = self.place
        entry = {"dtype": place.dtype, "shape": list(self.shape), "data_offsets": [0, self._words * place.word]}
        return safetensors_header({place.name: entry})

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self._words * self._width

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes start … stop - 1 of the file in pieces; decodes only the planes that hold them."""
        stop = self.size if stop is None else stop
        if head := self.header[start:stop]:
            yield head
        low, high = max(0, start - len(self.header)), stop - len(self.header)
        if low >= high:
            return
        first = low // self._width
        at = first * self._width
        for piece in self._pieces(first, -(-high // self._width)):
            yield piece[max(0, low - at) : high - at]
            at += len(piece)

    def _pieces(self, first: int, last: int) -> Iterator[bytes]:
        """Values first … last - 1 of the chosen rows."""
        place = self.place
        lossy = self.level != "exact" and not place.opaque
        base = self.start * self._per_row
        for part in self.tensor.chunks(self.level, base + first, base + last):
            if self.format == "safetensors":
                yield (round_to(part, place.dtype) if lossy else part).tobytes()
            elif lossy or self._unnamed:
                yield (part if part.dtype == np.float32 else to_float32(part, place.dtype)).tobytes()
            else:
                yield part.tobytes()

    @property
    def _unnamed(self) -> bool:
        return self.place.dtype.startswith(("BF", "F8"))

    @property
    def _npy(self) -> np.dtype[Any]:
        lossy = self.level != "exact" and not self.place.opaque
        return np.dtype(np.float32) if lossy or self._unnamed else np.dtype(NUMPY[self.place.dtype])

    @property
    def _per_row(self) -> int:
        return self.place.words // max(1, self.place.shape[0]) if self.place.shape else self.place.words

    @property
    def _words(self) -> int:
        return self._per_row * (int(self.stop or 0) - self.start)

    @property
    def _width(self) -> int:
        """Bytes of one word in the file: 8-byte dtypes take two words a value."""
        place = self.place
        lossy = self.level != "exact" and not place.opaque
        return 4 if self.format == "npy" and (lossy or self._unnamed) else place.word


def safetensors_header(entries: dict[str, Any]) -> bytes:
    """The length and the JSON that begin a safetensors file, padded to eight bytes."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
