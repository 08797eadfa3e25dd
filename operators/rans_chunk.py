"""A rANS chunk behind its first byte, decoded in one compiled call.

Threads that decode planes side by side meet at the interpreter's lock: what runs between kernels makes them wait for
each other. So headers, tables, states and raw bits are all read here, into work arrays that the caller keeps.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from operators.rans_bits import (
    BAD_HEADER,
    BAD_SUM,
    CUT,
    DIRECT,
    GRAIN,
    I32,
    SLOTS,
    TOKENS,
    U8,
    U16,
    U32,
    bit_length,
    get,
    get_runs,
)
from operators.rans_freq import decoder_tables, get_tables
from operators.rans_lanes import decode_columns, decode_lanes, get_tail
from operators.rans_tail import get_tail as get_tail_header
from operators.rans_tail import unfold_tail
from operators.rans_tokens import check_sum, highs_of, join_low_parts

# mypy: disable-error-code="return-value, assignment, arg-type, call-overload, operator, index"

MAX_TABLES = 64
IN_TOKENS, IN_VALUES = 1, 2
"""What a decoder returns: where it left the values, as tokens or as unsigned 32-bit numbers."""


def work_sizes(count: int) -> tuple[int, int, int, int]:
    """Elements of the work arrays for ``count`` values: tokens (u8), values, raw bits and table entries (u32).

    Tokens are padded to whole words; the raw bits of a value are fewer than 32, and two words lie behind the last.
    """
    return (count + 3) // 4 * 4, count, count + 3, MAX_TABLES * SLOTS


@njit(cache=True, nogil=True)
def decode_own(source: U8, count: int, lean: bool, tokens: U8, values: U32, extra: U32, table: U32) -> int:
    """Decode a chunk that carries its tables: ``IN_TOKENS``, ``IN_VALUES`` or an error.

    ``lean``: in the newer form, whose tail may be folded and whose states take fewer bits.
    """
    lanes_log, tables = get(source, 8, 2), get(source, 10, 6) + 1
    if lanes_log < 1 or tables < 1:
        return BAD_HEADER
    at, low, begin, width, folded = np.int64(16), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    if lean:
        low, begin, width, folded = get_tail_header(source, at)
        if low < 0:
            return low
        at = low + folded * width
    freq, shifts = np.empty((tables, TOKENS), np.int32), np.empty(tables, np.int32)
    at = get_tables(source, at, freq, shifts)
    if at < 0:
        return at
    decoder_tables(freq, table)
    pieces = (count + GRAIN - 1) // GRAIN
    ends, ids = np.empty(pieces, np.int32), np.empty(pieces, np.uint8)
    at, runs = get_runs(source, at, bit_length(tables - 1), tables, count, ends, ids)
    if at < 0:
        return at
    found = decode_rest(source, at, count, lean, ends[:runs], ids[:runs], freq, shifts, tokens, values, extra, table)
    if folded == 0 or found < 0:
        return found
    if found == IN_TOKENS:
        failed = unfold_tail(tokens[:count], begin, width, folded, source, low)
    else:
        failed = unfold_tail(values[:count], begin, width, folded, source, low)
    return failed if failed else found


@njit(cache=True, nogil=True)
def decode_rest(
    source: U8, at: int, count: int, lean: bool, ends: I32, ids: U8, freq: I32, shifts: I32,
    tokens: U8, values: U32, extra: U32, table: U32,
) -> int:  # fmt: skip
    """Decode what follows at bit ``at``; ``table`` holds the decoder's entries of ``freq``.

    Run s ends before ``ends[s]`` and has table ``ids[s]``; without ``ends``, value i has ``ids[i mod len(ids)]``.
    """
    lanes = np.int64(1) << get(source, 8, 2)
    present, top, shifted = np.zeros(TOKENS, np.uint8), 0, False
    for row in range(freq.shape[0]):
        shifted |= shifts[row] > 0
        for t in range(TOKENS):
            if freq[row, t]:
                present[t], top = 1, max(top, t)
    state = np.empty(max(lanes, 2), np.uint32)
    next_bit, number = at, np.int64(-1)
    if shifted or top >= DIRECT or not lean:  # else no raw bits follow, and all that is left are words
        width = get(source, at, 5)
        number = get(source, at + 5, width) if width >= 0 else np.int64(-1)
        if number < 0:
            return CUT
        next_bit += 5 + width
    if lanes < 2:
        return CUT
    begin = _lean_states(source, next_bit, state) if lean else _plain_states(source, next_bit, state)
    if begin < 0:
        return CUT
    if number < 0:
        number = (source.size - begin) >> 1
    end = begin + 2 * number
    left = source.size - end  # bytes of raw bits
    if left < 0 or left > 4 * count:
        return CUT
    raw = extra[: left // 4 + 3]
    _to_words(source[end:], raw)

    bits = max(bit_length(top), 1)
    each = 16 // bits
    start = max(0, count - (lanes - 2) * each)
    words, coded = source[begin:end].view(np.uint16), tokens[:count]
    used = _decode(words, start, ends, ids, table, state, coded)
    if used != number:
        return CUT
    check = np.int64(state[0] & np.uint32(0xFFFF)) | np.int64(state[1] & np.uint32(0xFFFF)) << 16
    state[0] &= ~np.uint32(0xFFFF)
    state[1] &= ~np.uint32(0xFFFF)
    failed = get_tail(state, start, bits, each, present, coded)
    if failed:
        return failed
    padded = (count + 3) // 4 * 4
    tokens[count:padded] = 0
    found = check_sum(_head(source, at), count)
    found = check_sum(raw[: (left + 3) // 4], check_sum(tokens[:padded].view(np.uint32), found))
    if found != check:
        return BAD_SUM
    if left == 0 and not shifted and top < DIRECT:
        return IN_TOKENS
    return _assemble(coded, raw, left, ends, ids, shifts, values[:count])


@njit(cache=True, nogil=True)
def _plain_states(source: U8, at: int, state: U32) -> int:
    """States of 32 bits from the next 16-bit word on; where the words begin, or an error."""
    begin = (at + 15) // 16 * 2
    if begin + 4 * state.size > source.size:
        return CUT
    for lane in range(state.size):
        state[lane] = _word(source, begin + 4 * lane)
    return begin + 4 * state.size


@njit(cache=True, nogil=True)
def _lean_states(source: U8, at: int, state: U32) -> int:
    """States as their length less 17, 4 bits, and what is below their highest bit; where the words begin."""
    for lane in range(state.size):
        length = get(source, at, 4) + 16
        low = get(source, at + 4, length)
        if low < 0:
            return CUT
        state[lane] = np.uint32((np.int64(1) << length) | low)
        at += 4 + length
    begin = (at + 15) // 16 * 2
    return begin if begin <= source.size else CUT


@njit(cache=True, nogil=True)
def _decode(words: U16, start: int, ends: I32, ids: U8, table: U32, state: U32, tokens: U8) -> int:
    if ends.size:
        return decode_lanes(words, start, ends, ids, table, state, tokens)
    return decode_columns(words, start, ids, table, state, tokens)


@njit(cache=True, nogil=True)
def _assemble(tokens: U8, raw: U32, size: int, ends: I32, ids: U8, shifts: I32, values: U32) -> int:
    """Tokens and ``size`` bytes of raw bits to values; ``IN_VALUES`` or an error."""
    widths, low, begin = np.empty(ids.size, np.int32), np.int64(0), np.int64(0)
    for s in range(ids.size):
        widths[s] = shifts[ids[s]]
        if ends.size:
            low += np.int64(widths[s]) * (np.int64(ends[s]) - begin)
            begin = np.int64(ends[s])
        else:
            low += np.int64(widths[s]) * ((tokens.size - s + ids.size - 1) // ids.size)
    if low > 8 * size:
        return CUT
    bits = highs_of(tokens, raw, low, 8 * size, values)
    if bits < 0:
        return bits
    if (bits + 7) // 8 != size:
        return CUT
    failed = join_low_parts(values, ends, widths, raw) if low else 0
    return failed if failed else IN_VALUES


@njit(cache=True, nogil=True)
def _head(source: U8, at: int) -> U32:
    """The bits before bit ``at`` as words, zeros behind them."""
    size = (at + 7) // 8
    head = np.zeros((size + 3) // 4, np.uint32)
    for i in range(size):
        byte = np.uint32(source[i])
        if i == size - 1 and at & 7:
            byte &= np.uint32((1 << (at & 7)) - 1)
        head[i >> 2] |= byte << np.uint32(8 * (i & 3))
    return head


@njit(cache=True, nogil=True)
def _to_words(data: U8, words: U32) -> None:
    """Bytes as little-endian words, zeros behind them."""
    words[data.size // 4 :] = 0
    for i in range(data.size // 4):
        words[i] = _word(data, 4 * i)
    for i in range(data.size // 4 * 4, data.size):
        words[i >> 2] |= np.uint32(data[i]) << np.uint32(8 * (i & 3))


@njit(inline="always")
def _word(data: U8, at: int) -> np.uint32:
    low = np.uint32(data[at]) | np.uint32(data[at + 1]) << np.uint32(8)
    return low | np.uint32(data[at + 2]) << np.uint32(16) | np.uint32(data[at + 3]) << np.uint32(24)
