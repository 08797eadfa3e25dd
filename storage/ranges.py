"""Many small byte ranges of many objects by a few requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.fs import Location

I64 = npt.NDArray[np.int64]


def coalesced(
    place: Location, keys: Sequence[str], starts: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], gap: int
) -> list[bytes]:
    """Bytes ``starts[i] … starts[i] + sizes[i]`` of the object ``keys[i]``, all fetched at the same time.

    Ranges of one object that overlap, or lie at most ``gap`` bytes apart, become one request.
    """
    number = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    of = np.array([number[key] for key in keys])
    order = np.lexsort((starts, of))
    begin, end = np.asarray(starts, np.int64)[order], np.asarray(starts + sizes, np.int64)[order]
    owner = of[order]
    reach = np.maximum.accumulate(end + owner * (1 << 48)) - owner * (1 << 48)  # of what came before in the object
    fresh = np.ones(len(order), bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (begin[1:] > reach[:-1] + gap)
    group = np.cumsum(fresh) - 1
    firsts = np.flatnonzero(fresh)
    lasts = np.append(firsts[1:], len(order)) - 1
    names = list(number)
    fetched = place.read_ranges(
        [(names[owner[a]], int(begin[a]), int(reach[b])) for a, b in zip(firsts, lasts, strict=True)]
    )
    out = [b""] * len(order)
    for at, where in enumerate(order):
        base = int(begin[firsts[group[at]]])
        out[where] = fetched[group[at]][int(begin[at]) - base : int(end[at]) - base]
    return out
