"""Entropy coding of integer planes: interleaved range asymmetric numeral systems (rANS), the storage coder.

A value becomes a token and raw bits (:mod:`operators.rans_tokens`). Tokens are coded with 12-bit frequencies (Duda,
"Asymmetric numeral systems", 2013) by up to 8 interleaved 32-bit states that share one stream of 16-bit words
(Giesen, "Interleaved entropy coders", 2014). The plane is cut in runs and each run names one of a few tables, so
that a plane whose statistics drift is coded near its conditional entropy. The states start from a check sum and the
last tokens rather than from nothing, which is why neither costs anything.

A chunk is::

    0x10 values crc32                                   stored as they are, little-endian
    0x11 value:u32 check:u16                            all alike
    0x12 header tables runs … states words raw        tables of its own, as written before 0x15
    0x13 header runs exceptions … states words raw    tables shared by the array
    0x14 rows:u32 chunk                               the first rows; those behind them are zeros
    0x15 header tail tables runs … states words raw   tables of its own
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import rans_bits as k
from operators import rans_chunk as chunks
from operators import rans_lanes as lanes
from operators import rans_tokens as tokens_of
from operators import raw
from operators.rans_side import choose, get_exceptions, put_exceptions, room, take_runs
from operators.rans_tables import Tables, fold, group, split, write
from operators.rans_tail import put_tail
from operators.scratch import scratch

CONSTANT, OWN, SHARED, TRIMMED, LEAN = 0x11, 0x12, 0x13, 0x14, 0x15
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
    data: bytes | memoryview,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    tables: Tables | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """The array of ``shape`` and ``dtype`` that was coded, or HilbertflowError when the bytes are not its chunk.

    Memory is bounded by ``shape``, whatever the bytes say. ``out``, of that shape and dtype, may be what is returned.
    """
    kind, count = raw.checked(dtype), math.prod(shape)
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
    if mode not in (OWN, SHARED, LEAN) or count == 0 or count >= 1 << 31:
        raise raw.damaged("rANS", f"chunk mode {mode:#x} for {count} values")
    if source.ctypes.data & 1:  # words are read as 16-bit numbers
        source = source.copy()
    source.flags.writeable = False  # of one type to the compiled code
    return _from_coded(source, np.empty(shape, kind) if out is None else out, tables if mode == SHARED else None)


def _lanes_log(count: int) -> int:
    return 3 if count >= 16384 else 2 if count >= 2048 else 1


def _tail(count: int, lanes_log: int, top: int) -> tuple[int, int, int]:
    """Where the tokens begin that the first states hold, bits of one, and how many a lane."""
    width = max(1, top.bit_length())
    each = 16 // width
    return max(0, count - ((1 << lanes_log) - 2) * each), width, each


def _coded(values: k.U32, every: int, shared: Tables | None) -> bytes | None:
    """The chunk in mode LEAN or SHARED; None when the shared tables cannot code it."""
    count, block, lanes_log = values.size, BLOCK, _lanes_log(values.size)
    while count > block * 256:
        block *= 2
    head = np.zeros(room(count, MOST_TABLES if shared is None else 0), np.uint8)
    head[0] = LEAN if shared is None else SHARED
    at = k.put(head, 8, lanes_log, 2)
    if shared is None:
        counts, shifts, ends, ids, parts, tail = group(values, every, block, MOST_TABLES, folded=True)
        at = int(put_tail(head, 16, *tail))
        k.put(head, 10, len(shifts) - 1, 6)
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
    if shared is not None or tables.shifted or tables.top >= k.DIRECT:  # else the words are all that is left
        at = k.put(head, k.put(head, at, number.bit_length(), 5), number, number.bit_length())
    if shared is None:
        at, state = int(k.put_states(head, at, state)), state[:0]
    size = (at + 15) // 16 * 2
    rest = extra.view(np.uint8)[: (parts.bits + 7) // 8]
    return b"".join((head[:size].data, state.data, words[begin:].data, rest.data))


def _from_coded(source: k.U8, out: npt.NDArray[Any], shared: Tables | None) -> npt.NDArray[Any]:
    count, signed, limit = out.size, out.dtype.kind == "i", (1 << 8 * out.itemsize) - 1
    sizes = chunks.work_sizes(count)
    tokens = scratch("rans tokens", sizes[:1], np.uint8)
    values, extra = scratch("rans values", sizes[1:2], np.uint32), scratch("rans extra", sizes[2:3], np.uint32)
    exceptions: dict[int, int] = {}
    if shared is None:
        table = scratch("rans table", sizes[3:], np.uint32)
        found = chunks.decode_own(source, count, source[0] == LEAN, tokens, values, extra, table)
    else:
        at, ends, ids = 10, np.empty(0, np.int32), shared.plan
        if not ids.size:
            at, ends, ids = take_runs(source, at, count, shared.count)
        at, exceptions = get_exceptions(source, at, count, limit)
        found = chunks.decode_rest(
            source, at, count, False, ends, ids, shared.freq, shared.shifts, tokens, values, extra, shared.decoder()
        )
    flat = out.reshape(-1).view(f"i{out.itemsize}")
    if found == chunks.IN_TOKENS:
        tokens_of.unfold(tokens[:count], signed, flat)
    elif found == chunks.IN_VALUES:
        found = tokens_of.unzigzag(values, signed, limit, flat)
    if found < 0:
        raise raw.damaged("rANS", k.ERRORS[int(found)])
    for place, value in exceptions.items():
        out.reshape(-1)[place] = _unfold(value, out.dtype)
    return out


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
