"""What is wrong with a field that a client sent, in this service's words instead of the validation library's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST = 30  # fields that a remedy lists
_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is missing",
    "json_invalid": lambda about: f"is not JSON ({about['error']})",
    "model_type": lambda _: "is not a JSON object",
    "model_attributes_type": lambda _: "is not a JSON object",
    "dict_type": lambda _: "is not a JSON object",
    "list_type": lambda _: "is not a list",
    "string_type": lambda _: "is not a text",
    "string_unicode": lambda _: "is not UTF-8",
    "float_type": lambda _: "is not a number",
    "float_parsing": lambda _: "is not a number",
    "finite_number": lambda _: "is not a finite number",
    "int_type": lambda _: "is not a whole number",
    "int_parsing": lambda _: "is not a whole number",
    "int_parsing_size": lambda _: "is far too large",
    "int_from_float": lambda _: "is not a whole number",
    "bool_type": lambda _: "is neither true nor false",
    "bool_parsing": lambda _: "is neither true nor false",
    "greater_than_equal": lambda about: f"is less than {about['ge']:,}",
    "less_than_equal": lambda about: f"is more than {about['le']:,}",
    "string_too_short": lambda about: f"has fewer than {about['min_length']:,} characters",
    "string_too_long": lambda about: f"has more than {about['max_length']:,} characters",
    "too_short": lambda about: f"has fewer than {about['min_length']:,} items",
    "too_long": lambda about: f"has more than {about['max_length']:,} items",
    "literal_error": lambda about: f"is not {about['expected']}",
    "enum": lambda about: f"is not {about['expected']}",
}


def place_of(loc: Sequence[int | str]) -> str:
    """Where a fault is, as one would write it in code: `vectors[0][2]`, `metadata.lines`."""
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not _of_a_choice(part):
            place += f".{part[:80]}" if place else part[:80]
    return place


def what(error: Mapping[str, Any]) -> str:
    """What is wrong there, to be read behind the place. error: one of pydantic's."""
    told = _WORDS.get(error["type"])
    return told(error.get("ctx", {})) if told else str(error["msg"])


def explained(error: Mapping[str, Any], known: Sequence[str]) -> tuple[str, str]:
    """What is wrong, with its place, and what to do. known: the fields that there are."""
    place = place_of(error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1])[:80], known, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        more = "" if len(known) <= _MOST else ", …"
        return f"unknown field {place!r}", f"{guess}known are {', '.join(known[:_MOST])}{more}"
    remedy = "GET /openapi.json describes every field"
    return f"{place} {what(error)}" if place else what(error), remedy


def _of_a_choice(part: str) -> bool:
    """Whether pydantic put this into a place to tell which of several types it tried: no field has such a name."""
    return part.startswith("list[") or part == "str"
