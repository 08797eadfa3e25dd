"""What planning has read is not asked for again, whatever pieces it read."""

from __future__ import annotations

import random

from storage.checkpoint import Checkpoint
from storage.held import MOST, Piece, Recorder, read
from storage.tensors import TensorSpec

DATA = random.Random(0).randbytes(500)
SPEC = TensorSpec("a", "mlp", "U8", (500,), "file", 0, 500)


def test_any_range_comes_out_and_only_gaps_are_fetched() -> None:
    chance = random.Random(1)
    for _ in range(300):
        pieces = [Piece("b", 0, b"x" * 500)]
        for _ in range(chance.randrange(5)):
            start = chance.randrange(500)
            pieces.append(Piece("a", start, DATA[start : start + chance.randrange(1, 120)]))
        held = {at for piece in pieces[1:] for at in range(piece.start, piece.stop)}
        start = chance.randrange(500)
        stop = chance.randrange(start, 501)
        fetched: list[int] = []

        def fetch(spec: TensorSpec, low: int, high: int, fetched: list[int] = fetched) -> bytes:
            fetched.extend(range(low, high))
            return DATA[low:high]

        assert read(tuple(pieces), SPEC, start, stop, fetch) == DATA[start:stop]
        assert fetched == [at for at in range(start, stop) if at not in held]


class Counting(Checkpoint):
    """A checkpoint of zeros that counts the bytes it gives."""

    asked = 0

    def read(self, tensor: TensorSpec, start: int = 0, stop: int | None = None) -> bytes:
        assert stop is not None
        Counting.asked += stop - start
        return bytes(stop - start)


def test_a_recorder_reads_once_and_keeps_no_more_than_it_may() -> None:
    checkpoint = Counting("", (SPEC,), {}, "")
    reads = Recorder(checkpoint)
    assert reads(SPEC, 0, 400) == reads(SPEC, 0, 400) and len(reads(SPEC, 300, 500)) == 200
    assert Counting.asked == 500
    assert len(reads(SPEC, 500, 500 + MOST)) == MOST
    assert sum(len(piece.data) for piece in reads.pieces) == 500
