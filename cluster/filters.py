"""Metadata filters: `package == "numpy" and lines > 20` read into an Arrow expression, and nothing else.

The text is parsed with `ast` and walked against a whitelist: column names, comparisons, `and`, `or`, `not`, `in` over a
list of literals, a string contained in a column (`"svd" in name`; a whole item where the column is a list written with
commas), `is None`, and literals. Names that Python would not read as one stand between backticks
(`cluster.filter_names`). No call, attribute, subscript or arithmetic exists in the grammar, so there is nothing an
injection could reach. A comparison with a missing value is unknown, and unknown rows do not match (as in SQL), `not`
included.
"""

from __future__ import annotations

import ast
import difflib
import functools
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.filter_names import named_in, set_apart, written
from operators.errors import HilbertflowError

MAX_CHARS = 4096
MAX_NODES = 512
MAX_DEPTH = 64
LISTED = {"hilbertflow.list": ","}
"""Metadata of a field of text whose commas divide items: `"F16" in dtypes` does not mean BF16."""

MOST_TOLD = 60  # columns that an error names
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NAMED_LITERALS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Filter:
    """A parsed filter: its Arrow expression and the columns it names, in the order of first use."""

    expression: pc.Expression
    columns: tuple[str, ...]

    def rows(self, table: pa.Table, count: int) -> npt.NDArray[np.int64]:
        """Positions, ascending, where it holds among the `count` rows of `table`, which has at least its columns."""
        place = "\x00row"
        while place in table.column_names:
            place += "\x00"
        numbered = table.append_column(place, pa.array(np.arange(count)))
        found: npt.NDArray[np.int64] = numbered.filter(self.expression).column(place).to_numpy()
        return found


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """Turn `text` into a boolean Arrow expression over the columns of `schema`.

    Raises `HilbertflowError` for anything outside the grammar, an unknown column (naming the nearest one) and a
    comparison that the column's type does not have.
    """
    reader = _Reader(text, schema)
    try:
        rule = Filter(reader.read(), tuple(reader.columns))
        rule.rows(schema.empty_table(), 0)  # types are checked here, once, on no rows
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(text, f"does not fit the columns' types ({reason})", _example(schema)) from None
    return rule


def _is_listed(field: pa.Field) -> bool:
    return bool(field.metadata) and all(field.metadata.get(k.encode()) == v.encode() for k, v in LISTED.items())


def _refused(text: str, what: str, remedy: str) -> HilbertflowError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return HilbertflowError(what, where=f"filter {shown!r}", remedy=remedy)


def _example(schema: pa.Schema) -> str:
    """What can be written over these columns: the first text, the first list and the first number of theirs."""
    parts: dict[str, str] = {}
    for field in schema:
        name = written(field.name)
        if _is_listed(field):
            parts.setdefault("list", f'"item" in {name}')
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            parts.setdefault("text", f'{name} == "text"')
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            parts.setdefault("number", f"{name} > 20")
    return f"write for example: {' and '.join(parts.values())}" if parts else "there is no column to compare"


def _told(names: list[str]) -> str:
    """Columns for an error, not without end."""
    more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
    return f"the columns are {', '.join(map(written, names[:MOST_TOLD])) or '(none)'}{more}"


class _Reader:
    """One walk over one syntax tree; every node type it does not name is refused."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text, self.schema = text, schema
        self.columns: dict[str, None] = {}  # an ordered set
        self.quoted: dict[str, str] = {}

    def read(self) -> pc.Expression:
        if len(self.text) > MAX_CHARS:
            raise self.no(f"is {len(self.text)} characters long; the limit is {MAX_CHARS}", "shorten it")
        try:
            text, self.quoted = set_apart(self.text)
        except HilbertflowError as error:
            raise self.no(error.what, error.remedy) from None
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise self.no("is not an expression") from None
        if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
            raise self.no(f"has more than {MAX_NODES} parts", "shorten it")
        return self.boolean(tree.body, 0)

    def no(self, what: str, remedy: str = "") -> HilbertflowError:
        unread = [name for name in self.schema.names if name not in self.quoted.values()]
        if not remedy and (name := named_in(self.text, unread)) is not None:
            remedy = f"write the column between backticks: {written(name)}"
        return _refused(self.text, what, remedy or _example(self.schema))

    def shown(self, node: ast.expr) -> str:
        """A part of the filter as it was written."""
        return re.sub(r"\w+", lambda word: written(self.quoted[word[0]]) if word[0] in self.quoted else word[0],
                      ast.unparse(node))[:60]  # fmt: skip

    def boolean(self, node: ast.expr, depth: int) -> pc.Expression:
        if depth > MAX_DEPTH:
            raise self.no(f"is nested deeper than {MAX_DEPTH}", "flatten it")
        match node:
            case ast.BoolOp(op=op, values=values):
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                return functools.reduce(join, [self.boolean(value, depth + 1) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.boolean(operand, depth + 1)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                parts = [self.comparison(a, op, b) for a, op, b in zip(sides, ops, rights, strict=False)]
                return functools.reduce(operator.and_, parts)
            case ast.Name() if not self.is_literal(node):
                name = self.column_name(node)
                if not pa.types.is_boolean(self.schema.field(name).type):
                    raise self.no(f"column {name!r} is not boolean, so it needs a comparison")
                return pc.field(name)
        raise self.no(f"{self.shown(node)!r} is not a comparison or a combination of comparisons")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if self.is_literal(left) and self.is_literal(right):
            raise self.no("compares two literals", "name a column on one side")
        if isinstance(op, ast.In | ast.NotIn):
            inside = self.membership(left, right)
            return ~inside if isinstance(op, ast.NotIn) else inside
        if isinstance(op, ast.Is | ast.IsNot):
            op = ast.Eq() if isinstance(op, ast.Is) else ast.NotEq()
            if not (self.is_literal(right) and self.literal(right) is None):
                raise self.no("`is` compares with None only", "use == for values")
        if self.is_literal(right) and self.literal(right) is None:
            if not isinstance(op, ast.Eq | ast.NotEq):
                raise self.no("None has no order", "use == None or != None")
            missing = self.column(left).is_null()
            return missing if isinstance(op, ast.Eq) else ~missing
        return _COMPARE[type(op)](self.operand(left), self.operand(right))

    def membership(self, left: ast.expr, right: ast.expr) -> pc.Expression:
        if isinstance(right, ast.List | ast.Tuple):
            values = [self.literal(item) for item in right.elts]
            column, kind = self.column(left), self.schema.field(self.column_name(left)).type
            return pc.if_else(column.is_valid(), column.isin(pa.array(values, kind)), pa.scalar(None, pa.bool_()))
        if isinstance(left, ast.Constant) and isinstance(left.value, str):
            column = self.column(right)
            if _is_listed(self.schema.field(self.column_name(right))):
                return pc.match_substring_regex(column, f"(^|,){re.escape(left.value)}(,|$)")
            return pc.match_substring(column, left.value)
        raise self.no("`in` needs a list of literals on its right, or a string on its left and a column on its right")

    def operand(self, node: ast.expr) -> pc.Expression:
        return pc.scalar(self.literal(node)) if self.is_literal(node) else self.column(node)

    def column(self, node: ast.expr) -> pc.Expression:
        return pc.field(self.column_name(node))

    def column_name(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            raise self.no(f"{self.shown(node)!r} is neither a column nor a literal")
        names, name = self.schema.names, self.quoted.get(node.id, node.id)
        if name not in names:
            if f"{name}_" in names:  # see `storage.rows.RESERVED`
                raise self.no(f"has no column {name[:80]!r}", f"the column is called {name}_ here")
            near = difflib.get_close_matches(name, names, 1, 0.5)
            guess = f"did you mean {written(near[0])!r}? " if near else ""
            raise self.no(f"has no column {name[:80]!r}", guess + _told(names))
        self.columns[name] = None
        return name

    def is_literal(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant() | ast.UnaryOp(op=ast.USub()):
                return True
            case ast.Name(id=name):
                return name in _NAMED_LITERALS and name not in self.schema.names
        return False

    def literal(self, node: ast.expr) -> str | int | float | bool | None:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.Name(id=name) if self.is_literal(node):
                return _NAMED_LITERALS[name]
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
                return -value
        raise self.no(f"{self.shown(node)!r} is not a string, number, bool or None")
