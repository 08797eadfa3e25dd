"""The interleaved states of the rANS coder, compiled: symbol i of a chunk is coded by state i mod their number.

A decoder given damaged words returns a negative code of :data:`operators.rans_bits.ERRORS` and reads nothing outside
its arrays: a table entry is found with 12 bits of the state, and words are counted.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from operators.rans_bits import BAD_STATE, CUT, I32, SLOTS, TOKENS, U8, U16, U32, U64

# mypy: disable-error-code="return-value, assignment, arg-type, operator"
_HALF = np.uint32(1 << 16)
_LOW = np.uint32(SLOTS - 1)
_U12, _U16, _U24 = np.uint32(12), np.uint32(16), np.uint32(24)


@njit(inline="always")
def _encode_row(
    tokens: U8,
    i: np.uint64,
    lanes: int,
    base: np.uint64,
    code: U32,
    inverse: U64,
    state: U32,
    words: U16,
    at: np.uint64,
) -> np.uint64:
    for j in range(lanes - 1, -1, -1):
        lane = np.uint64(j)
        t = base + np.uint64(tokens[i + lane])
        c = code[t]
        f = c >> _U12
        x = state[lane]
        spill = x >= (f << np.uint32(20))
        words[at] = np.uint16(x & np.uint32(0xFFFF))
        at -= np.uint64(spill)
        x = (x >> _U16) if spill else x
        q = np.uint32((np.uint64(x) + np.uint64(1)) * inverse[t] >> np.uint64(44))
        state[lane] = x + (c & _LOW) + q * (np.uint32(SLOTS) - f)
    return at


@njit(cache=True, nogil=True)
def encode_lanes(tokens: U8, count: int, ends: I32, ids: U8, code: U32, inverse: U64, state: U32, words: U16) -> int:
    """Code ``count`` tokens, last first; ``words`` fills from its end. Where it begins.

    Run s ends before token ``ends[s]``, a multiple of the number of states, and is coded by table ``ids[s]``, which
    must have a frequency for each of its tokens.
    """
    lanes = state.size
    at = np.uint64(words.size - 1)  # the place of the next word
    for s in range(ends.size - 1, -1, -1):
        base = np.uint64(ids[s]) * np.uint64(TOKENS)
        begin = np.int64(ends[s - 1]) if s else np.int64(0)
        if code[base + np.uint64(tokens[begin])] >> _U12 == 0:  # a token alone says nothing
            continue
        rows, rest = divmod(max(min(count, np.int64(ends[s])) - begin, 0), lanes)
        if rest:
            at = _encode_row(tokens, np.uint64(begin + rows * lanes), rest, base, code, inverse, state, words, at)
        for r in range(rows - 1, -1, -1):  # a number of lanes known to the compiler is twice as fast
            i = np.uint64(begin + r * lanes)
            if lanes == 8:
                at = _encode_row(tokens, i, 8, base, code, inverse, state, words, at)
            elif lanes == 4:
                at = _encode_row(tokens, i, 4, base, code, inverse, state, words, at)
            else:
                at = _encode_row(tokens, i, lanes, base, code, inverse, state, words, at)
    return np.int64(at) + 1


@njit(cache=True, nogil=True)
def decode_lanes(words: U16, count: int, ends: I32, ids: U8, table: U32, state: U32, tokens: U8) -> int:
    """Decode ``count`` tokens; the words read, or an error. ``state`` is left as the encoder found it."""
    lanes = np.uint64(state.size)
    p, size = np.uint64(0), np.uint64(words.size)
    i = np.uint64(0)
    for s in range(ends.size):
        base = np.uint64(ids[s]) * np.uint64(SLOTS)
        stop = np.uint64(min(count, np.int64(ends[s])))
        if (table[base] >> _U12) & _LOW == 0:
            tokens[i : max(i, stop)] = np.uint8(table[base] >> _U24)
            i = max(i, stop)
        if lanes == 8:
            i, p = _decode_eights(words, p, i, stop, table[base : base + np.uint64(SLOTS)], state, tokens)
        while i < stop:  # fewer lanes, a rest, the end of the words
            row = min(lanes, stop - i)
            for lane in range(row):
                x = state[lane]
                e = table[base + np.uint64(x & _LOW)]
                x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
                if x < _HALF:
                    if p >= size:
                        return CUT
                    x = (x << _U16) | np.uint32(words[p])
                    p += np.uint64(1)
                state[lane] = x
                tokens[i + lane] = np.uint8(e >> _U24)
            i += row
    return np.int64(p)


@njit(inline="always")
def _step(x: np.uint32, words: U16, p: np.uint64, table: U32) -> tuple[np.uint32, np.uint64, np.uint8]:
    """A state after one token, where the next word is, and the token."""
    e = table[np.uint64(x & _LOW)]
    x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
    w = np.uint32(words[p])
    short = x < _HALF
    return ((x << _U16) | w) if short else x, p + np.uint64(short), np.uint8(e >> _U24)


@njit(cache=True, nogil=True)
def _decode_eights(
    words: U16, p: np.uint64, i: np.uint64, stop: np.uint64, table: U32, state: U32, tokens: U8
) -> tuple[np.uint64, np.uint64]:
    """Whole rows of eight states, in registers, up to token ``stop`` or near the last word; the next of both."""
    a, b, c, d, e, f, g, h = state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
    row = np.uint64(8)
    last = np.uint64(words.size)
    while i + row <= stop and p + row <= last:
        a, p, tokens[i] = _step(a, words, p, table)
        b, p, tokens[i + np.uint64(1)] = _step(b, words, p, table)
        c, p, tokens[i + np.uint64(2)] = _step(c, words, p, table)
        d, p, tokens[i + np.uint64(3)] = _step(d, words, p, table)
        e, p, tokens[i + np.uint64(4)] = _step(e, words, p, table)
        f, p, tokens[i + np.uint64(5)] = _step(f, words, p, table)
        g, p, tokens[i + np.uint64(6)] = _step(g, words, p, table)
        h, p, tokens[i + np.uint64(7)] = _step(h, words, p, table)
        i += row
    state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7] = a, b, c, d, e, f, g, h
    return i, p


@njit(cache=True, nogil=True)
def replace_uncodable(tokens: U8, ends: I32, ids: U8, freq: I32, instead: U8, places: I32) -> int:
    """Set tokens without a frequency to one that has; ``places`` gets where, as far as there is room. How many.

    Run s, or column s where there are no ``ends``, is coded by table ``ids[s]``; ``instead`` is a token of each table.
    """
    count, s = 0, 0
    for i in range(tokens.size):
        while ends.size and i >= ends[s]:
            s += 1
        if freq[ids[s], tokens[i]] == 0:
            tokens[i] = instead[ids[s]]
            if count < places.size:
                places[count] = i
            count += 1
        if ends.size == 0:
            s = s + 1 if s + 1 < ids.size else 0
    return count


@njit(inline="always")
def _encode_mixed_row(
    tokens: U8,
    i: np.uint64,
    lanes: int,
    bases: U32,
    column: np.uint64,
    code: U32,
    inverse: U64,
    state: U32,
    words: U16,
    at: np.uint64,
) -> np.uint64:
    for j in range(lanes - 1, -1, -1):
        lane = np.uint64(j)
        t = np.uint64(bases[column + lane]) + np.uint64(tokens[i + lane])
        c = code[t]
        f = c >> _U12
        x = state[lane]
        spill = x >= (f << np.uint32(20))
        words[at] = np.uint16(x & np.uint32(0xFFFF))
        at -= np.uint64(spill)
        x = (x >> _U16) if spill else x
        q = np.uint32((np.uint64(x) + np.uint64(1)) * inverse[t] >> np.uint64(44))
        state[lane] = x + (c & _LOW) + q * (np.uint32(SLOTS) - f)
    return at


@njit(cache=True, nogil=True)
def encode_columns(tokens: U8, count: int, plan: U8, code: U32, inverse: U64, state: U32, words: U16) -> int:
    """Like :func:`encode_lanes`, the table of symbol i being ``plan[i mod len(plan)]``."""
    lanes = state.size
    bases = _tiled(plan, lanes, TOKENS)
    at = np.uint64(words.size - 1)
    rows, rest = divmod(count, lanes)
    if rest:
        column = np.uint64(rows * lanes % bases.size)
        at = _encode_mixed_row(tokens, np.uint64(rows * lanes), rest, bases, column, code, inverse, state, words, at)
    for r in range(rows - 1, -1, -1):
        i, column = np.uint64(r * lanes), np.uint64(r * lanes % bases.size)
        if lanes == 8:
            at = _encode_mixed_row(tokens, i, 8, bases, column, code, inverse, state, words, at)
        elif lanes == 4:
            at = _encode_mixed_row(tokens, i, 4, bases, column, code, inverse, state, words, at)
        else:
            at = _encode_mixed_row(tokens, i, lanes, bases, column, code, inverse, state, words, at)
    return np.int64(at) + 1


@njit(cache=True, nogil=True)
def _tiled(plan: U8, lanes: int, entries: int) -> U32:
    """Where the table of each column begins, repeated until rows of ``lanes`` symbols fit a whole number of times."""
    times = 1
    while plan.size * times % lanes:
        times += 1
    bases = np.empty(plan.size * times, np.uint32)
    for i in range(bases.size):
        bases[i] = plan[i % plan.size] * entries
    return bases


@njit(cache=True, nogil=True)
def decode_columns(words: U16, count: int, plan: U8, table: U32, state: U32, tokens: U8) -> int:
    """Like :func:`decode_lanes`, the table of symbol i being ``plan[i mod len(plan)]``."""
    lanes, last = np.uint64(state.size), np.uint64(count)
    bases = _tiled(plan, state.size, SLOTS)
    column, columns = np.uint64(0), np.uint64(bases.size)
    p, size = np.uint64(0), np.uint64(words.size)
    i = np.uint64(0)
    while i < last:
        row = min(lanes, last - i)
        if p + row <= size:
            for lane in range(row):
                x = state[lane]
                e = table[bases[column + lane] + (x & _LOW)]
                x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
                w = np.uint32(words[p])
                short = x < _HALF
                state[lane] = ((x << _U16) | w) if short else x
                p += np.uint64(short)
                tokens[i + lane] = np.uint8(e >> _U24)
        else:  # near the end of the words
            for lane in range(row):
                x = state[lane]
                e = table[bases[column + lane] + (x & _LOW)]
                x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
                if x < _HALF:
                    if p >= size:
                        return CUT
                    x = (x << _U16) | np.uint32(words[p])
                    p += np.uint64(1)
                state[lane] = x
                tokens[i + lane] = np.uint8(e >> _U24)
        i += row
        column += row
        column = np.uint64(0) if column >= columns else column
    return np.int64(p)


@njit(cache=True, nogil=True)
def put_tail(tokens: U8, start: int, width: int, each: int, state: U32) -> None:
    """Hide the last tokens in the states that the encoder starts from, ``each`` a lane from the third on."""
    for j in range(tokens.size - start):
        lane, place = 2 + j // each, j % each
        state[lane] |= np.uint32(tokens[start + j]) << np.uint32(place * width)


@njit(cache=True, nogil=True)
def get_tail(state: U32, start: int, width: int, each: int, present: U8, tokens: U8) -> int:
    """Take the tokens out again; 0 or an error when a state holds anything else."""
    for lane in range(state.size):
        if (state[lane] >> _U16) != np.uint32(1):
            return BAD_STATE
    mask = (np.uint32(1) << np.uint32(width)) - np.uint32(1)
    for j in range(tokens.size - start):
        lane, place = 2 + j // each, j % each
        t = (state[lane] >> np.uint32(place * width)) & mask
        if t >= TOKENS or not present[t]:
            return BAD_STATE
        state[lane] ^= t << np.uint32(place * width)
        tokens[start + j] = t
    for lane in range(2, state.size):
        if state[lane] != _HALF:
            return BAD_STATE
    return 0
