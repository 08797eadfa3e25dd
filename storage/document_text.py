"""Text of documents, by the ending of their name, and text cut into chunks that a sentence model can take in."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from xml.parsers import expat

from operators.errors import HilbertflowError
from storage.vectors_npy import DIRECTORY

_BLANK = re.compile(r"\n\s*\n+")
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+")
_HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
_BLOCKS = frozenset(
    {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre", "blockquote",
     "table", "ul", "ol", "dl", "dt", "dd", "header", "footer", "main", "hr"}
)  # fmt: skip


_PIECE = 1 << 20


class Unreadable(ValueError):
    """A document without text that could be taken from it.

    Parameters
    ----------
    what: the reason.
    place: where in the document: a byte, a line, a page, a member of the zip.
    """

    def __init__(self, what: str, place: str) -> None:
        self.what, self.place = what, place
        super().__init__(f"{place}: {what}")


@contextmanager
def _reading(place: str | Callable[[], str]) -> Iterator[None]:
    """A broken document surfaces under many names, in libraries that are not ours; here it gets one, and its place."""
    try:
        yield
    except (HilbertflowError, Unreadable):
        raise
    except Exception as error:
        what = f"it is damaged: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise Unreadable(what, place if isinstance(place, str) else place()) from error


def _plain(data: bytes) -> str:
    if (zero := data.find(b"\0", 0, 65_536)) >= 0 and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("it is binary, not text", f"byte {zero}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


class _Visible(HTMLParser):
    """Collects the text that a reader of a page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        elif tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _html(data: bytes) -> str:
    parser = _Visible()
    text = _plain(data)
    with _reading(lambda: f"line {parser.getpos()[0]}"):
        parser.feed(text)
        parser.close()
    return "".join(parser.parts)


def _pdf(data: bytes) -> str:
    try:
        import pypdf
    except ImportError as error:
        raise HilbertflowError("PDF needs pypdf", remedy="pip install pypdf") from error
    import logging

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it tells of every blemish that it mends
    with _reading("trailer"):
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("it is encrypted", "trailer")
    texts: list[str] = []
    with _reading(lambda: f"page {len(texts) + 1}"):
        for page in reader.pages:
            texts.append(page.extract_text())
    return "\n\n".join(texts)


def _docx(data: bytes) -> str:
    try:
        import docx
    except ImportError as error:
        raise HilbertflowError("Word documents need python-docx", remedy="pip install python-docx") from error
    with _reading(lambda: _damaged_member(data)):
        document = docx.Document(io.BytesIO(data))
        cells = (cell.text for table in document.tables for row in table.rows for cell in row.cells)
        return "\n\n".join([*(paragraph.text for paragraph in document.paragraphs), *cells])


def _damaged_member(data: bytes) -> str:
    """The first member of a zip that cannot be unpacked, or is no XML from a byte on; the text's if all are sound."""
    name, parser = DIRECTORY, expat.ParserCreate()
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        for info in archive.infolist():
            name, parser = info.filename[:80].strip() or "nameless member", expat.ParserCreate()
            with archive.open(info) as file:
                while piece := file.read(_PIECE):
                    if name.endswith((".xml", ".rels")):
                        parser.Parse(piece, False)
    except expat.ExpatError:
        return f"{name}, byte {parser.ErrorByteIndex}"
    except Exception:  # it was raised before: the question is by which member
        return name
    return "word/document.xml"


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    ".txt": _plain, ".md": _plain, ".html": _html, ".htm": _html, ".pdf": _pdf, ".docx": _docx,
}  # fmt: skip


def document_text(name: str, data: bytes) -> str:
    """Text of a document, paragraphs parted by blank lines.

    Parameters
    ----------
    name: its name; the ending (a key of `EXTRACTORS`, in any case) says what it is.
    data: its bytes.

    Raises `Unreadable` with reason and place; `HilbertflowError` when the package that reads the format is missing.
    """
    extract = next((extract for suffix, extract in EXTRACTORS.items() if name.lower().endswith(suffix)), None)
    if extract is None:
        raise Unreadable("its format is not known", "its name")
    text = extract(data)
    paragraphs = (" ".join(paragraph.split()) for paragraph in _BLANK.split(text.replace("\0", "")))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    text = text.encode("utf-8", "replace").decode()
    if not text:
        raise Unreadable("it holds no text", f"bytes 0 to {len(data)}")
    return text


def chunks(text: str, words: int, overlap: int) -> list[str]:
    """Cut a text into pieces of at most ``words`` words, at paragraphs, else at sentences, else between words.

    Each piece but the first begins with the last ``overlap`` words of the one before, so that no sentence is lost
    between two.
    """
    if not 0 <= overlap < words:
        raise HilbertflowError(f"overlap {overlap} is not below {words} words", where="source")
    pieces: list[str] = []
    held: list[str] = []
    fresh = 0
    for part in _parts(text, words - overlap):
        count = len(part.split())
        if fresh and len(held) + count > words:
            pieces.append(" ".join(held))
            held, fresh = held[len(held) - overlap :] if overlap else [], 0
        held += part.split()
        fresh += count
    if fresh:
        pieces.append(" ".join(held))
    return pieces


def _parts(text: str, words: int) -> Iterator[str]:
    """Paragraphs; of longer ones sentences; of longer ones runs of words."""
    for paragraph in text.split("\n\n"):
        if len(paragraph.split()) <= words:
            yield paragraph
            continue
        for sentence in _SENTENCE.split(paragraph):
            split = sentence.split()
            for start in range(0, len(split), words):
                yield " ".join(split[start : start + words])
