"""Tags and notes of an archive: an object each beside it, so that two writers never overwrite one another.

    labels/tags/TAG                      exists or does not
    labels/notes/TIME-RANDOM.txt         a note, by when it was written (nanoseconds since 1970)

They are no part of the archive's own bytes, and go with it when it is copied.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from operators.errors import HilbertflowError
from storage.fs import Location

FOLDER = "labels/"
LONGEST_NOTE = 10_000
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Note:
    """Seconds since 1970, and what was written."""

    written: float
    text: str


@dataclass(frozen=True)
class Labels:
    """Tags, sorted; notes, oldest first."""

    tags: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


def read(place: Location) -> Labels:
    """Those of the archive at ``place``; two listings, and the notes if there are any."""
    kept = [name for name in place.children("labels/notes") if name.endswith(".txt")]
    texts = place.read_many([f"labels/notes/{name}" for name in kept])
    notes = [Note(int(name.partition("-")[0]) / 1e9, texts[f"labels/notes/{name}"].decode()) for name in kept]
    tags = [name for name in place.children("labels/tags") if _TAG.fullmatch(name)]
    return Labels(tuple(sorted(tags)), tuple(sorted(notes, key=lambda note: note.written)))


def tag(place: Location, name: str) -> None:
    """Add a tag; adding it twice changes nothing. Raises for what is no tag."""
    place.write_atomic(f"labels/tags/{_checked(name)}", b"\n")


def untag(place: Location, name: str) -> bool:
    """Take a tag away; False when it was not there."""
    key = f"labels/tags/{_checked(name)}"
    if not place.exists(key):
        return False
    place.delete(key)
    return True


def note(place: Location, text: str) -> None:
    """Add a note; raises for an empty one, and for one of more than 10,000 characters."""
    if not 0 < len(text.strip()) <= LONGEST_NOTE:
        raise HilbertflowError(f"a note has 1 to {LONGEST_NOTE:,} characters", where=place.url)
    place.write_atomic(f"labels/notes/{time.time_ns():020d}-{secrets.token_hex(4)}.txt", text.strip().encode())


def _checked(name: str) -> str:
    if not _TAG.fullmatch(name):
        raise HilbertflowError(f"{name[:80]!r} is no tag", remedy="use 1 to 64 letters, digits, '.', '_' or '-'")
    return name
