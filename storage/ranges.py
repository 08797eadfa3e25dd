"""Many small byte ranges of many objects by a few requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.fs import Location

I64 = npt.NDArray[np.int64]


def coalesced(
    place: Location, keys: Sequence[str], of: I64, starts: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer],
    gap: int,
) -> list[bytes]:  # fmt: skip
    """Bytes ``starts[i] … starts[i] + sizes[i]`` of the object ``keys[of[i]]``, all fetched at the same time.

    Ranges of one object that overlap, or lie at most ``gap`` bytes apart, become one request.
    """
    order = np.lexsort((starts, of))
    begin, end = np.asarray(starts, np.int64)[order], np.asarray(starts + sizes, np.int64)[order]
    owner = of[order]
    reach = np.maximum.accumulate(end + owner * (1 << 48)) - owner * (1 << 48)  # of what came before in the object
    fresh = np.ones(len(order), bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (begin[1:] > reach[:-1] + gap)
    group = np.cumsum(fresh) - 1
    firsts = np.flatnonzero(fresh)
    lasts = np.append(firsts[1:], len(order)) - 1
    asked = zip(owner[firsts].tolist(), begin[firsts].tolist(), reach[lasts].tolist(), strict=True)
    fetched = place.read_ranges([(keys[key], low, high) for key, low, high in asked])
    base = begin[firsts][group]
    out = [b""] * len(order)
    places = zip(order.tolist(), group.tolist(), (begin - base).tolist(), (end - base).tolist(), strict=True)
    for at, which, low, high in places:
        out[at] = fetched[which][low:high]
    return out
