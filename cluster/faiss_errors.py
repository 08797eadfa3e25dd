"""What an error of FAISS says: behind the signature and the source file that its text begins with."""

from __future__ import annotations

import re

MOST = 160
_PLACE = re.compile(r"Error in .*? at \S+:\d+: (?:Error: )?")


def useful(error: BaseException) -> str:
    """The part of an error's text that tells what is wrong, in one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    place = _PLACE.match(text)
    said = text[place.end() :] if place else text
    return said if len(said) <= MOST else said[: MOST - 3] + "..."
