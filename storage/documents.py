"""Folders of documents and of images as sources of rows; one broken file is reported and left out."""

from __future__ import annotations

import bisect
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import pyarrow as pa

from operators.errors import HilbertflowError, at
from operators.pictures import check, need_pillow
from storage.document_text import EXTRACTORS, Unreadable, chunks, document_text
from storage.fs import Location
from storage.rows import check_range

IMAGES = (".jpg", ".jpeg", ".png")
_MAX_FILE = 256 << 20


@dataclass(frozen=True)
class Document:
    """A file that was read once: path in the folder, SHA-256 and bytes of its content, first row and rows."""

    path: str
    sha256: str
    size: int
    first: int
    rows: int


class Skipped(NamedTuple):
    """A file that could not be read: path in the folder, the place in the file, the reason."""

    path: str
    place: str
    reason: str


@dataclass(frozen=True)
class FolderRows:
    """Files of a folder, recursively, in the order of their paths. A `RowSource`.

    Texts give a row a chunk (``text``), images a row a file (``image``, the file's bytes). Metadata: ``path``,
    ``chunk`` (number in the file), ``sha256`` (of the file: what has not changed need not be done again), and
    ``first_line`` of texts. The id is ``path#chunk``.

    Pickles as the list of files; a worker reads the files of its own rows again, and a file that has changed since is
    an error.

    Parameters
    ----------
    url: the folder.
    kind: ``text`` or ``image``.
    words, overlap: of a chunk of text; see `document_text.chunks`.
    files: in order.
    skipped: the files that could not be read.
    """

    url: str
    kind: Literal["text", "image"]
    words: int
    overlap: int
    files: tuple[Document, ...]
    skipped: tuple[Skipped, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of paths, contents and how they are cut."""
        digest = hashlib.sha256(f"hilbertflow folder 1 {self.kind} {self.words} {self.overlap}\n".encode())
        for file in self.files:
            digest.update(f"{file.path!r} {file.sha256} {file.rows}\n".encode())
        return digest.hexdigest()

    @property
    def count(self) -> int:
        """Chunks or images."""
        return self.files[-1].first + self.files[-1].rows if self.files else 0

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes on its way to the encoder: 4 kB for a chunk of text, the mean file for images."""
        if self.kind == "text" or not self.files:
            return 4096
        return 4096 + sum(file.size for file in self.files) // len(self.files)

    @property
    def dim(self) -> None:
        """None: these have yet to be embedded."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """The metadata columns."""
        return ("path", "chunk", "sha256", *(["first_line"] if self.kind == "text" else []))

    def only(self, keep: Callable[[Document], bool]) -> FolderRows:
        """The same folder with those files alone that ``keep`` wants, as those whose content is new."""
        kept, first = [], 0
        for file in self.files:
            if keep(file):
                kept.append(replace(file, first=first))
                first += file.rows
        return replace(self, files=tuple(kept))

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``."""
        check_range(start, stop, self.count, self.url)
        schema = _SCHEMAS[self.kind]
        columns: dict[str, list[object]] = {name: [] for name in schema.names}
        at = bisect.bisect_right([file.first for file in self.files], start) - 1
        while start < stop:
            file = self.files[at]
            content = _content(Location(self.url), file.path, file.sha256, self.kind, self.words, self.overlap)
            for chunk in range(start - file.first, min(stop - file.first, file.rows)):
                columns["id"].append(f"{file.path}#{chunk}")
                columns[self.kind].append(content[chunk])
                columns["path"].append(file.path)
                columns["chunk"].append(chunk)
                columns["sha256"].append(file.sha256)
                if self.kind == "text":
                    columns["first_line"].append(str(content[chunk])[:100])
            start, at = file.first + file.rows, at + 1
        return pa.table(columns, schema)

    def check(self) -> None:
        """Raise when no file could be read, with the reason of the first."""
        if not self.files:
            remedy = f"expected names that end in {', '.join(EXTRACTORS if self.kind == 'text' else IMAGES)}"
            where, what = self.url, f"no {self.kind} could be read"
            if self.skipped:
                path, place, reason = self.skipped[0]
                where, what = at(Location(self.url).join(path).url, place), f"{what}: {reason}"
            raise HilbertflowError(what, where=where, remedy=remedy)


_META = [("path", pa.string()), ("chunk", pa.int32()), ("sha256", pa.string())]
_SCHEMAS = {
    "text": pa.schema([("id", pa.string()), ("text", pa.string()), *_META, ("first_line", pa.string())]),
    "image": pa.schema([("id", pa.string()), ("image", pa.binary()), *_META]),
}


def open_folder(url: str, kind: Literal["text", "image"] = "text", words: int = 160, overlap: int = 24) -> FolderRows:
    """Read every file of a folder once: its hash, and how many rows it gives.

    Parameters
    ----------
    url: the folder; txt, md, html, pdf and docx for texts, jpg and png for images, at any depth. Hidden files and
        files of other kinds are not looked at.
    kind: ``text`` or ``image``.
    words, overlap: of a chunk; 160 words are about the 256 tokens that a MiniLM takes in.
    """
    place = Location(url)
    if not place.is_dir():
        raise HilbertflowError("is not a folder", where=url, remedy="name a folder of documents or images")
    if kind == "image":
        need_pillow()
    endings = tuple(EXTRACTORS) if kind == "text" else IMAGES
    files: list[Document] = []
    skipped: list[Skipped] = []
    first = 0
    for path, size in place.sizes().items():
        if not path.lower().endswith(endings) or any(part.startswith(".") for part in path.split("/")):
            continue
        try:
            if size > _MAX_FILE:
                raise Unreadable(f"it is larger than {_MAX_FILE >> 20} MiB", f"byte {_MAX_FILE}")
            data = place.read(path)
            rows = len(_rows(path, data, kind, words, overlap))
            name = path.encode("utf-8", "strict").decode()
            files.append(Document(name, hashlib.sha256(data).hexdigest(), size, first, rows))
            first += rows
        except Unreadable as error:
            skipped.append(Skipped(path.encode("utf-8", "replace").decode(), error.place, error.what))
        except UnicodeEncodeError as error:
            skipped.append(Skipped(path.encode("utf-8", "replace").decode(), "its name", str(error)))
    return FolderRows(url, kind, words, overlap, tuple(files), tuple(skipped))


@functools.lru_cache(maxsize=4)
def _content(
    place: Location, path: str, sha256: str, kind: Literal["text", "image"], words: int, overlap: int
) -> tuple[str | bytes, ...]:
    data = place.read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        where = at(place.join(path).url, f"bytes 0 to {len(data)}")
        raise HilbertflowError("has changed while it was read", where=where, remedy="run again")
    return _rows(path, data, kind, words, overlap)


def _rows(path: str, data: bytes, kind: Literal["text", "image"], words: int, overlap: int) -> tuple[str | bytes, ...]:
    if kind == "text":
        return tuple(chunks(document_text(path, data), words, overlap))
    try:
        check(data, path)
    except HilbertflowError as error:
        raise Unreadable(f"it {error.what}", error.where.removeprefix(f"{path}: ")) from error
    return (data,)
