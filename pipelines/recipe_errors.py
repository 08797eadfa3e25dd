"""From pydantic's report to one line: file and line (or ``--set``), key, what is wrong, the nearest valid choice."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from operators.errors import HilbertflowError
from pipelines import yaml_lines
from pipelines.yaml_lines import Document, Path

Keys = Callable[[Path, Any], list[str]]

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "dataclass_type": "keys and values",
}


class Settings:
    """A document's data with ``--set`` applied on top, remembering which values came from where."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.data = copy.deepcopy(document.data)
        self.raw: dict[Path, str] = {}

    def apply(self, setting: str) -> None:
        """Set one ``key.path=value``; list items go by number, and parts that are missing are made."""
        dotted, equals, raw = setting.partition("=")
        where = f"--set {_cut(setting)}"
        if not equals or not dotted.strip():
            raise HilbertflowError("not a setting", where=where, remedy="write key.path=value")
        path: Path = tuple(
            int(p) if p.isascii() and p.isdigit() and len(p) < 10 else p for p in dotted.strip().split(".")
        )
        value = yaml_lines.parse(raw, where).data if raw.strip() else ""
        if isinstance(value, str) and raw[:1] not in ("'", '"'):
            value = raw  # as typed: no YAML comment or trimming in a path
        here: Any = self.data
        for depth, (step, after) in enumerate(zip(path, (*path[1:], None), strict=True)):
            last = after is None
            if isinstance(here, list):
                if not isinstance(step, int) or step >= len(here):
                    name = ".".join(map(str, path[:depth]))
                    raise HilbertflowError(
                        f"{name} has no item {step}", where=where, remedy=f"items go from 0 to {len(here) - 1}"
                    )
                if last:
                    here[step] = value
            elif isinstance(here, dict):
                step = str(step)
                if last:
                    here[step] = value
                elif not isinstance(here.get(step), (dict, list)):
                    here[step] = {}
            here = here[step]
        self.raw[path] = raw

    def reread_as_text(self, path: Path | None) -> bool:
        """Take a value that ``--set`` gave, and that must be text, as it was typed; False if it was not one."""
        raw = self.raw.pop(path, None) if path is not None else None
        if path is None or raw is None:
            return False
        holder = part(self.data, path[:-1])
        holder[path[-1]] = raw
        return True

    def where(self, path: Path) -> str:
        """``--set key`` for what the command line set, else ``file:line``."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.raw:
                return "--set"
        return self.document.where(path)

    def line(self, path: Path) -> int:
        """Line in the file, 0 for what the command line set; to report errors in reading order."""
        where = self.where(path)
        return 0 if where == "--set" else int(where.rpartition(":")[2] or 0)


def part(data: Any, path: Path) -> Any:
    """What lies at ``path``; None when nothing does."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def first_error(error: ValidationError, settings: Settings, keys: Keys) -> HilbertflowError:
    """The first error in reading order, as one line, and how many more there are."""
    found: dict[Path, ErrorDetails] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_plain(detail["loc"], settings.data), detail)
    for path in list(found):  # of a union, the branch that got furthest
        for end in range(len(path)):
            if len(found) > 1 and end:
                found.pop(path[:end], None)
    # A misspelt key shows twice, as unknown and as missing: what stands in the file comes first.
    path, detail = min(found.items(), key=lambda item: ("missing" in item[1]["type"], settings.line(item[0])))
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, HilbertflowError) and isinstance(settings.data, dict) and cause.where in settings.data:
        path = (cause.where,)  # a check across parts says which part is at fault
    what, remedy = _say(path, detail, keys, settings.data)
    if detail["type"].startswith("union_tag"):
        path = (*path, "kind")
    if remedy.startswith("("):  # choices, none of them near
        what, remedy = f"{what} {remedy}", ""
    if more := len(found) - 1:
        what += f" (and {more} more error{'s' if more > 1 else ''})"
    dotted = _cut(".".join(map(str, path)))
    return HilbertflowError(f"{dotted}: {what}" if dotted else what, where=settings.where(path), remedy=remedy)


def is_text_error(error: ValidationError, data: Any) -> Path | None:
    """Path of the first value that should have been text; None when there is none."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "string_type":
            return _plain(detail["loc"], data)
    return None


def nearest(given: Any, choices: Iterable[str]) -> str:
    """``did you mean 'x'?`` when one choice is near, else an empty text."""
    near = difflib.get_close_matches(str(given), list(choices), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


def _say(path: Path, detail: ErrorDetails, keys: Keys, data: Any) -> tuple[str, str]:
    """What is wrong and what to do about it."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        choices = keys(path[:-1], data)
        return "unknown key", _choose(path[-1], choices, "keys")
    if kind in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return "missing", ""
    if kind == "union_tag_not_found":
        return "missing", _choose("", keys((*path, "kind"), data), "kinds")
    if kind == "union_tag_invalid":
        choices = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
        return f"unknown kind '{_cut(str(context.get('tag')))}'", _choose(context.get("tag"), choices, "kinds")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{_show(given)} is not a choice", _choose(given, choices, "choices")
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {_show(given)}", ""
    if kind == "string_pattern_mismatch":
        return f"{_show(given)} is not a name", "use letters, digits, '.', '_' and '-', a letter or digit first"
    cause = context.get("error")
    if isinstance(cause, HilbertflowError):
        return cause.what, cause.remedy
    if kind == "value_error" and isinstance(cause, ValueError):
        return str(cause), ""
    message = detail["msg"].removeprefix("Input ").removeprefix("Value ")
    return f"{message[:1].lower()}{message[1:]}, not {_show(given)}", ""


def _choose(given: Any, choices: list[str], called: str) -> str:
    listed = f"({called}: {', '.join(choices)})" if choices else ""
    return " ".join(filter(None, (nearest(given, choices), listed)))


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text '{_cut(value)}'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return _cut(str(value))


def _plain(loc: tuple[int | str, ...], data: Any) -> Path:
    """Path in the data of a pydantic location, which also names the kinds and types that it tried."""
    path: list[int | str] = []
    here = data
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(here, dict) and last and step not in here:
            if step != here.get("kind") and "[" not in str(step):
                path.append(step)  # a key that is missing
            break
        if isinstance(here, (dict, list)) and (below := part(here, (step,))) is not None:
            here = below
            path.append(step)
        elif isinstance(here, dict) and step in here:
            path.append(step)  # a key that holds nothing
            break
    return tuple(path)
