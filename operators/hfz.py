"""Vectors as one self-contained string of bytes: a small matrix of any kind, exact or lossy.

A file is::

    magic:4  version:u8  length:u24 header (JSON)  arrays (operators.sections) …  crc32:u32

Kind ``rows`` holds a code of rows (:mod:`operators.rowcode`), one lossy level, and ``cells`` and ``exact`` where the
file is exact. Kind ``words`` holds the bytes of the values, those of equal weight together, exact for any dtype. Kind
``columns`` holds files side by side, for rows too long for one transform. Of a code only what decoding needs is stored,
and shapes follow from the header, whose numbers are checked before anything is allocated.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import klt, sections
from operators.errors import HilbertflowError, at, placed
from operators.rowcode import RowCode

F32 = npt.NDArray[np.float32]
Values = npt.NDArray[Any]

MAGIC, VERSION = b"\x89HFZ", 1
DTYPES = tuple(np.dtype(name) for name in ("f4", "f2", "f8", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"))
LIMIT = 1 << 36
"""Bytes of decoded vectors that a reader accepts unless told otherwise."""
WHERE = "packed vectors"
"""What errors call bytes that lie in memory."""
_HEADER = 8
_MOST_HEADER = 1 << 20
_REMEDY = "the file is damaged, or not one that `hilbertflow compress` wrote"


def from_rows(code: RowCode, rows: F32, dtype: npt.DTypeLike, *, exact: bool = False) -> bytes:
    """A file of kind ``rows``: lossy at the code's first level, or exact float32."""
    levels = code.encode(rows) if exact else {"level0": code.level0(rows)}
    turn = code.klt
    header = {"kind": "rows", "rows": len(rows), "dim": turn.dim, "dtype": np.dtype(dtype).name, "rank": turn.rank,
              "plain": turn.plain, "exact": exact} | code.attributes()  # fmt: skip
    parts = [sections.put(turn.mean)]
    if not turn.plain:
        parts += [sections.put(turn.bits), sections.put(turn.axes.T, by_column=True)]
    parts += [sections.put(code.steps[0]), sections.put(levels["level0"], by_column=True)]
    parts += [sections.put(levels[name]) for name in ("cells", "exact") if exact]
    return _sealed(header, parts)


def from_words(values: Values) -> bytes:
    """A file of kind ``words``: exact, whatever the values are."""
    values = np.ascontiguousarray(values)
    words = values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    words = words.reshape(*values.shape, values.dtype.itemsize)
    header = {"kind": "words", "rows": values.shape[0], "dim": values.shape[1], "dtype": values.dtype.name}
    planes = (np.ascontiguousarray(words[:, :, at]) for at in range(values.dtype.itemsize))
    return _sealed(header, [sections.put(plane, by_column=True) for plane in planes])


def from_columns(files: Sequence[bytes], count: int, dim: int, dtype: npt.DTypeLike) -> bytes:
    """A file of kind ``columns`` of others, side by side."""
    header = {"kind": "columns", "rows": count, "dim": dim, "dtype": np.dtype(dtype).name,
              "sizes": [len(file) for file in files]}  # fmt: skip
    return _sealed(header, files)


def read_header(data: bytes | memoryview, where: str = WHERE, begin: int = 0) -> dict[str, Any]:
    """What a file says of itself, its check sum and its numbers checked; HilbertflowError when it is none of ours.

    ``where`` is what errors call the file in which ``data`` begins at byte ``begin``.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEADER + 4 or bytes(view[:4]) != MAGIC:
        raise HilbertflowError("is not a file of packed vectors", where=at(where, begin), remedy=_REMEDY)
    if view[4] != VERSION:
        what = f"has version {view[4]}, which this program cannot read"
        raise HilbertflowError(what, where=at(where, begin + 4), remedy="use a newer one")
    if zlib.crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        end = begin + len(view) - 4
        raise HilbertflowError("the check sum does not agree", where=at(where, end), remedy=_REMEDY)
    with placed(where, begin + _HEADER):
        return _header(view)


def _header(view: memoryview) -> dict[str, Any]:
    size = int.from_bytes(view[5:8], "little")
    try:
        header = json.loads(bytes(view[_HEADER : _HEADER + size]))
    except (ValueError, RecursionError) as error:
        raise HilbertflowError("the header is no JSON", remedy=_REMEDY) from error
    if not isinstance(header, dict) or str(header.get("kind")) not in _DECODERS:
        raise HilbertflowError("the header is malformed", remedy=_REMEDY)
    _number(header, "rows", 1, 1 << 40)
    _number(header, "dim", 1, 1 << 40)
    if str(header.get("dtype")) not in {dtype.name for dtype in DTYPES}:
        raise HilbertflowError("the header names no dtype that is known", remedy=_REMEDY)
    return header | {"header_bytes": size}


def decode(data: bytes | memoryview, limit: int = LIMIT, where: str = WHERE, begin: int = 0) -> Values:
    """The vectors (n, d) of a file, in their dtype.

    Raises HilbertflowError for anything that is not a whole file, and before allocating more than ``limit`` bytes;
    it names the byte. ``where`` and ``begin`` as of :func:`read_header`.
    """
    header = read_header(data, where, begin)
    dtype = np.dtype(header["dtype"])
    taken = header["rows"] * header["dim"] * max(4, dtype.itemsize)
    if taken > limit:
        what = f"decodes to {taken:,} bytes, more than {limit:,}"
        raise HilbertflowError(what, where=at(where, begin + _HEADER), remedy="allow more with limit")
    first = _HEADER + header["header_bytes"]
    with placed(where, begin + _HEADER):  # where arrays that are sound do not go together, the header is at fault
        return _DECODERS[header["kind"]](header, memoryview(data).cast("B")[first:-4], dtype, where, begin + first)


def restored(rows: F32, dtype: np.dtype[Any]) -> Values:
    """Decoded float32 rows in the dtype of their source: integers rounded and clipped."""
    if dtype.kind == "f":
        top = float(np.finfo(dtype).max)
        return np.clip(rows.astype(np.float64), -top, top).astype(dtype) if dtype.itemsize == 2 else rows.astype(dtype)
    bounds = np.iinfo(dtype)
    whole = np.rint(rows.astype(np.float64))
    out = np.empty(rows.shape, dtype)
    high = whole >= float(bounds.max)  # a float64 may round the bound of 64 bits up beyond the dtype
    out[high], low = bounds.max, whole <= float(bounds.min)
    out[low] = bounds.min
    out[~high & ~low] = whole[~high & ~low].astype(dtype)
    return out


def _decode_rows(header: dict[str, Any], body: memoryview, dtype: np.dtype[Any], where: str, begin: int) -> Values:
    count, dim = header["rows"], _number(header, "dim", 1, klt.MOST_DIM)
    rank = _number(header, "rank", 1, dim)
    numbers = {name: _number(header, name, -(1 << 31), 1 << 31) for name in ("shift", "states", "cell", "block")}
    numbers |= {name: _number(header, name, -(1 << 31), 1 << 31) for name in ("low", "high") if name in header}
    source = sections.Reader(body, where, begin)
    arrays: dict[str, Values] = {"klt_mean": source.get((dim,), np.int32)}
    if header.get("plain"):
        arrays |= {"klt_bits": np.zeros(rank, np.uint8), "klt_axes": np.eye(rank, dim, dtype=np.int16)}
    else:
        arrays["klt_bits"] = source.get((rank,), np.uint8)
        arrays["klt_axes"] = np.ascontiguousarray(source.get((dim, rank), np.int16, by_column=True).T)
    arrays["steps"] = source.get((rank,), np.int32)[None]
    unused = np.zeros((1, rank), np.float32)
    arrays |= dict.fromkeys(("spacing", "weight", "deviation"), unused)
    arrays |= dict.fromkeys(("klt_deviation", "klt_spread"), unused[0])
    arrays["centroids"] = np.zeros((0, rank), np.int32)
    code = RowCode.from_arrays(arrays, numbers | {"unit": bool(header.get("unit"))})
    levels = {"level0": source.get((count, code.width("level0")), np.int16, by_column=True)}
    if header.get("exact"):
        levels |= {"cells": source.get((count, dim), np.int32), "exact": source.get((count, dim), np.uint32)}
    source.end()
    out = np.empty((count, dim), dtype)
    step = code.block * max(1, sections.PIECE // (dim * code.block))
    for start in range(0, count, step):
        part = slice(start, start + step)
        out[part] = restored(code.decode({name: level[part] for name, level in levels.items()}), dtype)
    return out


def _decode_words(header: dict[str, Any], body: memoryview, dtype: np.dtype[Any], where: str, begin: int) -> Values:
    shape, source = (header["rows"], header["dim"]), sections.Reader(body, where, begin)
    words = np.empty((*shape, dtype.itemsize), np.uint8)
    for plane in range(dtype.itemsize):
        words[:, :, plane] = source.get(shape, np.uint8, by_column=True)
    source.end()
    return words.view(dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _decode_columns(header: dict[str, Any], body: memoryview, dtype: np.dtype[Any], where: str, begin: int) -> Values:
    sizes = header.get("sizes")
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise HilbertflowError("the header is malformed", remedy=_REMEDY)
    if sum(sizes) != len(body):
        raise HilbertflowError("cut short", remedy=_REMEDY)
    out, column, first = np.empty((header["rows"], header["dim"]), dtype), 0, 0
    for size in sizes:
        part = body[first : first + size]
        inner = read_header(part, where, begin + first)
        here = slice(column, column + inner["dim"])
        if inner["kind"] == "columns" or inner["rows"] != len(out) or here.stop > out.shape[1]:
            raise HilbertflowError("its columns do not fit together", remedy=_REMEDY)
        out[:, here] = decode(part, out.nbytes * 4, where, begin + first)
        column, first = here.stop, first + size
    if column != out.shape[1]:
        raise HilbertflowError("its columns do not fit together", remedy=_REMEDY)
    return out


_DECODERS: dict[str, Callable[[dict[str, Any], memoryview, np.dtype[Any], str, int], Values]] = {
    "rows": _decode_rows, "words": _decode_words, "columns": _decode_columns,
}  # fmt: skip


def _number(header: dict[str, Any], name: str, least: int, most: int) -> int:
    value = header.get(name)
    if type(value) is not int or not least <= value <= most:
        raise HilbertflowError(f"{name} is {value!r}", remedy=_REMEDY)
    return value


def _sealed(header: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) >= _MOST_HEADER:
        raise HilbertflowError(f"{math.prod((header['rows'], header['dim']))} values are too many for one file")
    start = MAGIC + bytes([VERSION]) + len(text).to_bytes(3, "little") + text
    whole = b"".join((start, *parts))
    return whole + zlib.crc32(whole).to_bytes(4, "little")
