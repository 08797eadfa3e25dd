"""Which row has an id, without a look at the rows: hashes of all ids of an archive, sorted, in one file made once.

24 bytes a row: BLAKE2b of 16 bytes as two words, and the row. Two ids of one hash would need 2^64 tries to find, so a
hash stands for its id.
"""

from __future__ import annotations

import contextlib
import hashlib
import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from storage.fs import Location

NO_ROW = -1
_STEP = 65_536
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])

Hashes = npt.NDArray[np.uint64]


class IdIndex:
    """Sorted hashes of an archive's ids; `of` builds it on first need and keeps it beside the log of changes."""

    def __init__(self, entries: npt.NDArray[np.void]) -> None:
        self._high, self._low, self._row = (np.ascontiguousarray(entries[name]) for name in ("high", "low", "row"))

    @classmethod
    def of(cls, collection: CollectionArchive, folder: Location) -> IdIndex:
        """The index of an archive, from ``folder`` or made and left there where that may be written."""
        name = f"ids-{collection.fingerprint[:16]}.npy"
        found = _read(folder, name, collection.count)
        if found is None:
            found = _built(collection)
            with contextlib.suppress(HilbertflowError):  # a place that may only be read: made again next time
                folder.write_atomic(name, _sealed(found))
        return cls(found)

    def rows(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Row of every id, -1 where there is none: (n,) int64."""
        hashes = hashed(ids)
        left = np.searchsorted(self._high, hashes[:, 0], "left")
        found = np.full(len(hashes), NO_ROW, np.int64)
        for step in range(len(self._row)):  # equal first words are all but impossible: one or two turns
            at = left + step
            here = at < len(self._row)
            here[here] = self._high[at[here]] == hashes[here, 0]
            if not here.any():
                break
            hit = here.copy()
            hit[here] = self._low[at[here]] == hashes[here, 1]
            found[hit] = self._row[at[hit]]
        return found


def hashed(ids: pa.Array) -> Hashes:
    """Hashes of ids, (n, 2) uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in ids.to_pylist())
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def _built(collection: CollectionArchive) -> npt.NDArray[np.void]:
    entries = np.empty(collection.count, _ENTRY)
    for start in range(0, collection.count, _STEP):
        stop = min(collection.count, start + _STEP)
        hashes = hashed(collection.ids(start, stop))
        entries["high"][start:stop], entries["low"][start:stop] = hashes[:, 0], hashes[:, 1]
    entries["row"] = np.arange(collection.count)
    return entries[np.lexsort((entries["low"], entries["high"]))]


def _sealed(entries: npt.NDArray[np.void]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, entries, allow_pickle=False)
    data = sink.getvalue()
    return data + hashlib.sha256(data).digest()


def _read(folder: Location, name: str, count: int) -> npt.NDArray[np.void] | None:
    """The kept entries; None when there are none or they are damaged, so that they are made again."""
    if not folder.exists(name):
        return None
    data = folder.read(name)
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    entries: npt.NDArray[np.void] = np.load(io.BytesIO(data[:-32]), allow_pickle=False)
    if entries.dtype != _ENTRY or entries.shape != (count,):
        return None
    return entries
