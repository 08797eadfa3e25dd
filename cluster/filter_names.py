"""Column names in a filter: plain where Python's grammar reads them as a name, else between backticks.

`` `release date` > 2019 and `class` == "bird" ``: whatever stands between backticks is a column's name to the letter,
two of them meaning one. Each is put out of the parser's sight by a stand-in that occurs nowhere else in the text, so
that nothing written between backticks is ever read as an expression.
"""

from __future__ import annotations

import keyword
import re
import unicodedata

from operators.errors import HilbertflowError

_PARTS = re.compile(
    r"""(?P<text>'''(?:[^\\]|\\.)*?(?:'''|\Z)|\"\"\"(?:[^\\]|\\.)*?(?:\"\"\"|\Z)|'(?:[^\\\n']|\\.)*'?|"(?:[^\\\n"]|\\.)*"?)"""
    r"|`(?P<name>(?:[^`]|``)*)`|(?P<open>`)",
    re.DOTALL,
)


def plain(name: str) -> bool:
    """Whether a name can be written as it is: Python reads it as an identifier, and as this one."""
    same = unicodedata.normalize("NFKC", name) == name  # the parser folds what looks alike
    return name.isidentifier() and same and not keyword.iskeyword(name)


def written(name: str) -> str:
    """A column's name as a filter writes it."""
    return name if plain(name) else "`" + name.replace("`", "``") + "`"


def set_apart(text: str) -> tuple[str, dict[str, str]]:
    """The text with a stand-in in the place of every name between backticks, and what each stands for.

    Backticks inside of quoted strings are the string's own. Raises `HilbertflowError` for a backtick without another,
    and for nothing between two.
    """
    stem = "quoted"
    while stem in unicodedata.normalize("NFKC", text):
        stem += "_"
    names: dict[str, str] = {}

    def replaced(part: re.Match[str]) -> str:
        if part["text"] is not None:
            return part[0]
        if part["open"]:
            raise HilbertflowError("has a backtick without another", remedy="write a column as `its name`")
        if not part["name"]:
            raise HilbertflowError("has no name between two backticks", remedy="write a column as `its name`")
        stand_in = f"{stem}{len(names)}"
        names[stand_in] = part["name"].replace("``", "`")
        return f" {stand_in} "

    return _PARTS.sub(replaced, text), names


def named_in(text: str, names: list[str]) -> str | None:
    """The longest column that the text has, as a word of its own, and that cannot be written so."""
    found = [
        name for name in names if name and not plain(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    ]  # fmt: skip
    return max(found, key=len, default=None)
