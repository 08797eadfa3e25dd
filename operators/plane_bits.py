"""Planes bit for bit from their coded levels, some of them in one compiled call.

Threads that decode planes side by side meet at the interpreter's lock, and each return to it between two kernels is a
wait for the other thread: a dozen of them a plane took as long as the kernels. This is
:meth:`operators.decode.Ladder.bits` behind the decoder of :mod:`operators.rans`, step by step the same, for planes
whose chunks carry their own tables; the rare others (constant, trimmed, stored as they are) take the longer way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators import trellis
from operators.decode import Ladder
from operators.exact import decode_words
from operators.floats import dtype_info
from operators.hilbert import plane_order
from operators.rans import LEAN, OWN
from operators.rans_chunk import IN_TOKENS, decode_own, work_sizes
from operators.rans_tokens import unfold, unzigzag
from operators.refine import add_rows, derive, start_cells
from operators.scratch import scratch


def decode(
    chunks: Sequence[Sequence[bytes | None]],
    limits: Sequence[int],
    codes: npt.NDArray[np.uint32],
    steps: npt.NDArray[np.float32],
    dtype: str,
    ladder: Ladder,
    out: npt.NDArray[Any],
) -> npt.NDArray[np.bool_]:
    """Fill ``out`` (planes, side, side) with the words of planes in source order; which were filled, (planes,).

    Where one was not, a chunk is of another kind, or damaged: the longer way reads it, or says what is wrong.

    Parameters
    ----------
    chunks: of each plane, the rANS chunks of levels 0 … k and of the exact level; None is none.
    limits: of each level, the largest unsigned number that its array's dtype holds.
    codes, steps: (planes, side) of the rows (:mod:`operators.scales`).
    dtype, ladder: of the planes, and how their levels were made.
    """
    shape, area = out.shape[1:], out[0].size
    done = np.array([all(chunk and chunk[0] in (OWN, LEAN) for chunk in plane) for plane in chunks])
    if area % trellis.LANES or not done.any():
        return np.zeros(len(chunks), np.bool_)
    coded = [chunk or b"" for plane in chunks for chunk in plane]
    lengths = np.array([len(chunk) for chunk in coded])
    padded = lengths + (lengths & 1)  # words are read as 16-bit numbers
    starts = np.cumsum(padded) - padded
    spans = np.stack([starts, starts + lengths], 1).reshape(len(chunks), len(limits), 2)
    data = b"".join(chunk + b"\0" if len(chunk) & 1 else chunk for chunk in coded)
    form, lattice, sizes = dtype_info(dtype), ladder.lattice, work_sizes(area)
    h0, h1 = trellis.taps(ladder.states) if ladder.method == "trellis" else (-1, -1)
    how = (
        plane_order(shape[0], ladder.layout), ladder.layout != "raster", h0, h1,
        1 - form.bias, 2 * (lattice.reach > 1), lattice.fine_bits, np.float32(lattice.reach),
        form.drop, form.rebias, form.mantissa, form.top, 8 * form.width,
        scratch("rans tokens", sizes[:1], np.uint8), scratch("rans values", sizes[1:2], np.uint32),
        scratch("rans extra", sizes[2:3], np.uint32), scratch("rans table", sizes[3:], np.uint32),
        scratch("plane symbols", (2, area), np.int16), scratch("plane cells", (2, *shape), np.int32),
        scratch("base", shape, np.uint32), scratch("keys", shape, np.uint8),
        scratch("plane words", (area,), out.dtype),
    )  # fmt: skip
    _decode_planes(np.frombuffer(data, np.uint8), spans, np.asarray(limits, np.int64), codes, steps, how, out, done)
    return done


@njit(cache=True, nogil=True)
def _decode_planes(data, spans, limits, codes, steps, how, out, done):  # type: ignore[no-untyped-def]
    """Each plane of those that ``done`` has; one that fails is struck from it."""
    for plane in range(spans.shape[0]):
        if done[plane]:
            of_plane = codes[plane], steps[plane], *how, out[plane]
            done[plane] = not _decode(data, spans[plane], limits, *of_plane)


@njit(cache=True, nogil=True)
def _decode(  # type: ignore[no-untyped-def]
    data, spans, limits, codes, steps, order, mapped, h0, h1, lowest, wider, fine_bits, reach, drop, rebias, mantissa,
    top, width, tokens, values, extra, table, symbols, cells, base, keys, stored, out,
):  # fmt: skip
    """One plane; 0 or an error. ``spans`` (levels, 2) says where in ``data`` its chunks lie."""
    last, lanes = limits.size - 1, trellis.LANES
    flat, said = symbols[0], symbols[1 if mapped else 0]
    floats, whole = np.empty((3, codes.size), np.float32), np.empty((4, codes.size), np.int64)
    for level in range(last):
        source = data[spans[level, 0] : spans[level, 1]]
        failed = _values(source, limits[level], True, tokens, values, extra, table, flat)
        if failed:
            return failed
        derive(codes, steps, mantissa, lowest, wider, fine_bits, level, floats, whole)
        now = cells[level & 1]
        if level:
            start_cells(cells[1 - (level & 1)], floats[1], whole[0], whole[1], level == 1, now)
            add_rows(now, flat.reshape(now.shape), whole[3])
            continue
        if mapped:
            for i in range(flat.size):
                said[i] = flat[order[i]]
        if h0 < 0:
            now.reshape(-1)[:] = said
        else:
            shape = flat.size // lanes, lanes
            trellis.follow(said.reshape(shape), h0, h1, now.reshape(shape))
    source, now = data[spans[last, 0] : spans[last, 1]], cells[(last - 1) & 1]
    failed = _values(source, limits[last], False, tokens, values, extra, table, stored)
    if not failed:
        k, steps, grain = whole[0], floats[0], whole[2]
        decode_words(stored, now, k, steps, grain, reach, drop, rebias, mantissa, top, width, base, keys, out)
    return failed


@njit(cache=True, nogil=True)
def _values(source, limit, signed, tokens, values, extra, table, out):  # type: ignore[no-untyped-def]
    """A chunk's values; 0 or an error."""
    found = decode_own(source, out.size, source[0] == LEAN, tokens, values, extra, table)
    if found == IN_TOKENS:
        unfold(tokens[: out.size], signed, out)
        return 0
    return unzigzag(values, signed, limit, out) if found > 0 else found
