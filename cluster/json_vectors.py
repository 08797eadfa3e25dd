"""Vectors out of a large JSON body a piece at a time, so that whoever else is served meanwhile waits for no more.

A JSON parser holds Python's lock until it is through, in a thread as well: 8 MB, a thousand vectors of 384 values, are
60 ms in which nobody else is answered. Here the text of `vectors` is cut where vectors end, and the parser is given a
little at a time; the rest of the body, with a mark in their place, is checked as any other. Values need 4 bytes each in
place of the 32 of Python's lists.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from cluster.vectors import F32

LARGE = 1 << 18  # bytes of a body that is not parsed between two turns of the event loop
PIECE = 1 << 16  # bytes of text that are parsed at once: about half a millisecond
MARK = "vectors are apart"
_OPENING = re.compile(rb"\s*:\s*\[(?=\s*\[)")
Vectors = list[list[Annotated[float, Field(strict=True)]]]
"""Numbers and nothing that could pass for one: `true` is not 1, nor is "1". The parser is as fast so."""
_VECTORS: TypeAdapter[list[list[float]]] = TypeAdapter(Vectors)


def apart(body: bytes) -> tuple[bytes, F32] | None:
    """The body with `MARK` in place of its vectors, and these, (n, dim) float32.

    None where the body is of another form, or wrong: then it is to be parsed whole, and the error is told by that.
    """
    key = body.find(b'"vectors"')
    opening = _OPENING.match(body, key + 9) if key >= 0 else None
    if opening is None:
        return None
    first = opening.end()
    behind = min((at for at in (body.find(mark, first) for mark in (b'"', b"}")) if at >= 0), default=len(body))
    stop = body.rfind(b"]", first, behind)
    if stop < 0:
        return None
    parts: list[F32] = []
    at = first
    while at < stop:
        cut = body.find(b"]", min(at + PIECE, stop), stop) + 1 or body.rfind(b"]", at, stop) + 1
        if not cut:
            return None
        part = _parsed(body[at:cut])
        if part is None or (parts and part.shape[1] != parts[0].shape[1]):
            return None
        parts.append(part)
        while cut < stop and body[cut] in b" \t\r\n":
            cut += 1
        if cut < stop and (body[cut] != ord(",") or not body[cut + 1 : stop].lstrip()):
            return None
        at = cut + 1
    return body[: opening.end() - 1] + f'"{MARK}"'.encode() + body[stop + 1 :], np.concatenate(parts)


def _parsed(text: bytes) -> F32 | None:
    try:
        lists: Any = np.asarray(_VECTORS.validate_json(b"[" + text + b"]"), np.float64)
    except (ValidationError, ValueError):  # no vectors; of different lengths
        return None
    if lists.ndim != 2:
        return None
    with np.errstate(over="ignore"):
        vectors: F32 = lists.astype(np.float32)
    return vectors
