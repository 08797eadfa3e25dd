"""Folders of documents and images: their text, their chunks, and what is broken left out and named."""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import HilbertflowError
from storage.document_text import Unreadable, chunks, document_text
from storage.documents import open_folder
from storage.rows import RowSource

HTML = """<!doctype html><html><head><title>no</title><style>no</style></head><body><h1>Curves</h1>
<script>no()</script><p>A &lt;Hilbert&gt; curve <b>fills</b> the plane.</p><div>Second.<br>Third.</div>"""


def pdf(text: str) -> bytes:
    """A one-page PDF, written by hand."""
    stream = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(out)
    out += b"xref\n0 6\n0000000000 65535 f \n" + table
    return out + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % start


def picture(kind: str) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="writes an image with Pillow")
    buffer = io.BytesIO()
    image.linear_gradient("L").convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def test_text_of_each_format() -> None:
    assert document_text("a.TXT", "\ufeffÜber\r\n\r\nalles".encode()) == "Über\n\nalles"
    assert document_text("a.txt", "sechzehn".encode("utf-16")) == "sechzehn"
    assert document_text("a.md", b"# Title\n\nText  of\none paragraph") == "# Title\n\nText of one paragraph"
    assert document_text("a.html", HTML.encode()) == "Curves\n\nA <Hilbert> curve fills the plane.\n\nSecond.\n\nThird."
    assert document_text("latin.txt", b"caf\xe9") == "caf\ufffd"


def test_text_of_a_pdf() -> None:
    pytest.importorskip("pypdf", reason="reads PDF")
    assert document_text("a.pdf", pdf("Space filling curves")) == "Space filling curves"


def test_text_of_a_word_document() -> None:
    docx = pytest.importorskip("docx", reason="reads Word documents")
    document = docx.Document()
    document.add_paragraph("First.")
    document.add_table(1, 2).cell(0, 1).text = "In a cell."
    buffer = io.BytesIO()
    document.save(buffer)
    assert document_text("a.docx", buffer.getvalue()) == "First.\n\nIn a cell."


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"", "no text"), ("a.txt", b" \n\n ", "no text"), ("a.txt", b"a\0b", "byte 1: it is binary"),
        ("a.pdf", b"%PDF-1.4 broken", "trailer: it is damaged"), ("a.pdf", b"", "damaged"),
        ("a.docx", b"PK\x03\x04", "directory of the zip: it is damaged"),
        ("a.html", b"<script>only()</script>", "no text"), ("a.exe", b"x", "not known"),
    ],
)  # fmt: skip
def test_broken_documents_say_why(name: str, data: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        document_text(name, data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(2, 60), st.integers(0, 30), st.integers(0, 9))
def test_chunks_lose_no_word_and_keep_to_their_size(lengths: list[int], words: int, overlap: int, stop: int) -> None:
    overlap = min(overlap, words - 1)
    number = iter(range(10_000))
    paragraphs = [[f"w{next(number)}{'.' if i % 10 == stop else ''}" for i in range(n)] for n in lengths]
    text = "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)
    pieces = [piece.split() for piece in chunks(text, words, overlap)]
    assert all(0 < len(piece) <= words for piece in pieces)
    told = pieces[0] + [word for piece in pieces[1:] for word in piece[min(overlap, len(piece)) :]]
    assert dict.fromkeys(word for piece in pieces for word in piece) == dict.fromkeys(text.split())
    if all(len(piece) >= overlap for piece in pieces):
        assert told == text.split()
    for before, after in itertools.pairwise(pieces):
        assert overlap == 0 or before[-overlap:] == after[: len(before[-overlap:])]


def test_chunks_refuse_an_overlap_that_never_ends() -> None:
    with pytest.raises(HilbertflowError, match="overlap 5 is not below 5"):
        chunks("a b", 5, 5)


def folder(root: Path) -> Path:
    for name, data in {
        "a.txt": b"One. " * 500, "deep/er/b.md": b"# Two", "deep/c.html": HTML.encode(), "broken.pdf": b"%PDF nothing",
        "empty.txt": b"", ".hidden.txt": b"no", ".git/x.txt": b"no", "data.csv": b"no", "no\udce9.txt": b"bad name",
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_a_folder_of_texts(tmp_path: Path) -> None:
    source = open_folder(str(folder(tmp_path)), words=100, overlap=10)
    assert isinstance(source, RowSource)
    source.check()
    rows = source.read(0, source.count)
    ids = rows["id"].to_pylist()
    assert ids == [*(f"a.txt#{i}" for i in range(6)), "deep/c.html#0", "deep/er/b.md#0"]
    assert rows["text"][7].as_py() == "# Two" and rows["first_line"][7].as_py() == "# Two"
    assert rows["chunk"].to_pylist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert [(path, where) for path, where, _ in source.skipped] == [
        ("broken.pdf", "trailer"), ("empty.txt", "bytes 0 to 0"), ("no?.txt", "its name"),
    ]  # fmt: skip
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(4, 8).equals(rows.slice(4, 4)) and copy.read(3, 3).num_rows == 0
    with pytest.raises(HilbertflowError, match="lie outside"):
        source.read(0, 9)


def test_only_what_changed(tmp_path: Path) -> None:
    first = open_folder(str(folder(tmp_path)), words=100, overlap=10)
    assert open_folder(str(tmp_path), words=100, overlap=10).fingerprint == first.fingerprint
    (tmp_path / "deep/er/b.md").write_text("# Another")
    (tmp_path / "new.txt").write_text("New.")
    second = open_folder(str(tmp_path), words=100, overlap=10)
    assert second.fingerprint != first.fingerprint
    known = {(file.path, file.sha256) for file in first.files}
    changed = second.only(lambda file: (file.path, file.sha256) not in known)
    assert changed.read(0, changed.count)["id"].to_pylist() == ["deep/er/b.md#0", "new.txt#0"]
    with pytest.raises(HilbertflowError, match=r"b\.md: bytes 0 to 9: has changed while it was read"):
        first.read(7, 8)


def test_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    (tmp_path / "b.JPG").write_bytes(picture("JPEG"))
    (tmp_path / "cut.jpg").write_bytes(picture("JPEG")[:400])
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "note.txt").write_text("not looked at")
    source = open_folder(str(tmp_path), "image")
    rows = source.read(0, source.count)
    assert rows["id"].to_pylist() == ["a.png#0", "b.JPG#0"]
    assert rows["image"][1].as_py() == picture("JPEG")
    assert [(path, where) for path, where, _ in source.skipped] == [("cut.jpg", "byte 400"), ("text.png", "byte 12")]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(HilbertflowError, match="is not a folder"):
        open_folder(str(tmp_path / "nope"))
    with pytest.raises(HilbertflowError, match=r"no text could be read; expected names that end in \.txt"):
        open_folder(str(tmp_path)).check()
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(HilbertflowError, match=r"a\.txt: bytes 0 to 0: no text could be read: it holds no text"):
        open_folder(str(tmp_path)).check()


def test_a_damaged_member_of_a_word_document_is_named() -> None:
    docx = pytest.importorskip("docx", reason="reads Word documents")
    buffer = io.BytesIO()
    docx.Document().save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    at = members["word/styles.xml"].index(b"<w:style ")
    members["word/styles.xml"] = members["word/styles.xml"][:at] + b"<&" + members["word/styles.xml"][at:]
    broken = io.BytesIO()
    with zipfile.ZipFile(broken, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(Unreadable) as caught:
        document_text("a.docx", broken.getvalue())
    assert caught.value.place == f"word/styles.xml, byte {at + 1}"


def test_a_damaged_page_of_a_pdf_is_named() -> None:
    pytest.importorskip("pypdf", reason="reads PDF")
    with pytest.raises(Unreadable, match=r"page 1: it is damaged: .*NopeDecode"):
        document_text("a.pdf", pdf("Space filling curves").replace(b"<< /Length", b"<< /Filter /NopeDecode /Length"))


def test_a_member_whose_name_is_lost_is_a_place_all_the_same() -> None:
    docx = pytest.importorskip("docx", reason="reads Word documents")
    buffer = io.BytesIO()
    docx.Document().save(buffer)
    data = buffer.getvalue()
    at = data.rindex(b"word/styles.xml")  # in the directory of the zip
    with pytest.raises(Unreadable, match="damaged") as caught:
        document_text("a.docx", data[:at] + bytes(4) + data[at + 4 :])
    assert caught.value.place == "nameless member"
