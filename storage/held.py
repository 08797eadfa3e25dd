"""Bytes of a checkpoint that planning has read, so that the workers that need them again need not ask storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from storage.checkpoint import Checkpoint
from storage.tensors import TensorSpec

MOST = 16 << 20
"""Bytes at most: of a checkpoint of which planning reads more, that is a small part."""

Read = Callable[[TensorSpec, int, int], bytes]


@dataclass(frozen=True)
class Piece:
    """Bytes of a tensor from ``start`` on."""

    tensor: str
    start: int
    data: bytes

    @property
    def stop(self) -> int:
        """The first byte that is not there."""
        return self.start + len(self.data)


class Recorder:
    """Reads a checkpoint, and keeps what it read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._bytes = checkpoint, 0
        self.pieces: list[Piece] = []

    def __call__(self, spec: TensorSpec, start: int, stop: int) -> bytes:
        """Bytes of a tensor."""
        return read(tuple(self.pieces), spec, start, stop, self._fetch)

    def _fetch(self, spec: TensorSpec, start: int, stop: int) -> bytes:
        data = self._checkpoint.read(spec, start, stop)
        if self._bytes + len(data) <= MOST:
            self._bytes += len(data)
            self.pieces.append(Piece(spec.name, start, data))
        return data


def read(pieces: tuple[Piece, ...], spec: TensorSpec, start: int, stop: int, fetch: Read) -> bytes:
    """Bytes of a tensor, from pieces where they lie in some; ``fetch`` is asked for what lies between."""
    return b"".join(_parts(pieces, spec, start, stop, fetch))


def _parts(pieces: tuple[Piece, ...], spec: TensorSpec, start: int, stop: int, fetch: Read) -> Iterator[bytes]:
    mine = (piece for piece in pieces if piece.tensor == spec.name and piece.start < stop and piece.stop > start)
    for piece in sorted(mine, key=lambda piece: piece.start):
        if piece.stop <= start:  # one before it reached as far
            continue
        if piece.start > start:
            yield fetch(spec, start, piece.start)
        begin = max(start, piece.start)
        start = min(stop, piece.stop)
        yield piece.data[begin - piece.start : start - piece.start]
    if start < stop:
        yield fetch(spec, start, stop)
