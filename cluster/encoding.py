"""Texts and pictures to query vectors: the model in a process of its own, and the batched way to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.batcher import Batcher
from cluster.vectors import F32
from operators.errors import HilbertflowError

TOGETHER = 64  # texts or pictures that go to a model at once: those that came while the last ones were encoded
FLIGHTS = 2  # the next batch is on its way while the model works on one


@dataclass(frozen=True)
class Encoded:
    """Vectors (n, dim) of n pictures; faults: what is wrong with those that have none (their rows are zero)."""

    vectors: F32
    faults: dict[int, str]

    def __len__(self) -> int:
        return len(self.vectors)


class Encoder:
    """A model loaded once; Torch lives in its process and in no process that runs FAISS."""

    def __init__(self, model: str, max_tokens: int, threads: int) -> None:
        from operators.encode import open_encoder

        self._encoder = open_encoder(model, max_tokens, threads)
        self._encoder.encode(["ready"])

    def encode(self, texts: list[str]) -> F32:
        """(len(texts), dim) float32."""
        return self._encoder.encode(texts)

    def encode_pictures(self, pictures: list[bytes]) -> Encoded:
        """JPEG and PNG files; one that is broken costs only whoever sent it. One is unpacked at a time."""
        from operators.encode import ClipEncoder

        assert isinstance(self._encoder, ClipEncoder)
        seen, faults = [], {}
        for number, data in enumerate(pictures):
            try:
                seen.append(self._encoder.pixels(data))
            except HilbertflowError as error:
                faults[number] = error.what
        vectors = np.zeros((len(pictures), self._encoder.dim), np.float32)
        vectors[[i for i in range(len(pictures)) if i not in faults]] = self._encoder.encode_pixels(seen)
        return Encoded(vectors, faults)


class Encoding:
    """The way to a model: what several requests ask at once is encoded together.

    texts: encodes n texts as (n, dim) vectors. pictures: the same for JPEG and PNG files; None for a model of texts.
    """

    def __init__(
        self, texts: Callable[[list[str]], Awaitable[F32]],
        pictures: Callable[[list[bytes]], Awaitable[Encoded]] | None = None,
    ) -> None:  # fmt: skip
        self._texts: Batcher[None, list[str], F32] = Batcher(lambda _, some: texts(some), TOGETHER, FLIGHTS, _joined)
        self._pictures: Batcher[None, list[bytes], Encoded] | None = None
        if pictures is not None:
            self._pictures = Batcher(lambda _, some: pictures(some), TOGETHER, FLIGHTS, _joined)

    @property
    def takes_pictures(self) -> bool:
        """Whether the model sees."""
        return self._pictures is not None

    async def texts(self, texts: list[str]) -> F32:
        """(n, dim) of n texts."""
        vectors, place = await self._texts.submit(None, texts)
        return vectors[place]

    async def pictures(self, pictures: list[bytes]) -> F32:
        """(n, dim) of n JPEG or PNG files; raises `HilbertflowError` for the first that cannot be read."""
        if self._pictures is None:
            raise HilbertflowError("the collection's model takes no pictures", where="images", remedy="send texts")
        encoded, place = await self._pictures.submit(None, pictures)
        for number in range(place.start, place.stop):
            if number in encoded.faults:
                raise HilbertflowError(encoded.faults[number], where=f"images.{number - place.start}",
                                       remedy="send a whole JPEG or PNG")  # fmt: skip
        return encoded.vectors[place]


def _joined(lists: list[Any]) -> list[Any]:
    return [item for some in lists for item in some]
