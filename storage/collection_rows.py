"""The rows of a collection as they stand at one version, as a source of rows: what a compaction reads."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.rowlog import I64, RowLog, View, home_of
from storage.rows import check_range, vector_array


@dataclass(frozen=True)
class CollectionRows:
    """Rows of the archive in its order, those left out that were replaced or deleted, then rows of the log in theirs.

    Parameters
    ----------
    base: URL of the archive, of the generation that stood then.
    version: of the collection.
    """

    base: str
    version: int

    @classmethod
    def of(cls, collection: CollectionArchive, version: int | None = None) -> CollectionRows:
        """At a version, or the newest; raises when a compaction took the version's place."""
        view = RowLog(collection, version).view
        if version is not None and view.version != version:
            raise HilbertflowError(
                f"there is no version {version}", where=collection.url, remedy=f"the newest is {view.version}"
            )
        return cls(view.base.url, view.version)

    @property
    def view(self) -> View:
        """The collection at this version."""
        return _view(self.base, self.version)

    @property
    def home(self) -> Location:
        """ROOT/collections/NAME."""
        return home_of(self.view.base)

    @property
    def metric(self) -> str:
        """The collection's."""
        return self.view.base.metric

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the archive's identity and of the history since."""
        view = self.view
        return hashlib.sha256(f"{view.base.fingerprint}:{view.version}:{view.head}".encode()).hexdigest()

    @property
    def count(self) -> int:
        """Rows that stand."""
        return self.view.count

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.view.base.dim

    @property
    def columns(self) -> tuple[str, ...]:
        """Metadata columns."""
        return tuple(name for name in self.view.base.table(0, 0).schema.names if name != "id")

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``, with exact vectors."""
        check_range(start, stop, self.count, self.base)
        view, rows = self.view, self._rows(start, stop)
        table = view.table(rows)
        vectors = vector_array(self._vectors(rows))
        return table.select(["id", *self.columns]).add_column(1, "vector", vectors)

    def check(self) -> None:
        """Raise when nothing stands."""
        if self.count == 0:
            raise HilbertflowError("every row of the collection is deleted", where=self.base, remedy="add rows first")

    def _rows(self, start: int, stop: int) -> I64:
        """Row numbers of places ``start`` to ``stop``."""
        view = self.view
        kept = view.base.count - len(view.gone)
        places = np.arange(start, min(stop, kept))
        # Before the i-th row that is gone stand gone[i] - i rows: a place moves on by the gone rows before it.
        base = places + np.searchsorted(view.gone - np.arange(len(view.gone)), places, "right")
        return np.concatenate([base, view.base.count + view.live[max(0, start - kept) : max(0, stop - kept)]])

    def _vectors(self, rows: I64) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        view = self.view
        own = rows[rows < view.base.count]
        if not len(own):
            return view.take(rows)
        low, high = int(own[0]), int(own[-1]) + 1
        if high - low > 2 * len(own):
            return view.take(rows)
        late = view.take(rows[len(own) :])
        return np.concatenate([view.base.read(low, high)[own - low], late])


@functools.lru_cache(maxsize=2)
def _view(base: str, version: int) -> View:
    view = RowLog(CollectionArchive.at(base), version).view
    if view.base.url != base or view.version != version:
        raise HilbertflowError(f"version {version} is gone: a compaction took its place", where=base,
                               remedy="begin again")  # fmt: skip
    return view
