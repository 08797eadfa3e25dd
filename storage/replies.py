"""Whether a server sent the bytes that were asked for: ranges are compared, and lengths, before a byte is believed.

A server or a proxy between may answer another range than the one asked for, the whole object in its place, or less
than it announced. Neither s3fs nor fsspec's HTTP client looks. Such an answer is a fault that may pass: it is asked for
again like one that never came.
"""

from __future__ import annotations

import errno
import os
import re

READ_TIMEOUT_S = float(os.environ.get("HILBERTFLOW_READ_TIMEOUT_S", "10"))
"""Seconds without a byte from a server after which a request is given up; ``HILBERTFLOW_READ_TIMEOUT_S`` sets them."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class WrongReplyError(OSError):
    """An answer that is not to what was asked."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EREMOTEIO, what)


def check_reply(asked: str | None, status: int, content_range: str | None, length: int | None) -> None:
    """Compare the head of an answer with the request; raises `WrongReplyError`.

    Parameters
    ----------
    asked: the request's ``Range``: ``bytes=2-9``, ``bytes=2-`` or ``bytes=-9``; None where the whole was asked for.
    status: of HTTP.
    content_range, length: the answer's ``Content-Range``, and its ``Content-Length`` where it tells one.
    """
    if asked is None:
        if status != 200 or content_range is not None:
            raise WrongReplyError(f"the server sent a part ({content_range}) where the whole was asked for")
        return
    found = _CONTENT_RANGE.fullmatch(content_range or "")
    if status != 206 or found is None:
        raise WrongReplyError(f"the server sent {content_range or 'the whole'} where {asked} was asked for")
    first, last = int(found[1]), int(found[2])
    if (first, last) != _expected(asked, last, None if found[3] == "*" else int(found[3])):
        raise WrongReplyError(f"the server sent {content_range} where {asked} was asked for")
    if length is not None and length != last - first + 1:
        raise WrongReplyError(f"the server announced {length} bytes of {content_range}")


def _expected(asked: str, last: int, size: int | None) -> tuple[int, int]:
    """First and last byte of a right answer; where the size is not told, an open end is taken as it was sent."""
    start, _, stop = asked.removeprefix("bytes=").partition("-")
    end = last if size is None else size - 1
    if not start:  # the last so many
        return max(0, end + 1 - int(stop)), end
    if not stop:
        return int(start), end
    return int(start), int(stop) if size is None else min(int(stop), end)
