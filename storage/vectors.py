"""Vectors in files of one's own as a source of rows: one reader a format, one set of checks for all."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage.batches import MAX_ID
from storage.fs import Location
from storage.rows import RESERVED, check_finite, check_range, check_unique, content_digest
from storage.vectors_arrow import open_arrow, open_parquet
from storage.vectors_binary import open_tensor, open_vecs
from storage.vectors_hdf5 import open_hdf5
from storage.vectors_jsonl import open_jsonl
from storage.vectors_npy import open_npy, open_npz
from storage.vectors_zarr import open_zarr

_CHECK_ROWS = 65_536


class VectorFile(Protocol):
    """The vectors of one file.

    A frozen dataclass that pickles as its address and what its header says. ``read`` gives ``vector``
    (FixedSizeList<float32>[dim]), ``id`` (string) when ``has_ids``, and the metadata columns ``columns``; ``read_ids``
    gives the ids alone. ``place`` names the file and, as near as the format tells, where a value of a row lies; every
    error names a place in this form (`operators.errors.at`).
    """

    @property
    def location(self) -> Location: ...  # noqa: D102 - these say what they are
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def has_ids(self) -> bool: ...  # noqa: D102
    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102
    def read(self, start: int, stop: int) -> pa.Table: ...  # noqa: D102
    def read_ids(self, start: int, stop: int) -> pa.Array: ...  # noqa: D102
    def place(self, row: int, value: int = 0) -> str: ...  # noqa: D102


Opener = Callable[[Location, str, str | None], VectorFile]
FORMATS: dict[str, Opener] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
    ".feather": open_arrow,
    ".fvecs": open_vecs,
    ".bvecs": open_vecs,
    ".ivecs": open_vecs,
    ".safetensors": open_tensor,
    ".jsonl": open_jsonl,
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".zarr": open_zarr,
}


@dataclass(frozen=True)
class VectorRows:
    """Vectors of one file, or of all files of one format in a directory, in the order of their names. A `RowSource`.

    Parameters
    ----------
    url: as the user gave it.
    files: at least one, all of one dimension and with the same columns.
    directed: whether a vector of zeros is refused, as one that is to be scaled to unit length must be.
    """

    url: str
    files: tuple[VectorFile, ...]
    directed: bool = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the headers say and of the content (of a sample of it, past 64 MiB a file)."""
        about = [(file.count, file.dim, file.has_ids, file.columns) for file in self.files]
        return content_digest(f"vectors {about}", [file.location for file in self.files])

    @property
    def count(self) -> int:
        """Number of rows in all files."""
        return sum(file.count for file in self.files)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.files[0].dim

    @property
    def columns(self) -> tuple[str, ...]:
        """Metadata columns; one named like a column of the stream has an underscore behind its name."""
        return tuple(f"{name}_" if name in RESERVED else name for name in self.files[0].columns)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``; ids are row numbers where the files have none."""
        check_range(start, stop, self.count, self.url)
        tables = []
        for file, first, low, high in self._parts(start, stop):
            table = file.read(low, high)
            if not file.has_ids:
                table = table.add_column(0, "id", _numbers(first + low, first + high))
            vectors = table.column("vector").combine_chunks()
            values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
            ids = table.column("id").to_pylist() if file.has_ids else None
            check_finite(values, ids, functools.partial(_shifted, file, low))
            if self.directed and not (some := values.any(axis=1)).all():
                row = int(np.argmin(some))
                raise HilbertflowError(
                    f"the vector of {f'id {ids[row][:80]!r}' if ids else 'this row'} is zero and has no direction",
                    where=file.place(low + row), remedy="drop the row, or archive with metric l2 or ip",
                )  # fmt: skip
            tables.append(table.select(["id", "vector", *file.columns]).rename_columns(["id", "vector", *self.columns]))
        if not tables:
            return self.read(0, 1).slice(0, 0)
        return pa.concat_tables(tables).combine_chunks()

    def check(self) -> None:
        """Raise when an id is null, empty, too long or occurs twice, when two columns would have one name, or when the
        first rows are not finite.
        """
        for name in self.files[0].columns:
            if name in RESERVED and f"{name}_" in self.files[0].columns:
                raise HilbertflowError(
                    f"column {name!r} would be called {name}_, and there is one of that name", where=self.url,
                    remedy="rename one of them",
                )  # fmt: skip
        self.read(0, min(self.count, 64))
        if self.files[0].has_ids:
            check_unique(self._all_ids(), self._all_ids(), self.place)

    def place(self, row: int) -> str:
        """The file and the place in it at which a row of all files lies."""
        file, _, low, _ = next(self._parts(row, row + 1))
        return file.place(low)

    def _all_ids(self) -> Iterator[Sequence[str]]:
        for file in self.files:
            for low in range(0, file.count, _CHECK_ROWS):
                ids = file.read_ids(low, min(file.count, low + _CHECK_ROWS)).to_pylist()
                for row, name in enumerate(ids):
                    if name is not None and not 0 < len(name) <= MAX_ID:
                        raise HilbertflowError(
                            f"an id has {len(name):,} characters", where=file.place(low + row),
                            remedy=f"give every row one of 1 to {MAX_ID:,}",
                        )  # fmt: skip
                yield ids

    def _parts(self, start: int, stop: int) -> Iterator[tuple[VectorFile, int, int, int]]:
        """Files that hold rows ``start`` to ``stop``: the file, its first row in all, and the rows wanted inside it."""
        ends = np.cumsum([file.count for file in self.files]).tolist()
        at = bisect.bisect_right(ends, start)
        while start < stop:
            first = ends[at] - self.files[at].count
            high = min(stop, ends[at])
            if high > start:
                yield self.files[at], first, start - first, high - first
            start, at = high, at + 1

    def __reduce__(self) -> tuple[object, ...]:
        return VectorRows, (self.url, self.files)


def open_vectors(url: str, column: str = "vector", id_column: str | None = None) -> VectorRows:
    """Open a file of vectors, or a directory of such files, by reading its header.

    Parameters
    ----------
    url: a file whose name ends in a key of `FORMATS`, or a directory of files of one format.
    column: the column, array, dataset or tensor of vectors; where there is none of this name, the only one that could
        be meant.
    id_column: the column of ids; None takes ``id`` if there is one, else rows are numbered from 0 in all files.

    Raises `HilbertflowError` for files that hold no vectors, no rows, rows of unequal length, or do not go together.
    """
    place = Location(url)
    suffix = _suffix(place)
    if suffix == ".zarr" or (suffix is not None and not place.is_dir()):
        names = [""]
    elif place.is_dir():
        names, suffix = _directory(place)
    elif not place.exists():
        place.size()  # says that it is missing
        names = []
    if suffix is None:
        raise HilbertflowError("is not a file of vectors", where=url, remedy=f"expected {', '.join(FORMATS)}")
    files = tuple(FORMATS[suffix](place.join(name) if name else place, column, id_column) for name in names)
    first = files[0]
    for file in files:
        if not file.count or not file.dim:
            what = "has no rows" if not file.count else "has vectors of length 0"
            raise HilbertflowError(what, where=file.place(0), remedy="name a file with at least one vector")
        if file.dim != first.dim:
            what = f"has vectors of length {file.dim}, {first.location.name} of {first.dim}"
            raise HilbertflowError(what, where=file.place(0), remedy="put vectors of one length in a directory")
        if (file.columns, file.has_ids) != (first.columns, first.has_ids):
            raise HilbertflowError(f"has other columns than {first.location.name}", where=file.place(0))
    return VectorRows(url, files)


def _shifted(file: VectorFile, start: int, row: int, value: int) -> str:
    return file.place(start + row, value)


def _directory(place: Location) -> tuple[list[str], str | None]:
    names = [name for name in place.list() if not name.rpartition("/")[2].startswith((".", "_"))]
    kinds = {suffix: [name for name in names if name.lower().endswith(suffix)] for suffix in FORMATS}
    found = {suffix: some for suffix, some in kinds.items() if some}
    if len(found) > 1:
        what = f"holds files of several formats: {', '.join(sorted(found))}"
        raise HilbertflowError(what, where=place.url, remedy=f"name one, as {place.url}/{min(found.values())[0]}")
    for suffix, some in found.items():
        return some, suffix
    return [], None


def _suffix(place: Location) -> str | None:
    return next((suffix for suffix in FORMATS if place.name.lower().endswith(suffix)), None)


def _numbers(start: int, stop: int) -> pa.Array:
    return pa.array(range(start, stop), pa.int64()).cast(pa.string())
