"""Filters: what is read, what is refused, and that nothing but comparisons can be said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.filters import LISTED, MAX_CHARS, parse_filter
from operators.errors import HilbertflowError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "package": "numpy", "lines": 3, "score": 0.5, "public": True},
    {"id": "b", "package": "numpy", "lines": 30, "score": -1.5, "public": False},
    {"id": "c", "package": "ray", "lines": 20, "score": None, "public": True},
    {"id": "d", "package": None, "lines": None, "score": 2.0, "public": None},
    {"id": "é", "package": 'a "quoted" name', "lines": -4, "score": 0.0, "public": False},
]
TABLE = pa.Table.from_pylist(ROWS)


def chosen(text: str) -> str:
    """Ids of the rows that a filter lets through, in one string."""
    rows = parse_filter(text, TABLE.schema).rows(TABLE, TABLE.num_rows)
    return "".join(ROWS[i]["id"] for i in rows)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('package == "numpy"', "ab"),
        ("package == 'numpy' and lines > 20", "b"),
        ('package != "numpy"', "cé"),
        ("lines >= 20", "bc"),
        ("lines < -3", "é"),
        ("20 <= lines", "bc"),
        ("3 <= lines <= 20", "ac"),
        ("score > 0.25", "ad"),
        ("lines in [3, 20]", "ac"),
        ("lines not in [3, 20]", "bé"),
        ("lines in (3,)", "a"),
        ('package in ["ray", "torch"]', "c"),
        ("lines in []", ""),
        ('"ump" in package', "ab"),
        ('"ump" not in package', "cé"),
        ("package == 'a \"quoted\" name'", "é"),
        ('id == "é"', "é"),
        ("public", "ac"),
        ("not public", "bé"),
        ("public == true and lines > 3", "c"),
        ("public == True", "ac"),
        ("lines is None", "d"),
        ("lines is not None and public == false", "bé"),
        ("score == null", "c"),
        ("not (lines > 3)", "aé"),
        ("not lines > 3 or package is None", "adé"),
        ("lines == 3.0", "a"),
        ("  lines == 3  ", "a"),
        ("lines > score", "ab"),
        ("`lines` > 3 and `package` == 'numpy'", "b"),
    ],
)
def test_rows_are_chosen(text: str, ids: str) -> None:
    """Comparisons, combinations, lists and literals; an unknown value matches nothing, `not` included."""
    assert chosen(text) == ids


@pytest.mark.parametrize(
    "text",
    [
        "", "lines", "lines >", "lines = 3", "3", "3 > 2", "True", "lines + 1 > 3", "lines > 2 ** 100", "-lines > 3",
        "__import__('os').system('true')", "().__class__.__bases__[0]", "lines.__class__ == 3", "lines[0] == 3",
        "[x for x in package]", "lambda: lines", "(lines := 3) > 2", "f'{lines}' == '3'", "package == b'numpy'",
        "lines in package", "lines in [score]", "lines in {3}", "package == ...", "lines if public else score",
        "lines is 3", "lines < None", "lines == 1j", "package == 3", "lines == 'three'", "score in ['a']",
        "exec('1') == 2", "not", "lines == 3; lines == 4", "lines == 3\nimport os", "public > 3", "*lines == 3",
        "lines == 99999999999999999999999999", "\x00 == 3", "lines == -True", "package == '\ud800'",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    """One line, naming the filter; nothing is evaluated."""
    with pytest.raises(HilbertflowError) as caught:
        chosen(text)
    assert "filter" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_names_the_nearest() -> None:
    """A slip of the pen is put right."""
    with pytest.raises(HilbertflowError, match=r"did you mean 'package'\? the columns are id, package"):
        chosen('pakage == "numpy"')
    with pytest.raises(HilbertflowError, match="the columns are id, package"):
        chosen("zzzz == 3")
    wide = pa.schema([(f"c{number}", pa.int64()) for number in range(100)])
    with pytest.raises(HilbertflowError, match=r"c0, c1, .*, c59 and 40 more"):
        parse_filter("zzzz == 3", wide)


ODD = ["class", "release date", "my-col", "a`b", "ﬁle", "true", "quoted0", "x' or 'y", "# no"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_can_stand_between_backticks(name: str) -> None:
    """Keywords, blanks, dashes, quotes, backticks, and names that the parser would fold: to the letter."""
    table = pa.table({"quoted0": [9, 9, 9]} | {name: [1, 2, 3], "text": ["`class`", "b", "`"]})
    quoted = "`" + name.replace("`", "``") + "`"
    with pytest.raises(HilbertflowError, match="no column 'quoted1'"):  # no name of the parser's own can be reached
        parse_filter(f"{quoted} >= 2 and quoted1 == 3", table.schema)
    assert parse_filter(f"{quoted} >= 2", table.schema).rows(table, 3).tolist() == [1, 2]
    assert parse_filter(f"1<{quoted}<3", table.schema).columns == (name,)
    assert parse_filter(f'{quoted} in [1, 2] and text == "`class`"', table.schema).rows(table, 3).tolist() == [0]
    assert parse_filter(f"{quoted} == 3 and '`' in text", table.schema).rows(table, 3).tolist() == [2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class == 3", "write the column between backticks: `class`"),
        ("release date > 3", "write the column between backticks: `release date`"),
        ("my-col > 3", "write the column between backticks: `my-col`"),
        ("`my-cols` > 3", r"has no column 'my-cols'; did you mean '`my-col`'\?"),
        ("`my-col` + 3 > 3", r"'`my-col` \+ 3' is neither a column"),
        ("`my-col > 3", "backtick without another"),
        ("`` > 3", "no name between two backticks"),
        ("zzzzzz > 3", "the columns are `class`, `release date`, `my-col`"),
        ("`1 == 1 or __import__('os').system('true')` == 3", "has no column"),
    ],
)
def test_an_error_shows_how_to_write_a_name(text: str, told: str) -> None:
    """Where the text names a column that Python reads otherwise, and wherever columns are told."""
    schema = pa.schema([(name, pa.int64()) for name in ODD[:3]])
    with pytest.raises(HilbertflowError, match=told) as caught:
        parse_filter(text, schema)
    assert "quoted" not in str(caught.value)


def test_the_example_is_of_the_columns_there_are() -> None:
    """What an error shows can be sent: it names columns of this table, not of another."""
    schemas = [
        TABLE.schema,
        pa.schema([pa.field("tags", pa.string(), metadata=LISTED), ("odd name", pa.string()), ("size", pa.float64())]),
        pa.schema([("name", pa.large_string())]),
    ]
    for schema in schemas:
        with pytest.raises(HilbertflowError) as caught:
            parse_filter("3 +", schema)
        example = caught.value.remedy.removeprefix("write for example: ")
        assert set(parse_filter(example, schema).columns) <= set(schema.names)
    with pytest.raises(HilbertflowError, match="there is no column to compare"):
        parse_filter("3 +", pa.schema([]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: "lines == 3 or " * 2000 + "lines == 4",
        lambda: "(" * 500 + "lines == 3" + ")" * 500,
        lambda: "not " * 200 + "public",
        lambda: " or ".join(["lines == 1"] * 300),
        lambda: "lines == " + "9" * 4000,
        lambda: "lines == " + "-" * 3000 + "1",
    ],
)
def test_size_and_depth_are_bounded(make: Callable[[], str]) -> None:
    """A filter made to exhaust the parser is refused or answered, and the process lives."""
    text = make()
    if len(text) > MAX_CHARS or text.count("or") > 200:
        with pytest.raises(HilbertflowError):
            chosen(text)
        return
    try:
        chosen(text)
    except HilbertflowError as error:
        assert "filter" in str(error)


@given(st.text(max_size=60))
def test_no_text_does_more_than_raise(text: str) -> None:
    """Any text is a filter or a `HilbertflowError`."""
    try:
        chosen(text)
    except HilbertflowError as error:
        assert "\n" not in str(error)


_LEAF = st.builds(
    lambda column, sign, value: (f"{column} {sign} {value}", column, sign, value),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-5, 5),
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


@given(st.recursive(_LEAF, lambda inner: st.tuples(st.sampled_from(["and", "or", "not"]), inner, inner), max_leaves=8))
def test_combinations_agree_with_numpy(tree: Any) -> None:
    """Random and/or/not trees over integer columns choose the rows that NumPy does."""
    random = np.random.default_rng(0)
    columns = {"x": random.integers(-6, 6, 50), "y": random.integers(-6, 6, 50)}

    def walk(node: Any) -> tuple[str, Any]:
        if len(node) == 4:
            text, column, sign, value = node
            return text, _COMPARE[sign](columns[column], value)
        join, (left, a), (right, b) = node[0], walk(node[1]), walk(node[2])
        if join == "not":
            return f"not ({left})", ~a
        return f"({left}) {join} ({right})", a & b if join == "and" else a | b

    text, mask = walk(tree)
    table = pa.table(columns)
    assert parse_filter(text, table.schema).rows(table, 50).tolist() == np.flatnonzero(mask).tolist()


def test_columns_are_those_named() -> None:
    """Only what a filter names is read."""
    assert parse_filter("lines > 3 and (public or lines < 9)", TABLE.schema).columns == ("lines", "public")
