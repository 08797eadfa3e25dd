"""Bit fields of the rANS coder, and what its compiled parts share.

Everything that a decoder runs checks its bounds itself, because numba does not: a kernel given damaged bytes returns
a negative code (``ERRORS``) and touches nothing outside its arrays.

numba caches what it compiled by the file of the caller: whoever changes a function or a constant that another file
uses must remove ``operators/__pycache__`` (``make clean``).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

# mypy: disable-error-code="return-value, assignment, arg-type, call-overload, no-any-return, operator, index"
# (numba's integers are Python's to the compiler and NumPy's to the type checker)

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
GRAIN: Final = 64  # runs of a table begin at multiples, which must be multiples of the number of states

CUT, BAD_TABLE, BAD_STATE, BAD_SUM, TOO_WIDE, BAD_HEADER = -1, -2, -3, -4, -5, -6
ERRORS: Final[dict[int, str]] = {
    CUT: "coded bytes end too early or too late",
    BAD_TABLE: "a frequency table or its number is malformed",
    BAD_STATE: "a coder state does not return to its origin",
    BAD_SUM: "the check sum does not agree",
    TOO_WIDE: "a value does not fit the data type",
    BAD_HEADER: "the header is malformed",
}

LONGEST: Final = 15  # ones before a level is given outright


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
        return np.int64(-1)
    value = np.int64(0)
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


@njit(cache=True, nogil=True)
def put_states(out: U8, at: int, state: U32) -> int:
    """Write coder states, 2^16 … 2^32 - 1 each: the length less 17 and what is below the highest bit. The next bit."""
    for lane in range(state.size):
        length = bit_length(np.int64(state[lane])) - 1
        at = put(out, put(out, at, length - 16, 4), np.int64(state[lane]) & ((1 << length) - 1), length)
    return at


@njit(cache=True, nogil=True)
def put_runs(out: U8, at: int, ends: I32, ids: U8, width: int) -> int:
    """Write runs: the table of each and its length, in pieces of GRAIN, but the last run's. The next bit.

    A length is coded after Rice, with low bits after the length before. Ends but the last are multiples of GRAIN.
    """
    begin, k = np.int64(0), np.int64(4)
    for s in range(ends.size if width else 0):
        at = put(out, at, np.int64(ids[s]), width)
        pieces = (np.int64(ends[s]) - begin + GRAIN - 1) // GRAIN - 1
        begin = np.int64(ends[s])
        ones = min(pieces >> k, LONGEST)
        at = put(out, at, (1 << ones) - 1, ones + 1 if ones < LONGEST else ones)
        at = put(out, at, pieces if ones == LONGEST else pieces & ((1 << k) - 1), 26 if ones == LONGEST else k)
        k = max(bit_length(pieces) - 1, 0)
    return at


@njit(cache=True, nogil=True)
def get_runs(data: U8, at: int, width: int, tables: int, count: int, ends: I32, ids: U8) -> tuple[int, int]:
    """Read runs that cover ``count`` symbols; the next bit or an error, and how many runs there are.

    ``ends`` and ``ids`` have room for a run a piece.
    """
    if width == 0:
        ends[0], ids[0] = count, 0
        return at, 1
    begin, k, s = np.int64(0), np.int64(4), 0
    while begin < count:
        table = get(data, at, width)
        at += width
        ones = 0
        while ones < LONGEST and get(data, at, 1) == 1:
            ones += 1
            at += 1
        if ones == LONGEST:
            pieces = get(data, at, 26)
            at += 26
        else:
            pieces = get(data, at + 1, k)
            at += 1 + k
            if pieces >= 0:
                pieces += ones << k
        if pieces < 0 or table < 0:
            return CUT, 0
        k = max(bit_length(pieces) - 1, 0)
        begin += (pieces + 1) * GRAIN
        if table >= tables or begin >= count + GRAIN:
            return BAD_TABLE, 0
        ends[s], ids[s] = min(begin, count), table
        s += 1
    return at, s
