"""Compiled inner loops of the rANS coder: tokens, bit fields, frequency tables and the interleaved states.

Everything a decoder runs checks its bounds itself, because numba does not: a kernel given damaged bytes returns a
negative code (``ERRORS``) and touches nothing outside its arrays. All arithmetic that a decoder depends on is in
integers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]

DIRECT: Final = 128  # values below are their own token
TOKENS: Final = 228  # 128 direct, then exponents 7 … 31 with two mantissa bits each
SLOTS_LOG: Final = 12
SLOTS: Final = 1 << SLOTS_LOG
MAX_SHIFT: Final = 24

CUT, BAD_TABLE, BAD_STATE, BAD_SUM, TOO_WIDE = -1, -2, -3, -4, -5
ERRORS: Final[dict[int, str]] = {
    CUT: "coded bytes end too early or too late",
    BAD_TABLE: "a frequency table or its number is malformed",
    BAD_STATE: "a coder state does not return to its origin",
    BAD_SUM: "the check sum does not agree",
    TOO_WIDE: "a value does not fit the data type",
}

_HALF = np.uint32(1 << 16)
_LOW = np.uint32(SLOTS - 1)
_U12, _U16, _U24 = np.uint32(12), np.uint32(16), np.uint32(24)


# ---- bit fields, least significant bit first


@njit(cache=True, nogil=True)
def put(out: U8, at: int, value: int, width: int) -> int:
    """Write ``width`` bits of ``value`` into zeroed ``out`` at bit ``at``; the next bit. The caller made room."""
    for i in range(width):
        if (value >> i) & 1:
            out[(at + i) >> 3] |= np.uint8(1 << ((at + i) & 7))
    return at + width


@njit(cache=True, nogil=True)
def get(data: U8, at: int, width: int) -> int:
    """Read ``width`` bits at bit ``at``; -1 past the end."""
    if at < 0 or at + width > data.size * 8:
        return -1
    value = 0
    for i in range(width):
        value |= ((np.int64(data[(at + i) >> 3]) >> ((at + i) & 7)) & 1) << i
    return value


@njit(cache=True, nogil=True)
def bit_length(value: int) -> int:
    """Bits of a number that is not negative."""
    n = 0
    while value >> n:
        n += 1
    return n


# ---- frequency tables


STEPS: Final = 8  # levels an octave: a level is off by 4 % at most, which costs 0.001 bit a symbol
TOP_LEVEL: Final = 14 * STEPS + 1  # level 0 is a token that is absent, level 1 one in 2^14
_FRACTION = np.rint(1024 * 2.0 ** (np.arange(STEPS) / STEPS)).astype(np.int32)
_LONGEST = 15  # ones before a level is given outright


@njit(cache=True, nogil=True)
def _weight(level: int) -> int:
    return _FRACTION[(level - 1) % STEPS] << ((level - 1) // STEPS) if level else 0


@njit(cache=True, nogil=True)
def _predicted(kind: int, one: int, two: int, three: int) -> int:
    """The level that is expected after three others: the last but one (signs alternate), or a line through them."""
    if one == 0:
        return 0
    if kind == 0 or three == 0:
        return two if two else one
    return min(max(two + two - three + (one - two), 1), TOP_LEVEL) if kind == 1 else one


@njit(cache=True, nogil=True)
def _rice(spread: int) -> int:
    """Low bits of a difference, from the running mean (times 4) of those before."""
    k = 0
    while k < 5 and (4 << k) < spread:
        k += 1
    return k


@njit(cache=True, nogil=True)
def _code_length(step: int, k: int) -> int:
    folded = 2 * step if step >= 0 else -2 * step - 1
    ones = folded >> k
    return ones + 1 + k if ones < _LONGEST else _LONGEST + 7


@njit(cache=True, nogil=True)
def _choose_levels(counts: I32, total: int, last: int, kind: int, levels: I32) -> int:
    """Levels for tokens up to ``last`` that cost least, table and symbols together; the bits of the table."""
    one, two, three, spread, bits = STEPS * 8, STEPS * 8, STEPS * 8, 16, 0
    for t in range(last + 1):
        n = counts[t]
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        best = 0
        if n:
            exact = np.log2(n / total * 16384) * STEPS + 1
            nearest = min(max(int(np.rint(exact)), 1), TOP_LEVEL)
            best = nearest
            low, high = min(nearest, max(guess, 1)), max(nearest, guess)
            least = 1e18
            for level in range(max(low, nearest - 24), min(high, nearest + 24) + 1):
                error = (max(level, 17) - max(exact, 17.0)) * (0.6931 / STEPS)  # below 1 in 4096 all are alike
                cost = n * 0.7213 * error * error + _code_length(level - guess, k)
                if cost < least:
                    least, best = cost, level
        elif guess:  # may be cheaper to leave it in than to say that it is absent
            share = max(2.0 ** ((guess - 1) / STEPS) / 16384, 1 / SLOTS)
            if total * share * 1.4427 + 1 + k < _code_length(-guess, k) + 3:
                best = guess
        step = best - guess
        bits += _code_length(step, k)
        spread += min(abs(step), 40) - (spread >> 2) + (1 if spread & 3 else 0)
        levels[t] = best
        one, two, three = best, one, two
    return bits


@njit(cache=True, nogil=True)
def put_table(out: U8, at: int, counts: I32, shift: int, weights: I32) -> int:
    """Write a table for ``counts`` and set ``weights`` to what the reader will see; the next bit.

    A token's share of the symbols is sent as a level, 8 to the octave, and that as the difference to what the levels
    before suggest, in a Rice code that adapts to them.
    """
    total, last = 0, 0
    for t in range(counts.size):
        total += counts[t]
        if counts[t]:
            last = t
    levels = np.empty(last + 1, np.int32)
    kind, least = 0, 1 << 40
    for candidate in range(3):
        bits = _choose_levels(counts, total, last, candidate, levels)
        if bits < least:
            kind, least = candidate, bits
    _choose_levels(counts, total, last, kind, levels)
    at = put(out, put(out, put(out, at, shift, 5), last, 8), kind, 2)
    one, two, three, spread = STEPS * 8, STEPS * 8, STEPS * 8, 16
    weights[:] = 0
    for t in range(last + 1):
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        step = levels[t] - guess
        folded = 2 * step if step >= 0 else -2 * step - 1
        ones = folded >> k
        if ones < _LONGEST:
            at = put(out, put(out, at, (1 << ones) - 1, ones + 1), folded & ((1 << k) - 1), k)
        else:
            at = put(out, put(out, at, (1 << _LONGEST) - 1, _LONGEST), levels[t], 7)
        spread += min(abs(step), 40) - (spread >> 2) + (1 if spread & 3 else 0)
        weights[t] = _weight(levels[t])
        one, two, three = levels[t], one, two
    return at


@njit(cache=True, nogil=True)
def get_table(data: U8, at: int, weights: I32) -> tuple[int, int]:
    """Read a table into ``weights`` (TOKENS of them); the next bit or an error, and the shift."""
    shift, last, kind = get(data, at, 5), get(data, at + 5, 8), get(data, at + 13, 2)
    if last < 0 or last >= TOKENS or kind < 0 or shift > MAX_SHIFT:
        return BAD_TABLE, 0
    at += 15
    one, two, three, spread = STEPS * 8, STEPS * 8, STEPS * 8, 16
    weights[:] = 0
    present = False
    for t in range(last + 1):
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        ones = 0
        while ones < _LONGEST and get(data, at, 1) == 1:
            ones += 1
            at += 1
        if ones < _LONGEST:
            low = get(data, at + 1, k)
            at += 1 + k
            folded = (ones << k) | low
            level = guess + (folded >> 1 if folded & 1 == 0 else -(folded >> 1) - 1)
        else:
            low = get(data, at, 7)
            at += 7
            level = low
        if low < 0:
            return CUT, 0
        if level < 0 or level > TOP_LEVEL:
            return BAD_TABLE, 0
        spread += min(abs(level - guess), 40) - (spread >> 2) + (1 if spread & 3 else 0)
        weights[t] = _weight(level)
        present = present or level > 0
        one, two, three = level, one, two
    return (at, shift) if present else (BAD_TABLE, 0)


@njit(cache=True, nogil=True)
def frequencies(weights: I32, freq: I32) -> None:
    """Scale weights to frequencies that sum to SLOTS, at least 1 for each token present and none above SLOTS - 1."""
    total = np.int64(0)
    for t in range(TOKENS):
        total += weights[t]
    left, top = SLOTS, 0
    for t in range(TOKENS):
        freq[t] = 0
        if weights[t]:
            freq[t] = max(1, (np.int64(weights[t]) * SLOTS + total // 2) // total)
            left -= freq[t]
            if freq[t] > freq[top]:
                top = t
    while left != 0:  # rounding: take from or give to the most frequent, where it costs least
        step = left
        if left < 0:
            step = -min(-left, max(1, freq[top] // 64))
        freq[top] += step
        left -= step
        for t in range(TOKENS):
            if freq[t] > freq[top]:
                top = t
    if freq[top] == SLOTS:  # a frequency must fit 12 bits
        freq[top] = SLOTS - 1
        freq[top + 1 if top + 1 < TOKENS else top - 1] = 1


@njit(cache=True, nogil=True)
def decoder_table(freq: I32, out: U32) -> None:
    """Fill SLOTS entries: token << 24 | frequency << 12 | slot - start."""
    at = 0
    for t in range(TOKENS):
        entry = (np.uint32(t) << _U24) | (np.uint32(freq[t]) << _U12)
        for j in range(freq[t]):
            out[at + j] = entry | np.uint32(j)
        at += freq[t]


@njit(cache=True, nogil=True)
def encoder_table(freq: I32, code: U32, inverse: U64) -> None:
    """Fill TOKENS entries: frequency << 12 | start, and the reciprocal of the frequency.

    With r = (2^44 - 1) div f, (x + 1)·r >> 44 is x div f for every x below f·2^20: the error of r takes from
    (x + 1)·2^44 / f more than nothing and less than 2^44 / f.
    """
    start = 0
    for t in range(TOKENS):
        code[t] = (np.uint32(freq[t]) << _U12) | np.uint32(start & (SLOTS - 1))
        inverse[t] = ((1 << 44) - 1) // freq[t] if freq[t] else 0
        start += freq[t]


# ---- values and tokens


@njit(cache=True, nogil=True)
def zigzag(values: I32, signed: bool, out: U32) -> int:
    """Fold signed values to unsigned ones; the bitwise or of all."""
    every = np.uint32(0)
    if signed:
        for i in range(values.size):
            v = values[i]
            u = np.uint32((v << np.int32(1)) ^ (v >> np.int32(31)))
            out[i] = u
            every |= u
    else:
        for i in range(values.size):
            u = np.uint32(values[i])
            out[i] = u
            every |= u
    return np.int64(every)


@njit(cache=True, nogil=True)
def raw_width(token: int, shift: int) -> int:
    """Bits of a value that follow its token as they are."""
    return shift + (((token - DIRECT) >> 2) + 5 if token >= DIRECT else 0)


@njit(cache=True, nogil=True)
def tokenize(values: U32, block: int, shifts: I32, tokens: U8) -> int:
    """Token of each value with its block's shift; how many raw bits follow."""
    total = np.int64(0)
    real = np.empty(block, np.float32)
    bits = real.view(np.int32)
    for b in range(shifts.size):
        v, t = values[b * block : (b + 1) * block], tokens[b * block : (b + 1) * block]
        shift = np.uint32(shifts[b] & 31)
        every = np.uint32(0)
        for i in range(v.size):
            every |= v[i]
        total += shifts[b] * v.size
        if every >> shift < DIRECT:
            for i in range(v.size):
                t[i] = np.uint8(v[i] >> shift)
            continue
        for i in range(v.size):  # exponent and mantissa are those of a float; half the value fits a signed one
            half = np.int32(v[i] >> shift >> np.uint32(1))
            half = half & np.int32(0x7FFFFF80) if half >= np.int32(1 << 24) else half  # converts without rounding
            real[i] = np.float32(half)
        extra = np.int32(0)
        for i in range(v.size):
            high = v[i] >> shift
            k = np.int32(np.int32(DIRECT - ((127 + 6) << 2)) + (bits[i] >> np.int32(21)))
            large = high >= np.uint32(DIRECT)
            t[i] = np.uint8(k) if large else np.uint8(high)
            extra += (((k - np.int32(DIRECT)) >> np.int32(2)) + np.int32(5)) if large else np.int32(0)
        total += extra
    return total


@njit(cache=True, nogil=True)
def raw_bits(tokens: U8, block: int, shifts: I32) -> int:
    """How many raw bits belong to the tokens."""
    total = np.int64(0)
    for b in range(shifts.size):
        t = tokens[b * block : (b + 1) * block]
        extra = np.int32(0)
        for i in range(t.size):
            k = np.int32(t[i])
            extra += (((k - np.int32(DIRECT)) >> np.int32(2)) + np.int32(5)) if k >= np.int32(DIRECT) else np.int32(0)
        total += shifts[b] * t.size + extra
    return total


@njit(cache=True, nogil=True)
def put_raw(values: U32, tokens: U8, block: int, shifts: I32, out: U32) -> None:
    """Write the raw bits of each value into ``out``, which has room for one number more."""
    held, filled, at = np.uint64(0), np.uint64(0), np.uint64(0)
    for b in range(shifts.size):
        v, t = values[b * block : (b + 1) * block], tokens[b * block : (b + 1) * block]
        shift = np.uint64(shifts[b])
        for i in range(v.size):
            k = np.uint64(t[i])
            width = (
                shift + ((k - np.uint64(DIRECT)) >> np.uint64(2)) + np.uint64(5) if k >= np.uint64(DIRECT) else shift
            )
            held |= (np.uint64(v[i]) & ((np.uint64(1) << width) - np.uint64(1))) << filled
            filled += width
            out[at] = np.uint32(held & np.uint64(0xFFFFFFFF))
            full = filled >> np.uint64(5)
            at += full
            held >>= full << np.uint64(5)
            filled &= np.uint64(31)
    out[at] = np.uint32(held & np.uint64(0xFFFFFFFF))


@njit(cache=True, nogil=True)
def values_of(tokens: U8, block: int, shifts: I32, raw: U32, signed: bool, limit: int, out: I32) -> int:
    """Put tokens and raw bits together; 0 or an error. ``raw`` must hold all raw bits and 64 more."""
    at, every = np.uint64(0), np.uint64(0)
    for b in range(shifts.size):
        t, o = tokens[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        shift = np.uint64(shifts[b])
        for i in range(t.size):
            k = np.uint64(t[i])
            large = k >= np.uint64(DIRECT)
            width = shift + ((k - np.uint64(DIRECT)) >> np.uint64(2)) + np.uint64(5) if large else shift
            k = np.uint64(4) | (k & np.uint64(3)) if large else k
            place = at >> np.uint64(5)
            word = np.uint64(raw[place]) | np.uint64(raw[place + np.uint64(1)]) << np.uint64(32)
            u = k << width | (word >> (at & np.uint64(31))) & ((np.uint64(1) << width) - np.uint64(1))
            at += width
            every |= u
            o[i] = np.int32(np.uint32(u & np.uint64(0xFFFFFFFF)))
    if every > np.uint64(limit):
        return TOO_WIDE
    if signed:
        for i in range(out.size):
            w = out[i]
            out[i] = np.int32((w >> np.int32(1)) & np.int32(0x7FFFFFFF)) ^ -(w & np.int32(1))
    return 0


@njit(cache=True, nogil=True)
def unfold(tokens: U8, signed: bool, out: npt.NDArray[np.int8]) -> None:
    """Tokens that are values themselves, back to signed ones."""
    if signed:
        for i in range(tokens.size):
            t = tokens[i]
            out[i] = np.int8((t >> np.uint8(1)) ^ (np.uint8(0) - (t & np.uint8(1))))
    else:
        for i in range(tokens.size):
            out[i] = np.int8(tokens[i])


@njit(cache=True, nogil=True)
def check_sum(data: U8, seed: int) -> int:
    """32-bit sum of bytes weighted by odd multiples of their place: one changed byte always changes it."""
    h = np.uint32(0)
    for i in range(data.size):
        weight = np.uint32((i * 0x9E3779B2) | 1)
        h = np.uint32(h + np.uint32(np.uint32(data[i] + 1) * weight))
    return np.int64(np.uint32(h ^ np.uint32(seed)))


# ---- the interleaved states: symbol i is coded by lane i mod lanes


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
def encode_lanes(tokens: U8, count: int, block: int, ids: U8, code: U32, inverse: U64, state: U32, words: U16) -> int:
    """Code ``count`` tokens, last first; ``words`` fills from its end. Where it begins.

    Every token must have a frequency in its block's table.
    """
    lanes = state.size
    at = np.uint64(words.size - 1)  # the place of the next word
    for b in range((count + block - 1) // block - 1, -1, -1):
        base = np.uint64(ids[b]) * np.uint64(TOKENS)
        rows, rest = divmod(min(count, (b + 1) * block) - b * block, lanes)
        if rest:
            at = _encode_row(tokens, np.uint64(b * block + rows * lanes), rest, base, code, inverse, state, words, at)
        for r in range(rows - 1, -1, -1):  # a number of lanes known to the compiler is twice as fast
            i = np.uint64(b * block + r * lanes)
            if lanes == 8:
                at = _encode_row(tokens, i, 8, base, code, inverse, state, words, at)
            else:
                at = _encode_row(tokens, i, lanes, base, code, inverse, state, words, at)
    return np.int64(at) + 1


@njit(cache=True, nogil=True)
def decode_lanes(words: U16, count: int, block: int, ids: U8, table: U32, state: U32, tokens: U8) -> int:
    """Decode ``count`` tokens; the words read, or an error. ``state`` is left as the encoder found it."""
    lanes = np.uint64(state.size)
    p, size = np.uint64(0), np.uint64(words.size)
    for b in range((count + block - 1) // block):
        base = np.uint32(ids[b]) << _U12
        stop = np.uint64(min(count, (b + 1) * block))
        i = np.uint64(b * block)
        while i < stop:
            row = min(lanes, stop - i)
            if p + row <= size:
                for lane in range(row):
                    x = state[lane]
                    e = table[base + (x & _LOW)]
                    x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
                    w = np.uint32(words[p])
                    short = x < _HALF
                    state[lane] = ((x << _U16) | w) if short else x
                    p += np.uint64(short)
                    tokens[i + lane] = np.uint8(e >> _U24)
            else:  # near the end of the words
                for lane in range(row):
                    x = state[lane]
                    e = table[base + (x & _LOW)]
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


@njit(cache=True, nogil=True)
def codable(tokens: U8, plan: U8, freq: I32) -> bool:
    """Whether each token has a frequency in the table of its column."""
    column = 0
    for i in range(tokens.size):
        if freq[plan[column], tokens[i]] == 0:
            return False
        column = column + 1 if column + 1 < plan.size else 0
    return True


@njit(cache=True, nogil=True)
def encode_columns(tokens: U8, count: int, plan: U8, code: U32, inverse: U64, state: U32, words: U16) -> int:
    """Like :func:`encode_lanes`, the table of symbol i being ``plan[i mod len(plan)]``."""
    lanes = state.size
    at = np.uint64(words.size - 1)
    lane, last = np.uint64(max(0, count - 1) % lanes), np.uint64(lanes - 1)
    column, edge = np.uint64(max(0, count - 1) % plan.size), np.uint64(plan.size - 1)
    for k in range(count - 1, -1, -1):
        t = np.uint64(plan[column]) * np.uint64(TOKENS) + np.uint64(tokens[k])
        c = code[t]
        f = c >> _U12
        x = state[lane]
        spill = x >= (f << np.uint32(20))
        words[at] = np.uint16(x & np.uint32(0xFFFF))
        at -= np.uint64(spill)
        x = (x >> _U16) if spill else x
        q = np.uint32((np.uint64(x) + np.uint64(1)) * inverse[t] >> np.uint64(44))
        state[lane] = x + (c & _LOW) + q * (np.uint32(SLOTS) - f)
        lane = lane - np.uint64(1) if lane else last
        column = column - np.uint64(1) if column else edge
    return np.int64(at) + 1


@njit(cache=True, nogil=True)
def decode_columns(words: U16, count: int, plan: U8, table: U32, state: U32, tokens: U8) -> int:
    """Like :func:`decode_lanes`, the table of symbol i being ``plan[i mod len(plan)]``."""
    lane, lanes = np.uint64(0), np.uint64(state.size)
    column, columns = np.uint64(0), np.uint64(plan.size)
    p, size = np.uint64(0), np.uint64(words.size)
    for i in range(np.uint64(count)):
        x = state[lane]
        e = table[(np.uint32(plan[column]) << _U12) + (x & _LOW)]
        x = ((e >> _U12) & _LOW) * (x >> _U12) + (e & _LOW)
        if p < size:
            w = np.uint32(words[p])
            short = x < _HALF
            x = ((x << _U16) | w) if short else x
            p += np.uint64(short)
        elif x < _HALF:
            return CUT
        state[lane] = x
        tokens[i] = np.uint8(e >> _U24)
        lane += np.uint64(1)
        lane = np.uint64(0) if lane == lanes else lane
        column += np.uint64(1)
        column = np.uint64(0) if column == columns else column
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
