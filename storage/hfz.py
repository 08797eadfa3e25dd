"""One call for a matrix of vectors: an array to one self-contained file, and back.

data = compress(vectors, size=64)          # lossy, at most 64 bytes a vector
data = compress(vectors, recall=0.95)      # lossy, as small as recall@10 of the set among itself allows
data = compress(vectors)                   # exact
vectors = decompress(data)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import hfz, hfz_fit
from operators.errors import HilbertflowError, at, placed
from operators.hfz import LIMIT
from storage.fs import Location


@dataclass(frozen=True)
class Packed:
    """What a file came to; mean ``cosine`` and ``recall`` (at 10, among the set itself) of the vectors it holds."""

    rows: int
    dim: int
    dtype: str
    kind: str
    exact: bool
    bytes: int
    bytes_a_vector: float
    ratio: float
    cosine: float
    recall: float


def compress(
    vectors: npt.ArrayLike, *, size: float | None = None, recall: float | None = None, metric: str = "l2"
) -> bytes:
    """Pack vectors (n, d), n and d ≥ 1, of any float or integer dtype, finite.

    Parameters
    ----------
    size: bytes a vector at most, the whole file counted; the error is then as small as it can be.
    recall: share of each vector's 10 nearest others that an exhaustive scan of the decoded ones still finds; the file
        is then as small as it can be. Measured on up to 1,000 of the vectors, each as it was before, and itself left
        out: neither what it should find nor what it finds.
    metric: of ``recall``: l2, ip or cosine.

    With neither, the file is exact. Raises HilbertflowError for what is no such matrix or does not fit.
    """
    values = _checked(np.asarray(vectors))
    if size is not None and recall is not None:
        raise HilbertflowError("both bytes and recall are given", remedy="ask for one of them")
    if size is not None:
        if isinstance(size, str) or not 0 < size < float("inf"):
            raise HilbertflowError(f"{size} bytes a vector", remedy="a number above 0")
        return hfz_fit.within(values, size)
    return hfz_fit.lossless(values) if recall is None else hfz_fit.reaching(values, recall, metric)


def decompress(data: bytes | memoryview, limit: int = LIMIT) -> npt.NDArray[Any]:
    """The vectors (n, d) in the dtype that they had. ``limit``: bytes in memory at most."""
    return hfz.decode(data, limit)


def compress_file(
    source: str, target: str, *, size: float | None = None, recall: float | None = None, metric: str = "l2"
) -> Packed:
    """Pack a file of vectors: .npy as it is, other formats of :mod:`storage.vectors` as float32 without their ids."""
    values, place = _read(source)
    try:
        data = compress(values, size=size, recall=recall, metric=metric)
    except HilbertflowError as error:
        where = place(int(error.where[4:])) if error.where.startswith("row ") else source
        raise HilbertflowError(error.what, where=where, remedy=error.remedy) from error
    Location(target).write_atomic("", data)
    return describe(values, data, metric)


def decompress_file(source: str, target: str, limit: int = LIMIT) -> tuple[int, ...]:
    """Unpack a file to .npy; the shape of what it holds."""
    if not target.endswith(".npy"):
        raise HilbertflowError("vectors are unpacked to .npy", where=target, remedy="name a .npy file")
    values = hfz.decode(Location(source).read(), limit, source)
    with Location(target).create() as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    return values.shape


def describe(values: npt.NDArray[Any], data: bytes, metric: str = "l2") -> Packed:
    """Sizes and fidelity of a packed file, measured on what it decodes to."""
    decoded, header = decompress(data), hfz.read_header(data)
    exact = np.array_equal(decoded, values)
    rows, again = values.astype(np.float64), decoded.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(again, axis=1)
    alike = (rows == again).all(axis=1)  # zeros are as they were; of zeros in another row's place nothing is left
    cosine = np.where(norms > 0, np.einsum("ij,ij->i", rows, again) / np.maximum(norms, 1e-300), alike)
    found = 1.0
    if not exact:
        found = hfz_fit.Truth.of(np.ascontiguousarray(values, np.float32), metric).recall(decoded)
    return Packed(
        rows=len(values), dim=values.shape[1], dtype=values.dtype.name, kind=header["kind"], exact=exact,
        bytes=len(data), bytes_a_vector=len(data) / len(values), ratio=values.nbytes / len(data),
        cosine=1.0 if exact else float(np.clip(cosine, -1, 1).mean()), recall=found,
    )  # fmt: skip


def _checked(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = np.ascontiguousarray(values, _native(values))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise HilbertflowError("a vector holds NaN or Inf", where=f"row {bad}", remedy="drop the row")
    return values


def _native(values: npt.NDArray[Any]) -> np.dtype[Any]:
    """The dtype as this machine orders its bytes; raises for what is no matrix of numbers."""
    if values.ndim != 2 or not values.size:
        raise HilbertflowError(f"an array of shape {values.shape}", remedy="give (n, d), both at least 1")
    native = values.dtype.newbyteorder("=")
    if native not in hfz.DTYPES:
        raise HilbertflowError(f"vectors of {values.dtype}", remedy="give floats of 16 to 64 bits, or integers")
    return native


def _read(source: str) -> tuple[npt.NDArray[Any], Callable[[int], str]]:
    """The matrix of a file, and what says where a row of it lies."""
    from storage.vectors import open_vectors
    from storage.vectors_npy import npy_header

    if PurePosixPath(source).suffix.lower() != ".npy":
        rows = open_vectors(source)
        column = rows.read(0, rows.count).column("vector").combine_chunks()
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, rows.dim)), rows.place
    data = Location(source).read()
    header = npy_header(io.BytesIO(data), len(data), partial(at, source))
    values = np.frombuffer(data, header.dtype, offset=header.offset)
    values = values.reshape(header.shape, order="F" if header.fortran else "C")
    with placed(source, 0):
        _native(values)
    return values, lambda row: at(source, f"row {row}", header.byte(row))
