"""Which rows may be answered: those that a filter lets through and that no later batch replaced or deleted."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import pyarrow as pa

from cluster.filters import Filter, parse_filter
from cluster.vectors import I64
from storage.collection import CollectionArchive
from storage.rowlog import View

KEPT = 32
METADATA_ROWS = 65_536


class Matching:
    """Answers for one archive and every view over it; the last few are remembered, and columns once a filter names
    them.
    """

    def __init__(self, collection: CollectionArchive) -> None:
        self._collection, self._lock = collection, threading.RLock()
        self._filtered: OrderedDict[tuple[str, int, int], I64] = OrderedDict()
        self._standing: OrderedDict[tuple[str | None, int, int, int], I64] = OrderedDict()
        self._columns: dict[tuple[str, int, int], pa.ChunkedArray] = {}

    def rows(self, text: str | None, view: View, start: int, stop: int) -> I64 | None:
        """Rows of the archive in start … stop - 1 that may be answered, ascending; None when all may."""
        low, high = np.searchsorted(view.gone, [start, stop])
        gone = view.gone[low:high]
        if not len(gone):
            return None if text is None else self._through(text, start, stop)
        key = (text, start, stop, view.version)
        with self._lock:
            if key in self._standing:
                self._hit()
            else:
                every = np.arange(start, stop) if text is None else self._through(text, start, stop)
                self._standing[key] = np.setdiff1d(every, gone, assume_unique=True)
                if len(self._standing) > KEPT:
                    self._standing.popitem(last=False)
            return self._standing[key]

    def slots(self, text: str | None, view: View) -> I64:
        """Slots of the log that may be answered, ascending."""
        if text is None or not len(view.live):
            return view.live
        rule = self.rule(text)
        table = view.metadata.select(list(rule.columns)).take(pa.array(view.live))
        return view.live[rule.rows(table, len(view.live))]

    def rule(self, text: str) -> Filter:
        """The filter, parsed."""
        return parse_filter(text, self._collection.table(0, 0).schema)

    def _through(self, text: str, start: int, stop: int) -> I64:
        key = (text, start, stop)
        with self._lock:
            if key in self._filtered:
                self._hit()
                self._filtered.move_to_end(key)
                return self._filtered[key]
            rule = self.rule(text)
            table = pa.table({name: self._column(name, start, stop) for name in rule.columns})
            found = rule.rows(table, stop - start) + start
            self._filtered[key] = found
            if len(self._filtered) > KEPT:
                self._filtered.popitem(last=False)
            return found

    def _column(self, name: str, start: int, stop: int) -> pa.ChunkedArray:
        """A metadata column of a range of rows, kept once a filter has named it."""
        key = (name, start, stop)
        if key in self._columns:
            self._hit()
        else:
            parts = [
                self._collection.table(low, min(stop, low + METADATA_ROWS), (name,)).column(name)
                for low in range(start, stop, METADATA_ROWS)
            ]
            chunks = [chunk for part in parts for chunk in part.chunks]
            self._columns[key] = pa.chunked_array(chunks) if chunks else self._collection.table(0, 0).column(name)
        return self._columns[key]

    def _hit(self) -> None:
        self._collection.place.traffic.add(requests=0, hits=1)
