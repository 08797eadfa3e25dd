"""Texts and pictures to query vectors: the model in a process of its own, and the batched way to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.batcher import Batcher
from cluster.vectors import F32
from operators.errors import HilbertflowError

if TYPE_CHECKING:
    from operators.encode import TextEncoder

TOGETHER = 64  # texts or pictures that go to a model at once: those that came while the last ones were encoded
FLIGHTS = 2  # the next batch is on its way while the model works on one
AGAIN_S = 10.0  # after so long a model that did not load is tried again

_log = logging.getLogger("hilbertflow.serve")


@dataclass(frozen=True)
class Encoded:
    """Vectors (n, dim) of n pictures; faults: what is wrong with those that have none (their rows are zero)."""

    vectors: F32
    faults: dict[int, str]

    def __len__(self) -> int:
        return len(self.vectors)


class NotLoaded(RuntimeError):
    """The model could not be loaded."""


class Encoder:
    """A model loaded once; Torch lives in its process and in no process that runs FAISS.

    One that does not load leaves its process up, which tells why, and tries again when it is asked later.
    """

    def __init__(self, model: str, max_tokens: int, threads: int) -> None:
        self._settings = model, max_tokens, threads
        self._lock = threading.Lock()
        self._load()

    def _load(self) -> None:
        from operators.encode import open_encoder

        self._fault, self._tried = "is still loading", time.monotonic()
        try:
            self._encoder = open_encoder(*self._settings)
            self._encoder.encode(["ready"])
        except Exception as error:  # broken files make Torch, tokenizers and safetensors raise whatever they like
            why = f"the model does not load ({type(error).__name__})"
            self._fault = error.what if isinstance(error, HilbertflowError) else why
            _log.warning("%s: %s", self._settings[0], self._fault)
        else:
            self._fault = ""

    def fault(self) -> str:
        """Why the model is not there, empty when it is."""
        with self._lock:
            if self._fault and time.monotonic() - self._tried > AGAIN_S:
                self._load()
            return self._fault

    @property
    def _loaded(self) -> TextEncoder:
        if self._fault:
            raise NotLoaded(self._fault)
        return self._encoder

    def encode(self, texts: list[str]) -> F32:
        """(len(texts), dim) float32."""
        return self._loaded.encode(texts)

    def encode_pictures(self, pictures: list[bytes]) -> Encoded:
        """JPEG and PNG files; one that is broken costs only whoever sent it. One is unpacked at a time."""
        from operators.encode import ClipEncoder

        model = self._loaded
        assert isinstance(model, ClipEncoder)
        seen, faults = [], {}
        for number, data in enumerate(pictures):
            try:
                seen.append(model.pixels(data))
            except HilbertflowError as error:
                faults[number] = error.what
        vectors = np.zeros((len(pictures), model.dim), np.float32)
        vectors[[i for i in range(len(pictures)) if i not in faults]] = model.encode_pixels(seen)
        return Encoded(vectors, faults)


async def _none() -> str:
    return ""


class Encoding:
    """The way to a model: what several requests ask at once is encoded together.

    texts: encodes n texts as (n, dim) vectors. pictures: the same for JPEG and PNG files; None for a model of texts.
    model: its name. fault: asks why it has not loaded; empty when it has.
    """

    def __init__(
        self, texts: Callable[[list[str]], Awaitable[F32]],
        pictures: Callable[[list[bytes]], Awaitable[Encoded]] | None = None,
        model: str = "", fault: Callable[[], Awaitable[str]] = _none,
    ) -> None:  # fmt: skip
        self.model, self.fault = model, fault
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
