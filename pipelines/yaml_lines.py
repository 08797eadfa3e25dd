"""YAML as plain data that still knows its lines, so that an error can name the one at fault.

Scalars follow YAML 1.2's core schema: ``1e-3`` is a number, ``no`` and ``off`` are text, dates are text. Anchors,
tags and repeated keys are refused: a recipe says each thing once, where it stands.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from operators.errors import HilbertflowError

Path = tuple[str | int, ...]

MAX_DEPTH = 32

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NONFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """A parsed file: its data, and the line (from 1) of every key and item by path."""

    data: Any
    name: str = ""
    lines: dict[Path, int] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """``file:line`` of a path, or of its nearest parent when the path itself is not in the file."""
        for end in range(len(path), -1, -1):
            if (line := self.lines.get(path[:end])) is not None:
                return f"{self.name}:{line}"
        return self.name


def parse(text: str, name: str) -> Document:
    """Read one YAML document; ``name`` is how errors call it."""
    lines: dict[Path, int] = {}
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _error("anchors and aliases are not read", name, event.start_mark, "write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise _error(f"nested more than {MAX_DEPTH} deep", name, event.start_mark, "a recipe needs four")
            if tag := getattr(event, "tag", None):
                raise _error(f"tag {tag} is not read", name, event.start_mark, "write the plain value")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(f"not YAML: {error.problem or error.context}", name, mark, "") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise HilbertflowError(f"not YAML: {error}", where=name) from None
    return Document(None if node is None else _build(node, (), lines, name), name, lines)


def scalar(text: str) -> Any:
    """Value of one unquoted scalar under the core schema: None, bool, int, float or the text itself."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text) and len(text) <= 40:  # longer ones are no option's value, and Python limits their digits
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if found := _NONFINITE.fullmatch(text):
        return math.copysign(float(found[2].lower()), -1.0 if found[1] == "-" else 1.0)
    return text


def _build(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), lines, name) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be a word", name, key_node.start_mark, "")
            key: str = key_node.value
            if key in built:
                raise _error(f"{_dotted((*path, key))}: key given twice", name, key_node.start_mark, "keep one")
            lines[(*path, key)] = key_node.start_mark.line + 1
            built[key] = _build(value_node, (*path, key), lines, name)
        return built
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style in ("'", '"', "|", ">") else scalar(node.value)


def _error(what: str, name: str, mark: Any, remedy: str) -> HilbertflowError:
    where = f"{name}:{mark.line + 1}" if mark is not None else name  # a yaml.Mark, of either parser
    return HilbertflowError(what, where=where, remedy=remedy)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
