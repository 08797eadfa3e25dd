"""What every source of rows is: texts to embed or vectors as they are, read by row number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.fs import Location

RESERVED = frozenset({"id", "text", "vector", "unit", "row"})
"""Column names that the stream itself uses; a metadata column of such a name gets an underscore behind it."""


@runtime_checkable
class RowSource(Protocol):
    """Rows that can be read in any order, in any process.

    Pickles as its address and options, opens what it needs where it is used, and gives the same rows every time.
    """

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content, the same wherever a copy lies."""

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None for texts, which have yet to be embedded."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metadata columns."""

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``.

        Columns ``id`` (string, unique), then ``text`` (string) or ``vector`` (FixedSizeList<float32>[dim], finite),
        then the metadata columns. Raises `HilbertflowError` naming the row at fault.
        """

    def check(self) -> None:
        """Find what can be found before a run starts, duplicate ids above all; raises `HilbertflowError`."""


def vector_array(values: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """``(n, d)`` float32 as an Arrow column, without a copy."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def check_range(start: int, stop: int, count: int, where: str) -> None:
    """Raise unless ``0 <= start <= stop <= count``."""
    if not 0 <= start <= stop <= count:
        raise HilbertflowError(f"rows {start} to {stop} lie outside its {count} rows", where=where)


def check_finite(values: npt.NDArray[np.float32], ids: Sequence[str] | None, place: Callable[[int, int], str]) -> None:
    """Raise when a value is NaN or infinite, naming the first such row.

    ``place`` says where a value lies, given its row among ``values`` and its number in the row.
    """
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = int(np.argmin(np.isfinite(values[row])))
        name = f"the vector of id {ids[row][:80]!r}" if ids is not None else "the vector"
        raise HilbertflowError(
            f"{name} holds {values[row, value]}", where=place(row, value),
            remedy="remove or repair that row: NaN and infinity have no neighbours",
        )  # fmt: skip


def check_unique(batches: Iterable[Sequence[str]], again: Iterable[Sequence[str]], place: Callable[[int], str]) -> None:
    """Raise when an id occurs twice, naming it and its rows.

    Exact, in 8 bytes of memory a row: equal hashes are suspects, and only suspects are compared as strings.

    Parameters
    ----------
    batches, again: the ids in order, twice; the second pass is taken only when there are suspects.
    place: says where a row lies.
    """
    parts = [np.fromiter(map(hash, batch), np.int64, len(batch)) for batch in batches]
    hashes = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, int] = {}
    row = 0
    for batch in again:
        for name in batch:
            if hash(name) in suspects and seen.setdefault(name, row) != row:
                what = f"id {name[:80]!r} is both row {seen[name]} and row {row}"
                raise HilbertflowError(what, where=place(row), remedy="make ids unique")
            row += 1


_WHOLE, _BLOCK, _BLOCKS = 64 << 20, 16 << 10, 1024


def encoder_digest(model: str) -> str:
    """SHA-256 (hex) of the files of an encoder's directory: the same wherever it lies."""
    return content_digest("encoder", [Location(model)])


def content_digest(about: str, files: Sequence[Location]) -> str:
    """SHA-256 (hex) of a description and the files' sizes and content.

    All of the content up to 64 MiB a file, beyond that 1,024 blocks of 16 KiB spread evenly, the first and the last
    among them.
    """
    digest = hashlib.sha256(f"hilbertflow rows 1\n{about}\n".encode())
    stores = [[file.join(name) for name in file.list()] if file.is_dir() else [file] for file in files]
    for file in [file for store in stores for file in store]:
        size = file.size()
        digest.update(f"{size}\n".encode())
        if size <= _WHOLE:
            digest.update(file.read())
            continue
        starts = [(size - _BLOCK) * step // (_BLOCKS - 1) for step in range(_BLOCKS)]
        for first in range(0, _BLOCKS, 64):
            for part in file.read_ranges([("", at, at + _BLOCK) for at in starts[first : first + 64]]):
                digest.update(part)
    return digest.hexdigest()
