"""A plane's symbols in order of small keys, and back: a stable counting sort.

The quarters of the plane are sorted side by side, each with counters of its own, so that a counter need not wait for
itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

KEYS = 192
"""Keys lie below this."""
_PARTS = 4


@njit(cache=True, nogil=True)
def sort(symbols, keys, stored):  # type: ignore[no-untyped-def]
    """Fill ``stored`` with ``symbols`` in order of ``keys`` (uint8), all flat; equal ones keep their order."""
    place, part = _starts(keys)
    for i in range(part):
        for j in range(_PARTS):
            key = keys[j * part + i]
            stored[place[j, key]] = symbols[j * part + i]
            place[j, key] += np.uint32(1)
    for i in range(_PARTS * part, keys.size):
        stored[place[_PARTS - 1, keys[i]]] = symbols[i]
        place[_PARTS - 1, keys[i]] += np.uint32(1)


@njit(cache=True, nogil=True)
def unsort(stored, keys, symbols):  # type: ignore[no-untyped-def]
    """The inverse of :func:`sort`: fill ``symbols``."""
    place, part = _starts(keys)
    flat, one, row = place.reshape(-1), np.uint64(1), np.uint64(KEYS)
    a, quarter = np.uint64(0), np.uint64(part)
    b, c, d = quarter, quarter + quarter, quarter + quarter + quarter
    while a < quarter:  # unsigned, and each array named once: more would not stay in registers
        symbols[a] = stored[_taken(flat, np.uint64(keys[a]))]
        symbols[b] = stored[_taken(flat, np.uint64(keys[b]) + row)]
        symbols[c] = stored[_taken(flat, np.uint64(keys[c]) + row + row)]
        symbols[d] = stored[_taken(flat, np.uint64(keys[d]) + row + row + row)]
        a, b, c, d = a + one, b + one, c + one, d + one
    for i in range(np.int64(d), keys.size):
        symbols[i] = stored[_taken(flat, np.uint64(keys[i]) + row + row + row)]


@njit(inline="always")
def _taken(place, at):  # type: ignore[no-untyped-def]
    """The next place of a key, which is taken."""
    found = place[at]
    place[at] = found + np.uint32(1)
    return np.uint64(found)


@njit(cache=True, nogil=True)
def _starts(keys):  # type: ignore[no-untyped-def]
    """Where the symbols of each key begin, for each quarter of the plane, and its size; the last has what is left."""
    place, part = np.zeros((_PARTS, KEYS), np.uint32), keys.size // _PARTS
    for i in range(part):
        for j in range(_PARTS):
            place[j, keys[j * part + i]] += np.uint32(1)
    for i in range(_PARTS * part, keys.size):
        place[_PARTS - 1, keys[i]] += np.uint32(1)
    total = np.uint32(0)
    for key in range(KEYS):
        for j in range(_PARTS):
            count = place[j, key]
            place[j, key] = total
            total += count
    return place, part
