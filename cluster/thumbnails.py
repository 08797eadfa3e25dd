"""Small pictures of rows that were made from picture files, read from the source's folder."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from threading import Lock

from operators.errors import HilbertflowError
from operators.pictures import decode
from storage.collection import CollectionArchive
from storage.fs import Location

EDGE = 192
"""Pixels of the longer edge."""
KEPT = 16 << 20
"""Bytes of thumbnails that are kept in memory."""
MEDIA = "image/webp"


class Thumbnails:
    """Thumbnails of one collection's rows. Blocking, so it is called in threads; safe to share between them.

    A row has a picture when its collection was made from a folder of pictures: its metadata then name the file below
    that folder and its SHA-256. Only that very file is shown, scaled down, never passed on as it is.
    """

    def __init__(self, folder: Location) -> None:
        self._folder, self._lock = folder, Lock()
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of(cls, collection: CollectionArchive) -> Thumbnails | None:
        """Those of a collection; None where its rows were not made from pictures."""
        return cls(Location(collection.pictures)) if collection.pictures else None

    def read(self, path: object, sha256: object) -> bytes:
        """The thumbnail of a file as WebP; raises `HilbertflowError` when the file has gone, or is another by now."""
        if not isinstance(path, str) or not isinstance(sha256, str) or not _below(path):
            raise HilbertflowError("the row names no picture")
        with self._lock:
            if sha256 in self._held:
                self._held.move_to_end(sha256)
                return self._held[sha256]
        data = self._folder.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HilbertflowError("has changed since it was embedded", where=self._folder.join(path).url)
        made = scaled(data, path)
        with self._lock:
            if sha256 not in self._held:
                self._held[sha256] = made
                self._bytes += len(made)
            while self._bytes > KEPT:
                self._bytes -= len(self._held.popitem(last=False)[1])
        return made


def _below(path: str) -> bool:
    """Whether the path stays below the folder that it is joined to: metadata may have been written by anybody."""
    return bool(path) and not path.startswith(("/", "~")) and "\\" not in path and ".." not in path.split("/")


def scaled(data: bytes, where: str) -> bytes:
    """A JPEG or PNG as a WebP of at most 192 pixels an edge; raises `HilbertflowError` for what is none."""
    image = decode(data, where)
    image.thumbnail((EDGE, EDGE))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=85)
    return sink.getvalue()
