"""Side data of a rANS chunk: which table codes which run, and the values that shared tables do not know."""

from __future__ import annotations

import numpy as np

from operators import rans_bits as k
from operators import rans_lanes as lanes
from operators import raw
from operators.rans_cluster import UNIT, block_counts
from operators.rans_runs import cheapest_path
from operators.rans_tables import TABLE_BYTES, Tables, join_runs, split
from operators.rans_tail import MOST_BYTES

MOST_EXCEPTIONS = 255  # of a chunk, and one value in 64


def room(count: int, tables: int) -> int:
    """Bytes that a header for ``count`` symbols takes at most."""
    more = MOST_BYTES if tables else 10 * MOST_EXCEPTIONS
    return 128 + 6 * (count // k.GRAIN + 1) + tables * TABLE_BYTES + more


def take(source: k.U8, at: int, width: int) -> int:
    """Read a bit field; HilbertflowError past the end."""
    value = int(k.get(source, at, width))
    if value < 0:
        raise raw.damaged("rANS", k.ERRORS[k.CUT])
    return value


RUN = 12  # bits, about, that a run more takes in a chunk's header


def choose(values: k.U32, block: int, tables: Tables) -> tuple[k.I32, k.U8]:
    """Ends and tables of runs of blocks that code the chunk in the fewest bits, the runs' own included."""
    groups = -(-values.size // block)
    ends = np.minimum(np.arange(1, groups + 1) * block, values.size).astype(np.int32)
    cost = np.empty((groups, tables.count))
    for shift in np.unique(tables.shifts):
        counts = np.zeros((groups, k.TOKENS), np.int32)
        block_counts(split(values, ends, np.full(groups, shift, np.int32)).tokens, block, counts)
        which = tables.shifts == shift
        cost[:, which] = counts.astype(np.float64) @ tables.costs()[which].T.astype(np.float64)  # whole numbers: exact
    ids = np.empty(groups, np.uint8)
    cheapest_path(cost, float(RUN * UNIT), ids)
    return join_runs(ends, ids)


def take_runs(source: k.U8, at: int, count: int, tables: int) -> tuple[int, k.I32, k.U8]:
    """Read the runs of ``count`` symbols: the next bit, their ends and tables."""
    pieces = -(-count // k.GRAIN)
    ends, ids = np.empty(pieces, np.int32), np.empty(pieces, np.uint8)
    at, runs = k.get_runs(source, at, (tables - 1).bit_length(), tables, count, ends, ids)
    if at < 0:
        raise raw.damaged("rANS", k.ERRORS[int(at)])
    return int(at), ends[:runs], ids[:runs]


def put_exceptions(
    head: k.U8, at: int, values: k.U32, tokens: k.U8, ends: k.I32, ids: k.U8, tables: Tables
) -> tuple[int, int]:
    """Write the values that the tables cannot code, and put others in their place; the next bit, and how many.

    The bit is -1 when there are too many.
    """
    places = np.empty(MOST_EXCEPTIONS, np.int32)
    instead = tables.freq.argmax(axis=1).astype(np.uint8)
    count = lanes.replace_uncodable(tokens, ends, ids, tables.freq, instead, places)
    if count > min(MOST_EXCEPTIONS, values.size // 64):
        return -1, count
    at = k.put(head, at, int(count > 0), 1)
    if count:
        at = k.put(head, at, count, 8)
        for place in places[:count].tolist():
            value, width = int(values[place]), int(values[place]).bit_length()
            at = k.put(head, k.put(head, at, place, values.size.bit_length()), width, 6)
            at = k.put(head, at, value, width)
            table = ids[np.searchsorted(ends, place, "right")] if ends.size else ids[place % ids.size]
            values[place] = _smallest(int(instead[table])) << int(tables.shifts[table])
    return at, count


def get_exceptions(source: k.U8, at: int, count: int, limit: int) -> tuple[int, dict[int, int]]:
    """Read what :func:`put_exceptions` wrote; the next bit and the unsigned values by their place."""
    found: dict[int, int] = {}
    number = take(source, at + 1, 8) if take(source, at, 1) else 0
    at += 9 if number else 1
    for _ in range(number):
        place, width = take(source, at, count.bit_length()), take(source, at + count.bit_length(), 6)
        at += count.bit_length() + 6
        found[place] = take(source, at, width)
        at += width
        if place >= count or found[place] > limit:
            raise raw.damaged("rANS", k.ERRORS[k.TOO_WIDE])
    return at, found


def _smallest(token: int) -> int:
    """The smallest value, of no shift, that has the token."""
    return token if token < k.DIRECT else (4 + (token & 3)) << (((token - k.DIRECT) >> 2) + 5)
