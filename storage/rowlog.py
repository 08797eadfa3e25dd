"""Rows of a collection that change: an archive that never does, and a log of batches beside it.

`RowLog` writes batches and follows those of others; `View` is the collection at one version: which rows of the archive
still stand, and the rows that came after. A view never changes, so that a search over it is consistent.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.batch_log import Base, BatchLog, Receipt
from storage.batches import Batch, checked, checked_key, unit_length
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.id_index import NO_ROW, IdIndex
from storage.manifest import NAME as MANIFEST

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
GENERATIONS = "generations"


@dataclass(frozen=True)
class View:
    """A collection at one version.

    Rows 0 … base.count - 1 are those of the archive; row base.count + s is slot s of the log, a row that some batch put
    in; a slot keeps its number for as long as the archive is the same.

    Parameters
    ----------
    base: the archive.
    version: 0 as archived; one more with each batch.
    head: hash that stands for the whole history up to here.
    gone: rows of the archive that were replaced or deleted, ascending int64.
    live: slots that stand, ascending int64.
    vectors: (slots, dim) float32. ids: large_string (slots,).
    tables: metadata of the slots, a table a batch.
    """

    base: CollectionArchive
    version: int
    head: str
    gone: I64
    live: I64
    vectors: F32
    ids: pa.ChunkedArray
    tables: tuple[pa.Table, ...]

    @classmethod
    def of(cls, base: CollectionArchive, covers: int = 0, head: str = "") -> View:
        """An archive as it is, without any batch."""
        none = np.empty(0, np.int64)
        ids = pa.chunked_array([], pa.large_string())
        return cls(base, covers, head, none, none, np.empty((0, base.dim), np.float32), ids, ())

    @property
    def count(self) -> int:
        """Rows that stand."""
        return self.base.count - len(self.gone) + len(self.live)

    @property
    def changed(self) -> bool:
        """Whether anything differs from the archive."""
        return bool(len(self.gone) or len(self.live))

    @cached_property
    def metadata(self) -> pa.Table:
        """``id`` and metadata columns of the slots."""
        schema = self.base.table(0, 0).schema
        columns: dict[str, Any] = {}
        for field in schema:
            if field.name == "id":
                columns["id"] = self.ids.cast(field.type) if self.ids.nbytes < 1 << 31 else self.ids
            else:
                chunks = [chunk for table in self.tables for chunk in table.column(field.name).chunks]
                columns[field.name] = pa.chunked_array(chunks, field.type)
        return pa.table(columns)

    def take(self, rows: I64) -> F32:
        """Vectors of rows of either kind, in this order: (n, dim) float32. Raises for rows that are not there."""
        rows = self._checked(rows)
        late = rows >= self.base.count
        out = np.empty((len(rows), self.base.dim), np.float32)
        out[late] = self.vectors[rows[late] - self.base.count]
        if not late.all():
            out[~late] = self.base.take(rows[~late])
        return out

    def table(self, rows: I64) -> pa.Table:
        """Ids and metadata of rows of either kind, in this order. Raises for rows that are not there."""
        rows = self._checked(rows)
        late = rows >= self.base.count
        if not late.any():
            return self.base.metadata(rows)
        order = np.argsort(late, kind="stable")
        parts = [self.base.metadata(rows[~late]), self.metadata.take(pa.array(rows[late] - self.base.count))]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts, promote_options="permissive").take(pa.array(back))

    def _checked(self, rows: npt.ArrayLike) -> I64:
        numbers, count = np.asarray(rows), self.base.count + len(self.vectors)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            what = f"rows have shape {numbers.shape} and type {numbers.dtype}"
            raise HilbertflowError(what, where=self.base.url, remedy="give whole numbers in one dimension")
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            bad = next(n for n in numbers.tolist() if not 0 <= n < count)
            raise HilbertflowError(f"there is no row {bad}", where=self.base.url, remedy=f"there are {count}, from 0")
        return numbers.astype(np.int64)


class RowLog:
    """The changing rows of one collection. Safe to share between threads; other processes have their own.

    Parameters
    ----------
    collection: its archive, of any generation.
    until: go no further than this version.
    """

    def __init__(self, collection: CollectionArchive, until: int | None = None) -> None:
        self._log = BatchLog(home_of(collection))
        self._until, self._lock = until, threading.RLock()
        self._view: View
        self._begin(collection, Base() if collection.url == self._log.home.url else None)
        self._started = False

    @property
    def home(self) -> Location:
        """ROOT/collections/NAME, wherever the archive of the hour lies."""
        return self._log.home

    @property
    def view(self) -> View:
        """The collection as last seen; the first time, as it is now."""
        with self._lock:
            if not self._started:
                self.refresh()
            return self._view

    @property
    def version(self) -> int:
        """Version of `view`."""
        return self.view.version

    def refresh(self) -> bool:
        """Look for batches and compactions of any writer; True when there are some. Reads new batches only."""
        with self._lock:
            for _ in range(5):
                try:
                    return self._follow()
                except MissingFileError as error:  # a compaction took old batches away between listing and reading
                    last = error
            raise last

    def upsert(self, ids: Any, vectors: Any, metadata: Any = None, key: str | None = None) -> Receipt:
        """Put rows in; a row whose id exists is replaced whole. One atomic batch, on storage when this returns.

        ids: texts, each once, at most 10,000 characters. vectors: (n, dim) finite numbers. metadata: a table or columns
        by name, of the collection's columns; those left out are null. key: sent again with the same content it changes
        nothing. Raises `HilbertflowError` for what cannot be kept, and then nothing is.
        """
        return self._write(self._checked("upsert", ids, vectors, metadata), key)

    def append(self, ids: Any, vectors: Any, metadata: Any = None, key: str | None = None) -> Receipt:
        """The same for rows that are new: an id that exists is refused, and then the whole batch."""
        return self._write(self._checked("append", ids, vectors, metadata), key)

    def delete(self, ids: Any, key: str | None = None) -> Receipt:
        """Delete rows by id; an id that does not exist is no error."""
        return self._write(self._checked("delete", ids, None, None), key)

    def rows(self, ids: Sequence[str] | pa.Array) -> I64:
        """Row of every id in `view`, -1 where there is none: (n,) int64."""
        with self._lock:
            view = self.view
            names = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
            slots = [self._slot.get(name) for name in names.to_pylist()]
            if all(slot is not None for slot in slots):
                found = np.zeros(len(slots), np.int64)
            else:
                found = self._index.rows(names)
            for at, slot in enumerate(slots):
                if slot is not None:
                    found[at] = NO_ROW if slot == NO_ROW else view.base.count + slot
            return found

    def _checked(self, op: Any, ids: Any, vectors: Any, metadata: Any) -> Batch:
        base = self._view.base
        batch = checked(op, ids, vectors, metadata, base.dim, base.table(0, 0).schema, "rows")
        return batch if base.metric != "cosine" else dataclasses.replace(batch, vectors=unit_length(batch))

    def _write(self, batch: Batch, key: str | None) -> Receipt:
        if not self._stands():
            self.refresh()  # a compaction may have put another archive in its place
            if not self._stands():
                raise HilbertflowError("the collection was removed", where=self.home.url, remedy="archive it again")
        receipt = self._log.write(batch, checked_key(key), lambda last: self._allow(batch, last))
        self.refresh()
        return receipt

    def _stands(self) -> bool:
        """Whether the archive is still there: otherwise a batch would lie beside nothing."""
        return self._view.base.place.exists(MANIFEST)

    def _allow(self, batch: Batch, last: int) -> None:
        """Refuse to append what exists in version ``last``."""
        if batch.op != "append":
            return
        with self._lock:
            self.refresh()
            if self._view.version < last:
                raise MissingFileError("has not come yet", where=f"version {last}")
            found = self.rows(batch.ids)
        if (found != NO_ROW).any():
            name = batch.ids[int(np.argmax(found != NO_ROW))].as_py()
            raise HilbertflowError(f"id {name[:80]!r} exists", where="rows", remedy="upsert replaces rows")

    def _follow(self) -> bool:
        base, sizes = self._log.look()
        before = (self._view.base.url, self._view.version) if self._started else None
        if self._base is None or base.number != self._base.number:
            if self._until is not None and base.covers > self._until:
                raise HilbertflowError(
                    f"version {self._until} is gone: a compaction took its place", where=self.home.url,
                    remedy="begin again",
                )  # fmt: skip
            same = self._view.base.url == self.home.join(base.place).url
            self._begin(self._view.base if same else base_archive(self.home, base), base)
        for version in sizes:
            if version > self._view.version and (self._until is None or version <= self._until):
                dim, schema = self._view.base.dim, self._view.base.table(0, 0).schema
                self._apply(self._log.read(version, dim, schema), version)
        if self._view.version in sizes:
            head = self._log.heads({self._view.version: sizes[self._view.version]})[self._view.version].sha256
            self._view = dataclasses.replace(self._view, head=head)
        self._started = True
        return before != (self._view.base.url, self._view.version)

    def _begin(self, collection: CollectionArchive, base: Base | None) -> None:
        """From an archive as it is, without any batch."""
        self._base = base
        self._slot: dict[str, int] = {}  # id to its slot, NO_ROW where deleted; ids that no batch names are absent
        self._room = np.empty((0, collection.dim), np.float32)
        self.__dict__.pop("_index", None)
        self._view = View.of(collection, *((base.covers, base.head) if base else ()))

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex.of(self._view.base, self._log.place)

    def _apply(self, batch: Batch, version: int) -> None:
        view, names = self._view, batch.ids.to_pylist()
        dead = [slot for slot in map(self._slot.get, names) if slot is not None and slot != NO_ROW]
        unseen = [at for at, name in enumerate(names) if name not in self._slot] if batch.op != "append" else []
        gone = view.gone
        if unseen:  # ids seen before have had their row of the archive taken away then
            rows = self._index.rows(batch.ids.take(pa.array(unseen)))
            gone = np.union1d(gone, rows[rows != NO_ROW])
        live = np.setdiff1d(view.live, np.array(dead, np.int64), assume_unique=True)
        slots = len(view.vectors)
        if batch.op == "delete":
            self._slot.update(dict.fromkeys(names, NO_ROW))
            self._view = dataclasses.replace(view, version=version, gone=gone, live=live)
            return
        stop = slots + len(names)
        if stop > len(self._room):  # older views keep the array they have
            grown = np.empty((max(stop, 2 * len(self._room)), view.base.dim), np.float32)
            grown[:slots] = view.vectors
            self._room = grown
        self._room[slots:stop] = batch.vectors
        self._slot.update(zip(names, range(slots, stop), strict=True))
        self._view = View(
            view.base, version, view.head, gone, np.concatenate([live, np.arange(slots, stop)]), self._room[:stop],
            pa.chunked_array([*view.ids.chunks, batch.ids]), (*view.tables, batch.metadata),
        )  # fmt: skip


def home_of(collection: CollectionArchive) -> Location:
    """ROOT/collections/NAME of an archive of any generation."""
    folder, _, name = collection.url.rpartition("/")
    if folder.endswith("/" + GENERATIONS) and name:
        return Location(folder.removesuffix("/" + GENERATIONS), collection.place.traffic)
    return collection.place


def current(collection: CollectionArchive) -> CollectionArchive:
    """The archive of the newest generation of a collection: itself where no compaction took place.

    A generation that is named itself is what was asked for.
    """
    home = home_of(collection)
    if home.url != collection.url:
        return collection
    base, _ = BatchLog(home).look()
    return base_archive(home, base) if base.place else collection


def base_archive(home: Location, base: Base) -> CollectionArchive:
    """The archive that a base names."""
    return CollectionArchive.at(home.join(base.place).url)
