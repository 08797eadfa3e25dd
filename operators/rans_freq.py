"""Frequency tables of the rANS coder, compiled: as written in a chunk, and as the coder's states use them.

All that a decoder depends on is in integers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.rans_bits import (
    BAD_TABLE,
    CUT,
    I32,
    LONGEST,
    MAX_SHIFT,
    SLOTS,
    SLOTS_LOG,
    TOKENS,
    U8,
    U32,
    U64,
    get,
    put,
)
from operators.rans_law import POWER_BITS, SLOPE_BITS, fit_law, law_weights

# mypy: disable-error-code="return-value, assignment, arg-type, call-overload, operator, index"

I64 = npt.NDArray[np.int64]

STEPS: Final = 8  # levels an octave: a level is off by 4 % at most, which costs 0.001 bit a symbol
TOP_LEVEL: Final = 14 * STEPS + 1  # level 0 is a token that is absent, level 1 one in 2^14
_FRACTION = np.array([1024, 1117, 1218, 1328, 1448, 1579, 1722, 1878], np.int64)  # 1024 · 2^(i / 8)
_START: Final = 12 * STEPS  # the level expected first: a quarter of the symbols
LAW: Final = 3  # in the place of a prediction: no levels follow, but a law
SHORTEST: Final = 4  # tokens, less one, of a table that a law is tried for


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
    return ones + 1 + k if ones < LONGEST else LONGEST + 7


@njit(cache=True, nogil=True)
def _choose_levels(counts: I32, total: int, last: int, kind: int, levels: I64) -> int:
    """Levels for tokens up to ``last`` that cost least, table and symbols together; the bits of the table."""
    one, two, three = np.int64(_START), np.int64(_START), np.int64(_START)
    spread, bits = np.int64(16), np.int64(0)
    for t in range(last + 1):
        n = np.int64(counts[t])
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        best = np.int64(0)
        if n:
            exact = np.log2(n / total * 16384) * STEPS + 1
            nearest = np.int64(min(max(np.int64(np.rint(exact)), 1), TOP_LEVEL))
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
def _symbol_bits(counts: I32, weights: I32) -> float:
    """Bits of a histogram's symbols under the frequencies that weights give."""
    freq, bits = np.empty(TOKENS, np.int32), 0.0
    frequencies(weights, freq)
    for t in range(TOKENS):
        if counts[t]:
            bits += counts[t] * (SLOTS_LOG - np.log2(freq[t]))
    return bits


@njit(cache=True, nogil=True)
def _law(counts: I32, total: int, last: int, weights: I32) -> tuple[int, int, float]:
    """Power and slope of the law that suits a histogram best, and its bits, those of its symbols included."""
    if last < SHORTEST:
        return 0, 0, np.inf
    power, slope = fit_law(counts, total, last, weights)
    law_weights(power, slope, last, weights)
    return power, slope, POWER_BITS + SLOPE_BITS + _symbol_bits(counts, weights)


@njit(cache=True, nogil=True)
def law_bits(counts: I32) -> float:
    """Bits of a histogram's symbols and of a table that is a law; infinite where it is too short for one."""
    total, last = np.int64(0), np.int64(0)
    for t in range(counts.size):
        total += np.int64(counts[t])
        if counts[t]:
            last = np.int64(t)
    return 15 + _law(counts, total, last, np.empty(TOKENS, np.int32))[2]


@njit(cache=True, nogil=True)
def _choose(counts: I32, levels: I64, weights: I32) -> tuple[int, int, int, int]:
    """How to write the table of a histogram: last token, kind, power and slope of a law.

    ``levels`` (TOKENS of them) and ``weights`` are set to what was chosen.
    """
    total, last = np.int64(0), np.int64(0)
    for t in range(counts.size):
        total += np.int64(counts[t])
        if counts[t]:
            last = np.int64(t)
    kind, least = np.int64(0), np.int64(1 << 40)
    for attempt in range(LAW + 1):  # three predictions, and the best again
        candidate = np.int64(attempt) if attempt < LAW else kind
        bits = _choose_levels(counts, total, last, candidate, levels)
        if bits < least:
            kind, least = candidate, bits
    power, slope, told = _law(counts, total, last, weights)
    for t in range(weights.size):
        weights[t] = _weight(levels[t]) if t <= last else 0
    listed = least + _symbol_bits(counts, weights)
    if told < listed:
        law_weights(power, slope, last, weights)
        return last, LAW, power, slope
    return last, kind, power, slope


@njit(cache=True, nogil=True)
def put_table(out: U8, at: int, counts: I32, shift: int, weights: I32) -> int:
    """Write a table for ``counts`` and set ``weights`` to what the reader will see; the next bit.

    A token's share of the symbols is sent as a level, 8 to the octave, and that as the difference to what the levels
    before suggest, in a Rice code that adapts to them. Where a law (:mod:`operators.rans_law`) tells the shares in
    fewer bits, its misfit counted, it stands instead.
    """
    levels = np.empty(TOKENS, np.int64)
    last, kind, power, slope = _choose(counts, levels, weights)
    at = put(out, put(out, put(out, at, shift, 5), last, 8), kind, 2)
    if kind == LAW:
        return put(out, put(out, at, power, POWER_BITS), slope, SLOPE_BITS)
    one, two, three = np.int64(_START), np.int64(_START), np.int64(_START)
    spread = np.int64(16)
    for t in range(last + 1):
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        step = levels[t] - guess
        folded = 2 * step if step >= 0 else -2 * step - 1
        ones = folded >> k
        if ones < LONGEST:
            at = put(out, put(out, at, (1 << ones) - 1, ones + 1), folded & ((1 << k) - 1), k)
        else:
            at = put(out, put(out, at, (1 << LONGEST) - 1, LONGEST), levels[t], 7)
        spread += min(abs(step), 40) - (spread >> 2) + (1 if spread & 3 else 0)
        one, two, three = levels[t], one, two
    return at


@njit(cache=True, nogil=True)
def get_table(data: U8, at: int, weights: I32) -> tuple[int, int]:
    """Read a table into ``weights`` (TOKENS of them); the next bit or an error, and the shift."""
    shift, last, kind = get(data, at, 5), get(data, at + 5, 8), get(data, at + 13, 2)
    if last < 0 or last >= TOKENS or kind < 0 or shift > MAX_SHIFT:
        return BAD_TABLE, 0
    at += 15
    if kind == LAW:
        power, slope = get(data, at, POWER_BITS), get(data, at + POWER_BITS, SLOPE_BITS)
        if slope < 0:
            return CUT, 0
        law_weights(power, slope, last, weights)
        return at + POWER_BITS + SLOPE_BITS, shift
    one, two, three = np.int64(_START), np.int64(_START), np.int64(_START)
    spread = np.int64(16)
    for t in range(weights.size):
        weights[t] = 0
    present = False
    for t in range(last + 1):
        guess = _predicted(kind, one, two, three)
        k = _rice(spread)
        ones = 0
        while ones < LONGEST and get(data, at, 1) == 1:
            ones += 1
            at += 1
        if ones < LONGEST:
            low = get(data, at + 1, k)
            at += 1 + k
            folded = (ones << k) | low
            level = guess + (folded >> 1 if folded & 1 == 0 else -(folded >> 1) - 1)
        else:
            low = get(data, at, 7)
            at += 7
            level = np.int64(low)
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
    """Scale weights to frequencies that sum to SLOTS, at least 1 for each token present.

    A token that is alone has them all: its runs are not coded, since they say nothing.
    """
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


@njit(cache=True, nogil=True)
def leave_none_alone(freq: I32) -> None:
    """Give a neighbour one slot of a token that has them all: in a plan, columns that say nothing are coded too."""
    for row in range(freq.shape[0]):
        for t in range(TOKENS):
            if freq[row, t] == SLOTS:
                freq[row, t] = SLOTS - 1
                freq[row, t + 1 if t + 1 < TOKENS else t - 1] = 1
                break


@njit(cache=True, nogil=True)
def put_tables(out: U8, at: int, counts: I32, shifts: I32, freq: I32) -> int:
    """Write a table for each histogram; sets ``freq`` to the frequencies that the reader will have."""
    weights = np.empty(TOKENS, np.int32)
    for row in range(shifts.size):
        at = put_table(out, at, counts[row], np.int64(shifts[row]), weights)
        frequencies(weights, freq[row])
    return at


@njit(cache=True, nogil=True)
def get_tables(data: U8, at: int, freq: I32, shifts: I32) -> int:
    """Read as many tables as there are rows; the next bit or an error."""
    weights = np.empty(TOKENS, np.int32)
    for row in range(shifts.size):
        at, shift = get_table(data, at, weights)
        if at < 0:
            return at
        shifts[row] = shift
        frequencies(weights, freq[row])
    return at


@njit(cache=True, nogil=True)
def decoder_tables(freq: I32, out: U32) -> None:
    """Fill SLOTS entries a table: token << 24 | frequency << 12 | slot - start; frequency 0 for a token alone."""
    at = 0
    for row in range(freq.shape[0]):
        for t in range(TOKENS):
            f = freq[row, t]
            entry = (np.uint32(t) << np.uint32(24)) | (np.uint32(f & (SLOTS - 1)) << np.uint32(SLOTS_LOG))
            slots = out[at : at + (f if f < SLOTS else 1)]  # of a token alone only the first is looked at
            for j in range(slots.size):
                slots[j] = entry | np.uint32(j)
            at += f


@njit(cache=True, nogil=True)
def encoder_tables(freq: I32, code: U32, inverse: U64) -> None:
    """Fill TOKENS entries a table: frequency << 12 | start, and the reciprocal of the frequency; 0 for a token alone.

    With r = (2^44 - 1) div f, (x + 1)·r >> 44 is x div f for every x below f·2^20: the error of r takes from
    (x + 1)·2^44 / f more than nothing and less than 2^44 / f.
    """
    for row in range(freq.shape[0]):
        start = 0
        for t in range(TOKENS):
            f = freq[row, t]
            kept = f & (SLOTS - 1)
            code[row * TOKENS + t] = (np.uint32(kept) << np.uint32(SLOTS_LOG)) | np.uint32(start & (SLOTS - 1))
            inverse[row * TOKENS + t] = ((1 << 44) - 1) // f if f else 0
            start += f
