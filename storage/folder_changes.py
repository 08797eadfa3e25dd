"""What a folder has that its collection has not: files that are new or have changed, and rows whose file is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from storage import archive
from storage.documents import Document, FolderRows
from storage.rowlog import RowLog, View
from storage.rows import RESERVED
from storage.writer import Receipt

_ROWS = 65_536


@dataclass(frozen=True)
class FolderChanges:
    """The way from a collection to its folder as it is now.

    Parameters
    ----------
    source: the files whose rows have to be embedded.
    gone: ids of rows that no file gives any more.
    kept: rows that stay as they are.
    """

    source: FolderRows
    gone: tuple[str, ...]
    kept: int

    def __bool__(self) -> bool:
        return bool(self.source.count or self.gone)


def folder_changes(folder: FolderRows, view: View) -> FolderChanges:
    """Compare a folder with its collection, file by file, by the hash of the content.

    A row that did not come from a file (without ``path`` and ``sha256``) is left alone.
    """
    known: dict[str, str] = {}
    for table in _metadata(view):
        ids, hashes = table.column("id").to_pylist(), table.column("sha256").to_pylist()
        paths = table.column("path").to_pylist()
        known.update(
            (name, sha256) for name, sha256, path in zip(ids, hashes, paths, strict=True) if sha256 and path is not None
        )

    def unlike(file: Document) -> bool:
        return any(known.get(name) != file.sha256 for name in _names(file))

    source = folder.only(unlike)
    expected = {name for file in folder.files for name in _names(file)}
    gone = tuple(name for name in known if name not in expected)
    return FolderChanges(source, gone, folder.count - source.count)


@dataclass(frozen=True)
class LogWriter:
    """Puts the embedded rows of a pass into the log of a collection, a batch a unit.

    A unit that is put in twice, by a task that was run again, leaves the same rows.
    """

    url: str

    @property
    def folder(self) -> str:
        """Nowhere: rows of the log are no units."""
        return ""

    def write(self, table: pa.Table) -> Receipt:
        """One unit."""
        unit = int(table.column("unit")[0].as_py())
        vectors = table.column("vector").combine_chunks()
        dim = vectors.type.list_size
        values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        left = [name for name in table.column_names if name not in RESERVED]
        RowLog(archive.open_exactly(self.url)).upsert(table.column("id").to_pylist(), values, table.select(left))
        return Receipt(unit, [], {}, values.nbytes)

    def written(self) -> set[int]:
        """None: what an earlier run put in is not among the changes any more."""
        return set()


def delete_rows(url: str, ids: tuple[str, ...]) -> None:
    """Delete rows, some tens of thousands a batch."""
    log = RowLog(archive.open_exactly(url))
    for start in range(0, len(ids), _ROWS):
        log.delete(list(ids[start : start + _ROWS]))


def _names(file: Document) -> Iterator[str]:
    return (f"{file.path}#{chunk}" for chunk in range(file.rows))


def _metadata(view: View) -> Iterator[pa.Table]:
    stand = np.ones(view.base.count, np.bool_)
    stand[view.gone] = False
    for start in range(0, view.base.count, _ROWS):
        stop = min(view.base.count, start + _ROWS)
        yield view.base.table(start, stop, ("id", "path", "sha256")).filter(pa.array(stand[start:stop]))
    if len(view.live):
        yield view.table(view.base.count + view.live).select(["id", "path", "sha256"])
