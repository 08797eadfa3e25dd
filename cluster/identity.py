"""Ids of rows by number, fast: the id column is kept in memory while it is small enough."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.results import NO_ROW
from cluster.vectors import I64
from storage.collection import CollectionArchive
from storage.rowlog import View

Known = Callable[[I64], list[str] | None]

FEW = 256  # ids that are sooner cut out of the column one by one than by a kernel of Arrow's
KEPT_ROWS = 20_000_000  # about a gigabyte of short ids; beyond it they are read by row


class Ids:
    """The id column of one collection."""

    def __init__(self, collection: CollectionArchive) -> None:
        self._collection, self._lock = collection, threading.Lock()
        self._column: pa.Array | None = None
        self._texts: _Texts | None = None

    def of(self, rows: I64, view: View | None = None, known: Known | None = None) -> npt.NDArray[np.object_]:
        """Ids in the shape of `rows`, which `view` may continue beyond the archive; None where there is no row.

        known: tells the ids of rows where they have been read already, and else None.
        """
        late = rows >= self._collection.count
        if self._column is None and known is not None:
            own = (rows != NO_ROW) & ~late
            names = known(rows[own])
            if names is not None:
                ids: npt.NDArray[np.object_] = np.full(rows.shape, None, object)
                ids[own] = names
                return self._with_late(ids, rows, late, view)
        flat = np.where((rows == NO_ROW) | late, 0, rows).reshape(-1)
        if self._collection.count <= KEPT_ROWS:
            column = self._kept()
            if flat.size <= FEW and self._texts is not None:
                few = np.empty(flat.size, object)
                few[:] = self._texts.at(flat)
                return self._shaped(few, rows, late, view)
            found = column.take(pa.array(flat))
        else:
            distinct, back = np.unique(flat, return_inverse=True)
            found = self._collection.metadata(distinct).column("id").take(pa.array(back)).combine_chunks()
        return self._shaped(found.to_numpy(zero_copy_only=False).astype(object, copy=False), rows, late, view)

    def _shaped(
        self, flat: npt.NDArray[np.object_], rows: I64, late: npt.NDArray[np.bool_], view: View | None
    ) -> npt.NDArray[np.object_]:
        ids, absent = flat.reshape(rows.shape), rows == NO_ROW
        if absent.any():
            ids[absent] = None
        return self._with_late(ids, rows, late, view)

    def _with_late(
        self, ids: npt.NDArray[np.object_], rows: I64, late: npt.NDArray[np.bool_], view: View | None
    ) -> npt.NDArray[np.object_]:
        if view is not None and late.any():
            ids[late] = view.ids.take(pa.array(rows[late] - self._collection.count)).to_pylist()
        return ids

    def _kept(self) -> pa.Array:
        with self._lock:
            if self._column is None:
                step = 65_536
                count = self._collection.count
                parts = [self._collection.ids(low, min(count, low + step)) for low in range(0, count, step)]
                flat = [chunk for part in parts for chunk in getattr(part, "chunks", [part])]
                column = pa.concat_arrays([_wide(chunk) for chunk in flat])
                if pa.types.is_large_string(column.type) and not column.null_count:
                    self._texts = _Texts.of(column)
                self._column = column
            return self._column


@dataclass(frozen=True)
class _Texts:
    """A column of texts as Arrow lays it out: where each begins and ends, and all of them one after another."""

    borders: npt.NDArray[np.int64]
    text: memoryview

    @classmethod
    def of(cls, column: pa.Array) -> _Texts:
        _, borders, text = column.buffers()
        held = memoryview(b"" if text is None else text)  # none where all texts are empty
        return cls(np.frombuffer(borders, np.int64, len(column) + 1, 8 * column.offset), held)

    def at(self, rows: I64) -> list[str]:
        begins, ends = self.borders[rows].tolist(), self.borders[rows + 1].tolist()
        return [str(self.text[begin:end], "utf-8") for begin, end in zip(begins, ends, strict=True)]


def _wide(ids: pa.Array) -> pa.Array:
    """Strings with 64-bit offsets: a column of long ids passes 2 GB."""
    return ids.cast(pa.large_string()) if pa.types.is_string(ids.type) else ids
