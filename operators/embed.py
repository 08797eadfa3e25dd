"""Embed the texts or the pictures of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import pyarrow as pa

from operators.encode import TextEncoder, open_encoder
from operators.errors import HilbertflowError
from operators.operator import Operator, Over, Resources


@dataclass(frozen=True)
class Embed(Operator):
    """Replace ``text`` or ``image`` by ``vector``, with a model that each worker loads once.

    Parameters
    ----------
    model: a sentence-transformers or CLIP model directory on every worker, or ``package://DISTRIBUTION/path`` for one
        that an installed Python package carries. Pictures need a CLIP model.
    max_tokens: longer texts are cut; 0 takes the model's own limit.
    batch: texts or pictures a forward pass.
    cpus, gpus: of one worker.
    """

    kind: Literal["embed"] = "embed"
    model: str = ""
    max_tokens: int = 128
    batch: int = 16
    cpus: float = 1.0
    gpus: float = 0.0

    over: ClassVar[Over] = "texts"

    def __post_init__(self) -> None:
        if not self.model:
            raise HilbertflowError("no model is named", where="embed", remedy="set model: to a model directory")

    def parallel(self) -> Resources:
        """Embedding has its own workers, so that the model is not loaded where planes are coded."""
        return Resources(self.cpus, self.gpus)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Texts (``text`` str) or pictures (``image`` binary, JPEG or PNG) to ``vector`` FixedSizeList<float32>.

        Other columns stay; ``id`` names a picture in errors.
        """
        encoder = _encoder(self.model, self.max_tokens, max(1, round(self.cpus)))
        if "image" in batch.column_names:
            given, names = batch.column("image").to_pylist(), batch.column("id").to_pylist()
            vectors = encoder.encode_pictures(given, self.batch, names)
        else:
            vectors = encoder.encode(batch.column("text").to_pylist(), self.batch)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        left = [name for name in batch.column_names if name not in ("text", "image")]
        return batch.select(left).append_column("vector", values)


@lru_cache(maxsize=2)
def _encoder(directory: str, max_tokens: int, threads: int) -> TextEncoder:
    return open_encoder(directory, max_tokens, threads)
