"""Entropy coding of integer planes: interleaved range asymmetric numeral systems (rANS), the storage coder.

A value becomes a token and raw bits (:mod:`operators.rans_tokens`). Tokens are coded with 12-bit frequencies (Duda,
"Asymmetric numeral systems", 2013) by up to 8 interleaved 32-bit states that share one stream of 16-bit words
(Giesen, "Interleaved entropy coders", 2014). The plane is cut in runs and each run names one of a few tables, so
that a plane whose statistics drift is coded near its conditional entropy. The states start from a check sum and the
last tokens rather than from nothing, which is why neither costs anything.

A chunk is::

    0x10 values crc32                                   stored as they are, little-endian
    0x11 value:u32 check:u16                            all alike
    0x12 header tables runs … states words raw        tables of its own
    0x13 header runs exceptions … states words raw    tables shared by the array
    0x14 rows:u32 chunk                               the first rows; those behind them are zeros
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import rans_bits as k
from operators import rans_lanes as lanes
from operators import rans_tokens as tokens_of
from operators import raw
from operators.rans_side import choose, get_exceptions, put_exceptions, room, take, take_runs
from operators.rans_tables import Tables, fold, group, padded_tokens, read, split, write

CONSTANT, OWN, SHARED, TRIMMED = 0x11, 0x12, 0x13, 0x14
BLOCK = 1024  # symbols that are looked at together when tables are chosen
MOST_TABLES = 16


def encode(plane: npt.NDArray[Any], tables: Tables | None = None) -> bytes:
    """Code an integer array of any shape without loss.

    Parameters
    ----------
    plane: int8 to int32 or uint8 to uint32.
    tables: shared tables (:meth:`Tables.train`), for chunks too small to carry their own. A chunk that they do not
        suit carries its own all the same.

    Returns
    -------
    The chunk, never more than 5 bytes longer than the values.
    """
    raw.checked(plane.dtype)
    if plane.nbytes < 4 or plane.size >= 1 << 31:
        return raw.encode(plane)
    rows = plane.reshape(-1, plane.shape[-1]) if plane.ndim > 1 else plane.reshape(1, -1)
    kept = len(rows) if rows[-1].any() else 1 + int(np.flatnonzero(rows.any(axis=1)).max(initial=-1))
    if kept and rows[kept:].nbytes >= raw.OVERHEAD:
        return bytes([TRIMMED]) + kept.to_bytes(4, "little") + encode(rows[:kept], tables)
    values, every = fold(plane)
    if values[0] == values[-1] and bool((values == values[0]).all()):
        return _constant(int(values[0]), values.size)
    chunk = _coded(values, every, tables) if tables is not None else None
    chunk = chunk or _coded(values, every, None)
    return chunk if chunk and len(chunk) < plane.nbytes + raw.OVERHEAD else raw.encode(plane)


def decode(
    data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, tables: Tables | None = None
) -> npt.NDArray[Any]:
    """The array of ``shape`` and ``dtype`` that was coded, or HilbertflowError when the bytes are not its chunk.

    Memory is bounded by ``shape``, whatever the bytes say.
    """
    kind, count = raw.checked(dtype), int(np.prod(shape, dtype=np.int64))
    source = np.frombuffer(data, np.uint8)
    if source.size == 0:
        raise raw.damaged("rANS", "an empty chunk")
    mode = int(source[0])
    if mode == raw.MODE:
        return raw.decode(data, shape, kind)
    if mode == CONSTANT:
        return _from_constant(source, shape, count, kind)
    if mode == TRIMMED:
        return _from_trimmed(data, shape, kind, tables)
    if mode == SHARED and tables is None:
        raise raw.damaged("rANS", "the chunk was coded with shared tables, and none were given")
    if mode not in (OWN, SHARED) or count == 0:
        raise raw.damaged("rANS", f"chunk mode {mode:#x} for {count} values")
    if source.ctypes.data & 1:  # words are read as 16-bit numbers
        source = source.copy()
    return _from_coded(source, count, kind, tables if mode == SHARED else None).reshape(shape)


def _lanes_log(count: int) -> int:
    return 3 if count >= 16384 else 2 if count >= 2048 else 1


def _tail(count: int, lanes_log: int, top: int) -> tuple[int, int, int]:
    """Where the tokens begin that the first states hold, bits of one, and how many a lane."""
    width = max(1, top.bit_length())
    each = 16 // width
    return max(0, count - ((1 << lanes_log) - 2) * each), width, each


def _coded(values: k.U32, every: int, shared: Tables | None) -> bytes | None:
    """The chunk in mode OWN or SHARED; None when the shared tables cannot code it."""
    count, block, lanes_log = values.size, BLOCK, _lanes_log(values.size)
    while count > block * 256:
        block *= 2
    head = np.zeros(room(count, MOST_TABLES if shared is None else 0), np.uint8)
    head[0] = OWN if shared is None else SHARED
    at = k.put(head, 8, lanes_log, 2)
    if shared is None:
        counts, shifts, ends, ids, parts = group(values, every, block, MOST_TABLES)
        at = k.put(head, at, len(shifts) - 1, 6)
        at, tables = write(counts, shifts, head, at)
    elif shared.plan.size:  # each column has its table
        tables, ends, ids = shared, np.empty(0, np.int32), shared.plan
    else:
        tables = shared
        ends, ids = choose(values, block // 16, tables)
    where = tables.shifts[ids]
    if ends.size:
        at = int(k.put_runs(head, at, ends, ids, (tables.count - 1).bit_length()))
    if shared is not None:
        parts = split(values, ends, where)
        at, replaced = put_exceptions(head, at, values, parts.tokens, ends, ids, tables)
        if at < 0:
            return None
        parts = split(values, ends, where) if replaced else parts
    tokens = parts.tokens
    extra = np.empty(parts.bits // 32 + 2 if parts.bits else 0, np.uint32)
    if parts.bits:
        tokens_of.put_raw(values, parts.highs, tokens, ends, where, extra)

    start, width, each = _tail(count, lanes_log, tables.top)
    state = np.full(1 << lanes_log, 1 << 16, np.uint32)
    if lanes_log > 1:
        lanes.put_tail(tokens, start, width, each, state)
    check = _check(head[: (at + 7) // 8], tokens, extra[: (parts.bits + 31) // 32])
    state[0] |= np.uint32(check & 0xFFFF)
    state[1] |= np.uint32(check >> 16)
    words = np.empty(start + 1, np.uint16)
    code, inverse = tables.encoder()
    if ends.size:
        begin = lanes.encode_lanes(tokens, start, ends, ids, code, inverse, state, words)
    else:
        begin = lanes.encode_columns(tokens, start, ids, code, inverse, state, words)
    number = start + 1 - begin
    at = k.put(head, k.put(head, at, number.bit_length(), 5), number, number.bit_length())
    size = (at + 15) // 16 * 2
    rest = extra.view(np.uint8)[: (parts.bits + 7) // 8]
    return b"".join((head[:size].data, state.data, words[begin:].data, rest.data))


def _from_coded(source: k.U8, count: int, dtype: np.dtype[Any], shared: Tables | None) -> npt.NDArray[Any]:
    lanes_log, at, limit = take(source, 8, 2), 10, (1 << 8 * dtype.itemsize) - 1
    if lanes_log < 1:
        raise raw.damaged("rANS", "the header is malformed")
    if shared is None:
        at, tables = read(source, at + 6, take(source, at, 6) + 1)
    else:
        tables = shared
    ends, ids = np.empty(0, np.int32), tables.plan
    if not ids.size:
        at, ends, ids = take_runs(source, at, count, tables.count)
    at, exceptions = get_exceptions(source, at, count, limit) if shared is not None else (at, {})
    head = source[: (at + 7) // 8].copy()
    if at & 7:
        head[-1] &= (1 << (at & 7)) - 1
    width = take(source, at, 5)
    number = take(source, at + 5, width)
    size = (at + 5 + width + 15) // 16 * 2
    begin = size + (4 << lanes_log)
    end = begin + 2 * number
    if end > source.size:
        raise raw.damaged("rANS", k.ERRORS[k.CUT])
    state, words = source[size:begin].copy().view(np.uint32), source[begin:end].view(np.uint16)

    tokens = padded_tokens(count)
    start, width, each = _tail(count, lanes_log, tables.top)
    if ends.size:
        used = lanes.decode_lanes(words, start, ends, ids, tables.decoder(), state, tokens)
    else:
        used = lanes.decode_columns(words, start, ids, tables.decoder(), state, tokens)
    check = int(state[0] & 0xFFFF) | int(state[1] & 0xFFFF) << 16
    failed = k.CUT if used != number else lanes.get_tail(state, start, width, each, tables.present, tokens)
    if failed:
        raise raw.damaged("rANS", k.ERRORS[failed])
    size = source.size - end
    extra = np.zeros(size // 4 + 3 if size else 0, np.uint32)
    extra.view(np.uint8)[:size] = source[end:]
    if check != _check(head, tokens, extra[: (size + 3) // 4]):
        raise raw.damaged("rANS", k.ERRORS[k.BAD_SUM])
    values = _assembled(tokens, extra, size, ends, tables.shifts[ids], tables, dtype)
    for place, value in exceptions.items():
        values[place] = _unfold(value, dtype)
    return values


def _assembled(
    tokens: k.U8, extra: k.U32, size: int, ends: k.I32, shifts: k.I32, tables: Tables, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Tokens and ``size`` bytes of raw bits to values of ``dtype``."""
    signed = dtype.kind == "i"
    out = np.empty(tokens.size, f"i{dtype.itemsize}")
    if not tables.shifted and tables.top < k.DIRECT and size == 0:
        tokens_of.unfold(tokens, signed, out)
        return out.view(dtype)
    low_bits = _low_bits(tokens.size, ends, shifts) if tables.shifted else 0
    if low_bits > 8 * size:
        raise raw.damaged("rANS", k.ERRORS[k.CUT])
    values = np.empty(tokens.size, np.uint32)
    bits = tokens_of.highs_of(tokens, extra, low_bits, 8 * size, values)
    failed = bits if bits < 0 else 0 if (bits + 7) // 8 == size else k.CUT
    if not failed and tables.shifted:
        failed = tokens_of.join_low_parts(values, ends, shifts, extra)
    failed = failed or tokens_of.unzigzag(values, signed, (1 << 8 * dtype.itemsize) - 1, out)
    if failed:
        raise raw.damaged("rANS", k.ERRORS[failed])
    return out.view(dtype)


def _low_bits(count: int, ends: k.I32, shifts: k.I32) -> int:
    """How many low bits ``count`` values have."""
    if ends.size:
        return int(np.diff(ends, prepend=0).astype(np.int64) @ shifts.astype(np.int64))
    rows, rest = divmod(count, len(shifts))
    return int(shifts.sum(dtype=np.int64)) * rows + int(shifts[:rest].sum(dtype=np.int64))


def _check(head: k.U8, tokens: k.U8, extra: k.U32) -> int:
    """32 bits that depend on all that was coded; ``tokens`` come from :func:`padded_tokens`."""
    words = np.zeros((head.size + 3) // 4, np.uint32)
    words.view(np.uint8)[: head.size] = head
    check = tokens_of.check_sum(words, tokens.size)
    whole = tokens.base
    assert whole is not None
    return int(tokens_of.check_sum(extra, tokens_of.check_sum(whole.view(np.uint32), check)))


def _constant(value: int, count: int) -> bytes:
    body = bytes([CONSTANT]) + value.to_bytes(4, "little")
    return body + (zlib.crc32(body, count & 0xFFFFFFFF) & 0xFFFF).to_bytes(2, "little")


def _from_constant(source: k.U8, shape: tuple[int, ...], count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    data = source.tobytes() if source.size == 7 else b""
    value = int.from_bytes(data[1:5], "little")
    if data != _constant(value, count) or value >> 8 * dtype.itemsize:
        raise raw.damaged("rANS", k.ERRORS[k.BAD_SUM if data else k.CUT])
    return np.full(shape, _unfold(value, dtype), dtype)


def _from_trimmed(
    data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], tables: Tables | None
) -> npt.NDArray[Any]:
    kept, rows = int.from_bytes(data[1:5], "little"), int(np.prod(shape[:-1], dtype=np.int64))
    if len(data) < 6 or not 0 < kept < rows or data[5] == TRIMMED:
        raise raw.damaged("rANS", "the header is malformed")
    out = np.zeros((rows, shape[-1]), dtype)
    out[:kept] = decode(memoryview(data)[5:], (kept, shape[-1]), dtype, tables)
    return out.reshape(shape)


def _unfold(value: int, dtype: np.dtype[Any]) -> int:
    return (value >> 1) ^ -(value & 1) if dtype.kind == "i" else value
