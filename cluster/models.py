"""Models behind the endpoint: what one is, its tensors as files at any level, its planes as pictures."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from functools import cached_property
from math import prod
from typing import Any

from operators.errors import HilbertflowError
from operators.signature import Signature
from storage import archive, catalog, picture, signatures
from storage.handle import Level
from storage.model import ModelArchive, Tensor
from storage.tensor_file import Format, TensorFile

CHAINS = 16
"""Videos of a model that are kept; each is some 100 kB."""
MEDIA = {"safetensors": "application/vnd.safetensors", "npy": "application/x-npy"}


class ModelService:
    """One served model: reading blocks, so the routes call it in threads."""

    def __init__(self, name: str, model: ModelArchive) -> None:
        self.name, self.archive = name, model
        self._lock = threading.Lock()
        self._chains: OrderedDict[str, bytes] = OrderedDict()

    @classmethod
    def open(cls, name: str, url: str) -> ModelService:
        """The model archived at `url`; raises when that is no model."""
        handle = archive.open(url)
        if not isinstance(handle, ModelArchive):
            raise HilbertflowError("is a collection", where=url, remedy="name it under `collections`")
        return cls(name, handle)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `GET /v1/models` tells of each."""
        manifest, places = self.archive.manifest, self.archive.layout.placements
        return {
            "name": self.name, "tensors": len(places), "parameters": sum(prod(place.shape) for place in places),
            "dtypes": sorted({place.dtype for place in places}), "source_bytes": manifest.source_bytes,
            "archive_bytes": sum(manifest.levels.values()), "fingerprint": self.archive.fingerprint,
            "levels": [str(level) for level in self.archive.levels], "level_bytes": dict(manifest.levels),
            "quality": {key: value for key, value in manifest.quality.items() if isinstance(value, int | float)},
        }  # fmt: skip

    @cached_property
    def catalogued(self) -> dict[str, Any]:
        """Its row of a catalog: columns by which models are filtered."""
        return catalog.row(self.archive.place, self.archive.manifest)

    @cached_property
    def tensors(self) -> list[dict[str, Any]]:
        """Its tensors in order of position."""
        return [
            {"name": p.name, "kind": p.kind, "dtype": p.dtype, "shape": list(p.shape), "bytes": p.nbytes,
             "exact_at_every_level": p.opaque}
            for p in self.archive.layout.placements
        ]  # fmt: skip

    @cached_property
    def signature(self) -> Signature:
        """By which its relatives are found; a model archived before there were signatures is read whole, once."""
        return signatures.of_archive(self.archive)

    def file(self, tensor: str, level: str, rows: str, kind: Format) -> TensorFile:
        """Some rows (`first:last`, both optional) of a tensor at a level, as a file; raises `HilbertflowError`."""
        handle: Tensor = self.archive[tensor]
        start, stop = _span(rows)
        return TensorFile(handle, self.level(level), kind, start, stop)

    def level(self, text: str) -> Level:
        """A level by its name; empty is the finest."""
        levels: dict[str, Level] = {str(level): level for level in self.archive.levels}
        if not text:
            return self.archive.levels[-1]
        if text not in levels:
            raise HilbertflowError(
                f"no level {text[:40]!r}", where=self.name, remedy=f"levels are {', '.join(levels)}"
            )  # fmt: skip
        return levels[text]

    def picture(self, tensor: str, level: str, most: int = picture.MAX_TILES) -> bytes:
        """The tensor's first planes as a PNG."""
        return picture.png(self.archive[tensor], self.level(level), most)[0]

    def chain(self, tensor: str) -> bytes:
        """The tensor's first plane through the chain of checkpoints as an MP4; the last few are kept."""
        with self._lock:
            if tensor in self._chains:
                self._chains.move_to_end(tensor)
                return self._chains[tensor]
        made = picture.chain_mp4(self.archive[tensor])[0]
        with self._lock:
            self._chains[tensor] = made
            while len(self._chains) > CHAINS:
                self._chains.popitem(last=False)
        return made

    def tag(self, file: TensorFile) -> str:
        """A strong ETag: the same bytes have the same tag."""
        parts = (self.archive.fingerprint, file.tensor.place.name, file.level, file.format, file.start, file.stop)
        return '"' + hashlib.sha256(repr(parts).encode()).hexdigest()[:32] + '"'


def _span(rows: str) -> tuple[int, int | None]:
    first, colon, last = rows.partition(":")
    if rows and (not colon or any(text and not (text.isascii() and text.isdigit()) for text in (first, last))):
        raise HilbertflowError(
            f"rows is {rows[:40]!r}", where="rows", remedy="write FIRST:LAST, LAST not included; either may be left out"
        )  # fmt: skip
    return int(first[:18] or 0), int(last[:18]) if last else None
