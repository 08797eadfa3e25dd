"""Many small chunks of an array decoded by one call, for searches that fetch some hundred of them.

Decoding a chunk of a few thousand symbols takes less time than the Python around it, so the headers are read by the
compiled code as well. It knows the common case: shared tables with a plan of columns, small tokens, no exceptions, rows
left out at the end. Any other chunk goes through :func:`operators.rans.decode`. The chunk's own check sum is not looked
at here: what comes from an archive has been compared with its CRC-32C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from operators import rans, raw
from operators import rans_bits as k
from operators.rans_lanes import get_tail
from operators.rans_tables import Tables

# mypy: disable-error-code="assignment"
I64 = npt.NDArray[np.int64]

_SHARED, _TRIMMED = 0x13, 0x14
_LEAVE = 1  # a chunk for the decoder that knows them all
_HALF, _LOW = np.uint32(1 << 16), np.uint32(k.SLOTS - 1)
_U8, _U12, _U16, _U24 = np.uint32(8), np.uint32(12), np.uint32(16), np.uint32(24)


def decode(
    chunks: Sequence[bytes | memoryview], rows: I64, block: int, width: int, tables: Tables | None
) -> npt.NDArray[np.int16]:
    """Symbols of many chunks, one below the other.

    Parameters
    ----------
    chunks: coded arrays int16 (block, width), without CRC-32C.
    rows: int64 (c,), the leading rows wanted of each, at most ``block``.
    tables: shared tables of the array.

    Returns
    -------
    int16 (sum of rows, width). Raises HilbertflowError for a damaged chunk.
    """
    ends = np.cumsum(rows)
    out = np.zeros((int(ends[-1]) if len(ends) else 0, width), np.int16)
    status = np.full(len(chunks), _LEAVE, np.int32)
    if tables is not None and width and tables.plan.size == width and not tables.shifted and tables.top < k.DIRECT:
        sizes = np.array([len(chunk) for chunk in chunks], np.int64)
        data = np.frombuffer(b"".join(chunks), np.uint8)
        stops = np.cumsum(sizes)
        _decode(data, stops - sizes, stops, ends - rows, rows, block, tables.plan, tables.decoder(), tables.top,
                tables.present, out, status)  # fmt: skip
    for at in np.flatnonzero(status).tolist():
        if status[at] < 0:
            raise raw.damaged("rANS", k.ERRORS[int(status[at])])
        found = rans.decode(chunks[at], (block, width), np.int16, tables)
        out[ends[at] - rows[at] : ends[at]] = found[: rows[at]]
    return out


@njit(cache=True, nogil=True)
def _decode(data, begins, stops, firsts, rows, block, plan, table, top, present, out, status):  # type: ignore[no-untyped-def]
    width = plan.size
    tokens = np.zeros(block * width + 8, np.uint8)
    bases = np.empty(block * width, np.uint32)  # of every place in a chunk, which spares the loop a division
    for i in range(bases.size):
        bases[i] = np.uint32(plan[i % width]) << _U12
    state = np.empty(8, np.uint32)
    for c in range(begins.size):
        begin, kept = begins[c], np.int64(block)
        chunk = data[begin : stops[c]]
        if chunk.size > 5 and chunk[0] == _TRIMMED:
            kept = np.int64(chunk[1]) | np.int64(chunk[2]) << 8 | np.int64(chunk[3]) << 16 | np.int64(chunk[4]) << 24
            chunk = chunk[5:]
        if chunk.size == 0 or chunk[0] != _SHARED or not 0 < kept <= block:
            continue
        status[c] = _chunk(chunk, kept * width, bases, table, top, present, state, tokens)
        if status[c] == 0:
            first = firsts[c]
            for row in range(min(kept, rows[c])):
                for j in range(width):
                    t = np.int16(tokens[row * width + j])
                    out[first + row, j] = (t >> 1) ^ -(t & 1)


@njit(cache=True, nogil=True)
def _chunk(chunk, count, bases, table, top, present, state, tokens):  # type: ignore[no-untyped-def]
    """Tokens of one chunk: 0, ``_LEAVE`` or an error."""
    lanes_log = k.get(chunk, 8, 2)
    if lanes_log < 1 or k.get(chunk, 10, 1) != 0:
        return _LEAVE
    wide = k.get(chunk, 11, 5)
    number = k.get(chunk, 16, max(wide, 0))
    if wide < 0 or number < 0:
        return k.CUT
    lanes = np.int64(1) << lanes_log
    p = (16 + wide + 15) // 16 * 2
    words = p + 4 * lanes
    if words + 2 * number != chunk.size:
        return _LEAVE if words + 2 * number < chunk.size else k.CUT
    for lane in range(lanes):
        at = p + 4 * lane
        low = np.uint32(chunk[at]) | np.uint32(chunk[at + 1]) << _U8
        state[lane] = low | np.uint32(chunk[at + 2]) << _U16 | np.uint32(chunk[at + 3]) << _U24
    p = words
    bits = max(k.bit_length(top), 1)
    each = 16 // bits
    start = max(0, count - (lanes - 2) * each)
    whole = start - start % lanes if lanes == 4 else 0
    if whole:
        p = _four(chunk, p, whole, bases, table, state, tokens)
        if p < 0:
            return k.CUT
    for i in range(whole, start):
        lane = i & (lanes - 1)
        x = state[lane]
        e = table[bases[i] + (x & _LOW)]
        x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
        if x < _HALF:
            if p + 2 > chunk.size:
                return k.CUT
            x = x << _U16 | np.uint32(chunk[p]) | np.uint32(chunk[p + 1]) << _U8
            p += 2
        state[lane] = x
        tokens[i] = np.uint8(e >> _U24)
    if p != chunk.size:
        return k.CUT
    state[0] = state[0] & ~np.uint32(0xFFFF)  # the check sum
    state[1] = state[1] & ~np.uint32(0xFFFF)
    return get_tail(state[:lanes], start, bits, each, present, tokens[:count])


@njit(inline="always")
def _step(x, chunk, p, base, table):  # type: ignore[no-untyped-def]
    """One symbol of one state: the state, the next byte, the token."""
    e = table[base + (x & _LOW)]
    x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
    w = np.uint32(chunk[p]) | np.uint32(chunk[p + np.uint64(1)]) << _U8
    short = x < _HALF
    return (x << _U16 | w) if short else x, p + (np.uint64(2) if short else np.uint64(0)), np.uint8(e >> _U24)


@njit(cache=True, nogil=True)
def _four(chunk, p, count, bases, table, state, tokens):  # type: ignore[no-untyped-def]
    """The first ``count`` tokens, a multiple of four, from four states side by side; the next byte, or -1.

    A round reads at most eight bytes, so that it may begin at the end of the chunk: zeros lie behind it.
    """
    a, b, c, d = state[0], state[1], state[2], state[3]
    padded = np.zeros(chunk.size + 16, np.uint8)
    padded[: chunk.size] = chunk
    at, last = np.uint64(p), np.uint64(chunk.size)
    i, stop = np.uint64(0), np.uint64(count)
    while i < stop and at <= last:
        a, at, tokens[i] = _step(a, padded, at, bases[i], table)
        b, at, tokens[i + np.uint64(1)] = _step(b, padded, at, bases[i + np.uint64(1)], table)
        c, at, tokens[i + np.uint64(2)] = _step(c, padded, at, bases[i + np.uint64(2)], table)
        d, at, tokens[i + np.uint64(3)] = _step(d, padded, at, bases[i + np.uint64(3)], table)
        i += np.uint64(4)
    state[0], state[1], state[2], state[3] = a, b, c, d
    return np.int64(at) if at <= last and i >= stop else np.int64(-1)
