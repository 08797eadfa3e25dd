"""Entropy coding of integer planes: interleaved range asymmetric numeral systems (rANS), the storage coder.

A value becomes a token (itself when small; exponent and two mantissa bits when large, the hybrid integers of JPEG XL)
and raw bits. Tokens are coded with 12-bit frequencies (Duda, "Asymmetric numeral systems", 2013) by up to 8
interleaved 32-bit states that share one stream of 16-bit words (Giesen, "Interleaved entropy coders", 2014). The
plane is cut in blocks and each block names one of a few tables, so that a plane whose statistics drift is coded near
its conditional entropy. The states start from a check sum and the last tokens rather than from nothing, which is why
neither costs anything.

A chunk is::

    0x10 values crc32                                   stored as they are, little-endian
    0x11 value:u32 check:u16                            all alike
    0x12 header tables blocks … states words raw        tables of its own
    0x13 header blocks … states words raw               tables shared by the array
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import rans_kernels as k
from operators import raw
from operators.errors import HilbertflowError
from operators.rans_cluster import block_counts
from operators.rans_tables import FAR, TABLE_BYTES, Tables, fold, group, read, write

CONSTANT, OWN, SHARED = 0x11, 0x12, 0x13
BLOCK = 1024


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
    dtype = raw.checked(plane.dtype)
    if plane.nbytes < 4 or plane.size >= 1 << 31:
        return raw.encode(plane)
    values, every = fold(plane)
    if values[0] == values[-1] and bool((values == values[0]).all()):
        return _constant(int(values[0]), values.size)
    chunk = _coded(values, every, tables) if tables is not None else None
    chunk = chunk or _coded(values, every, None)
    return chunk if chunk and len(chunk) < plane.size * dtype.itemsize + raw.OVERHEAD else raw.encode(plane)


def decode(
    data: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, tables: Tables | None = None
) -> npt.NDArray[Any]:
    """The array of ``shape`` and ``dtype`` that was coded, or HilbertflowError when the bytes are not its chunk.

    Memory is bounded by ``shape``, whatever the bytes say.
    """
    kind, count = raw.checked(np.dtype(dtype)), int(np.prod(shape, dtype=np.int64))
    source = np.frombuffer(data, np.uint8)
    if source.size == 0:
        raise _bad("an empty chunk")
    mode = int(source[0])
    if mode == raw.MODE:
        return raw.decode(data, shape, kind)
    if mode == CONSTANT:
        return _from_constant(source, shape, count, kind)
    if mode == SHARED and tables is None:
        raise _bad("the chunk was coded with shared tables, and none were given")
    if mode not in (OWN, SHARED) or count == 0:
        raise _bad(f"unknown chunk mode {mode:#x}" if count else "a coded chunk for an empty array")
    if source.ctypes.data & 1:  # words are read as 16-bit numbers
        source = source.copy()
    return _from_coded(source, count, kind, tables if mode == SHARED else None).reshape(shape)


def _lanes_log(count: int) -> int:
    return 3 if count >= 2048 else 2 if count >= 512 else 1


def _tail(count: int, lanes: int, top: int) -> tuple[int, int, int]:
    """Where the tokens begin that the first states hold, bits of one, and how many a lane."""
    width = max(1, top.bit_length())
    each = 16 // width
    return max(0, count - (lanes - 2) * each), width, each


def _coded(values: k.U32, every: int, shared: Tables | None) -> bytes | None:
    """The chunk in mode OWN or SHARED; None when the shared tables cannot code it."""
    count = values.size
    block = BLOCK
    while count > block * 256:
        block *= 2
    groups = -(-count // block)
    tokens = np.empty(count, np.uint8)
    head = np.zeros(64 + 2 * groups + (0 if shared else 16 * TABLE_BYTES), np.uint8)
    head[0] = OWN if shared is None else SHARED
    lanes_log = _lanes_log(count)
    at = k.put(head, k.put(head, 8, lanes_log, 3), block.bit_length() - 1, 5)
    if shared is None:
        counts, shifts, ids, number = group(values, every, block, groups, 16)
        at = k.put(head, at, number - 1, 6)
        at, tables = write(counts[:number], shifts[:number], head, at)
        plan = tables.plan
    else:
        tables, plan = shared, shared.plan
        if plan.size == 0:
            chosen = _choose(values, block, groups, tables)
            if chosen is None:
                return None
            ids = chosen
    if plan.size == 0:
        at = _put_ids(head, at, ids, tables.count)
        step, where = block, tables.shifts[ids]
    else:
        step, where = 1, np.resize(tables.shifts[plan], count)
    raw_bits = k.tokenize(values, step, where, tokens)
    extra = np.empty(raw_bits // 32 + 2 if raw_bits else 0, np.uint32)
    if raw_bits:
        k.put_raw(values, tokens, step, where, extra)
    extra = extra.view(np.uint8)[: (raw_bits + 7) // 8]

    if plan.size and not k.codable(tokens, plan, tables.freq):
        return None

    lanes = 1 << lanes_log
    start, width, each = _tail(count, lanes, tables.top)
    state = np.full(lanes, 1 << 16, np.uint32)
    if lanes > 2:
        k.put_tail(tokens, start, width, each, state)
    check = k.check_sum(extra, k.check_sum(tokens, count))
    state[0] |= np.uint32(check & 0xFFFF)
    state[1] |= np.uint32(check >> 16)
    words = np.empty(start + 1, np.uint16)
    code, inverse = tables.encoder()
    if plan.size:
        begin = k.encode_columns(tokens, start, plan, code, inverse, state, words)
    else:
        begin = k.encode_lanes(tokens, start, block, ids, code, inverse, state, words)
    number = start + 1 - begin
    at = k.put(head, k.put(head, at, number.bit_length(), 5), number, number.bit_length())
    size = (at + 15) // 16 * 2
    return b"".join((head[:size].tobytes(), state.tobytes(), words[begin:].tobytes(), extra.tobytes()))


def _from_coded(source: k.U8, count: int, dtype: np.dtype[Any], shared: Tables | None) -> npt.NDArray[Any]:
    lanes, block = 1 << _get(source, 8, 3), 1 << _get(source, 11, 5)
    if lanes < 2 or lanes > 8 or block < 16 or count > block << 16:
        raise _bad("the header is malformed")
    at, groups = 16, -(-count // block)
    if shared is None:
        at, tables = read(source, 22, _get(source, 16, 6) + 1)
    else:
        tables = shared
    plan = tables.plan
    if plan.size == 0:
        at, ids = _get_ids(source, at, groups, tables.count)
    width = _get(source, at, 5)
    number = _get(source, at + 5, width)
    size = (at + 5 + width + 15) // 16 * 2
    begin = size + 4 * lanes
    if begin + 2 * number > source.size:
        raise _bad(k.ERRORS[k.CUT])
    state = source[size:begin].copy().view(np.uint32)
    words = source[begin : begin + 2 * number].view(np.uint16)
    extra = source[begin + 2 * number :]

    tokens = np.empty(count, np.uint8)
    start, width, each = _tail(count, lanes, tables.top)
    if plan.size:
        used = k.decode_columns(words, start, plan, tables.decoder(), state, tokens)
    else:
        used = k.decode_lanes(words, start, block, ids, tables.decoder(), state, tokens)
    if used != number:
        raise _bad(k.ERRORS[min(used, k.CUT)])
    check = int(state[0] & 0xFFFF) | int(state[1] & 0xFFFF) << 16
    failed = k.get_tail(state, start, width, each, tables.present, tokens)
    if failed:
        raise _bad(k.ERRORS[failed])
    if check != k.check_sum(extra, k.check_sum(tokens, count)):
        raise _bad(k.ERRORS[k.BAD_SUM])
    return _assembled(tokens, extra, block, tables, plan if plan.size else ids, dtype)


def _assembled(
    tokens: k.U8, extra: k.U8, block: int, tables: Tables, ids: k.U8, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Tokens and raw bits to values of ``dtype``."""
    signed = dtype.kind == "i"
    if extra.size == 0 and tables.top < k.DIRECT and not tables.shifts.any():
        small = np.empty(tokens.size, np.int8)
        k.unfold(tokens, signed, small)
        return small.astype(dtype, copy=False)
    out = np.empty(tokens.size, np.int32)
    step, shifts = (1, np.resize(tables.shifts[ids], tokens.size)) if tables.plan.size else (block, tables.shifts[ids])
    if (k.raw_bits(tokens, step, shifts) + 7) // 8 != extra.size:
        raise _bad(k.ERRORS[k.CUT])
    padded = np.zeros(extra.size // 4 + 3, np.uint32)
    padded.view(np.uint8)[: extra.size] = extra
    failed = k.values_of(tokens, step, shifts, padded, signed, (1 << 8 * dtype.itemsize) - 1, out)
    if failed:
        raise _bad(k.ERRORS[failed])
    return out.view(np.uint32) if dtype == np.uint32 else out.astype(dtype, copy=False)


def _choose(values: k.U32, block: int, groups: int, tables: Tables) -> k.U8 | None:
    """The cheapest shared table of each block; None when some block has none."""
    cost = np.empty((groups, tables.count), np.int64)
    tokens = np.empty(values.size, np.uint8)
    for shift in np.unique(tables.shifts):
        counts = np.zeros((groups, k.TOKENS), np.int32)
        k.tokenize(values, block, np.full(groups, shift, np.int32), tokens)
        block_counts(tokens, block, counts)
        which = tables.shifts == shift
        cost[:, which] = counts.astype(np.int64) @ tables.costs()[which].T
    return None if bool((cost.min(axis=1) >= FAR).any()) else cost.argmin(axis=1).astype(np.uint8)


def _put_ids(head: k.U8, at: int, ids: k.U8, count: int) -> int:
    """One bit a block when its table is the one before, else the number too."""
    width = (count - 1).bit_length()
    before = -1
    for table in ids.tolist() if width else []:
        if before >= 0:
            at = k.put(head, at, int(table != before), 1)
        if table != before:
            at = k.put(head, at, table, width)
        before = table
    return at


def _get_ids(source: k.U8, at: int, groups: int, count: int) -> tuple[int, k.U8]:
    width = (count - 1).bit_length()
    ids = np.zeros(groups, np.uint8)
    for b in range(groups if width else 0):
        if b:
            same = _get(source, at, 1) == 0
            at += 1
            if same:
                ids[b] = ids[b - 1]
                continue
        ids[b] = _get(source, at, width)
        at += width
        if ids[b] >= count:
            raise _bad(k.ERRORS[k.BAD_TABLE])
    return at, ids


def _get(source: k.U8, at: int, width: int) -> int:
    value = k.get(source, at, width)
    if value < 0:
        raise _bad(k.ERRORS[k.CUT])
    return int(value)


def _constant(value: int, count: int) -> bytes:
    body = bytes([CONSTANT]) + value.to_bytes(4, "little")
    return body + (zlib.crc32(body, count & 0xFFFFFFFF) & 0xFFFF).to_bytes(2, "little")


def _from_constant(source: k.U8, shape: tuple[int, ...], count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    data = source.tobytes() if source.size == 7 else b""
    value = int.from_bytes(data[1:5], "little")
    if data != _constant(value, count) or value >> 8 * dtype.itemsize:
        raise _bad(k.ERRORS[k.BAD_SUM if data else k.CUT])
    return np.full(shape, (value >> 1) ^ -(value & 1) if dtype.kind == "i" else value, dtype)


def _bad(what: str) -> HilbertflowError:
    return raw.damaged("rANS", what)
