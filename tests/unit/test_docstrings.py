"""Docstrings found in source files: public names through re-exports, nothing imported, nothing lost to one bad file."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from operators.errors import HilbertflowError
from storage import docstrings
from storage.docstrings import DocstringRows
from storage.rows import RowSource

FILES = {
    "pack/__init__.py": """
        raise SystemExit("this file was imported")
        from . import _hidden
        from ._hidden import function, Class as Renamed
        from .sub import *
        from .sub.deep import later
        from json import dumps
        alias = _hidden.by_assignment
        def own():
            "Own."
    """,
    "pack/_hidden.py": '''
        def function():
            """Singular value decomposition.

            Over two paragraphs.
            """
        class Class:
            "A class."
            def method(self):
                "A method."
            def _private(self):
                "No."
            def __init__(self):
                "No."
            @property
            def value(self):
                "A property."
            class Inner:
                "An inner class."
        def by_assignment():
            "Assigned."
        def unreached():
            "No: no public name leads here."
        def bare(): pass
    ''',
    "pack/sub/__init__.py": '''
        __all__ = ["starred"]
        __all__ += ["attached"]
        from ._impl import starred, not_listed
        from pack._hidden import function
        if True:
            attached = _add_docstr(_C.attached, r"""
                attached(x) -> y

                Attached by a call.
            """)
    ''',
    "pack/sub/_impl.py": """
        def starred():
            "Starred."
        def not_listed():
            "No: the package's list leaves it out."
    """,
    "pack/sub/deep.py": """
        from typing import overload
        from pack._hidden import Class  # a plain module's imports are its own business
        @overload
        def later(x): ...
        def later(x):
            "Defined after its overloads."
        def _underscore():
            "No."
        try:
            def tried():
                "Under try."
        except ImportError:
            pass
        def surrogate():
            "Bad \\ud800 letter."
    """,
    "pack/_newdocs.py": '''
        add_newdoc("pack._native", "compiled", """
            compiled(a, b)

            From a table of docstrings.
        """)
        add_newdoc("pack._native", "signed", """
            signed(
                a=None,
                b="x(",
            )
            --

            Behind its signature.
        """)
        add_newdoc("pack._native", "Array", "Compiled class.")
        add_newdoc("pack._native", "Array", ("T", "Transposed."))
    ''',
    "pack/native.py": '__all__ = ["compiled", "signed", "Array"]\nfrom ._native import compiled, signed, Array',
    "pack/facade.py": "from ._impl import behind",
    "pack/_impl.py": 'def behind():\n    "Behind a facade."',
    "pack/broken.py": "def (",
    "pack/latin.py": b"x = '\xff'",
    "pack/tests/__init__.py": "",
    "pack/tests/test_x.py": 'def test_x():\n    "No: a test."',
    "pack/no_package/loose.py": 'def loose():\n    "No: its folder is no package."',
    "single.py": 'def alone():\n    "Alone."',
    "circle_a.py": 'from circle_b import *\nfrom circle_b import ghost\ndef a():\n    "A."',
    "circle_b.py": "from circle_a import *\nfrom circle_a import ghost",
}
EXPECTED = {
    "circle_a.a": "function", "pack.Renamed": "class", "pack.Renamed.Inner": "class", "pack.Renamed.method": "method",
    "pack.Renamed.value": "method", "pack.alias": "function", "pack.attached": "function",
    "pack.facade.behind": "function", "pack.function": "function",
    "pack.later": "function", "pack.native.Array": "class", "pack.native.Array.T": "method",
    "pack.native.compiled": "function", "pack.native.signed": "function", "pack.own": "function",
    "pack.starred": "function",
    "pack.sub.deep.surrogate": "function", "pack.sub.deep.tried": "function", "single.alone": "function",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    docstrings._content.cache_clear()
    return tmp_path / "cache/hilbertflow/docstrings"


def write(root: Path) -> Path:
    import textwrap

    for name, content in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
    return root


def test_public_names(tmp_path: Path) -> None:
    source = DocstringRows(directory=str(write(tmp_path / "src")))
    table = source.read(0, source.count)
    assert dict(zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True)) == EXPECTED
    rows = {row["id"]: row for row in table.to_pylist()}
    svd = rows["pack.function"]
    assert svd["text"] == "Singular value decomposition.\n\nOver two paragraphs."
    assert (svd["first_line"], svd["lines"], svd["module"]) == ("Singular value decomposition.", 3, "pack._hidden")
    assert (svd["package"], rows["single.alone"]["package"]) == ("pack", "single")
    assert rows["pack.attached"]["first_line"] == "Attached by a call."
    assert rows["pack.native.compiled"]["first_line"] == "From a table of docstrings."
    assert rows["pack.native.signed"]["first_line"] == "Behind its signature."
    assert rows["pack.sub.deep.surrogate"]["text"] == "Bad ? letter."
    assert source.skipped == 2
    assert not {"pack", "single", "circle_a"} & set(sys.modules)


def test_is_a_row_source_that_pickles(tmp_path: Path) -> None:
    source = DocstringRows(directory=str(write(tmp_path / "src")))
    assert isinstance(source, RowSource) and source.dim is None
    source.check()
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(2, 5).equals(source.read(0, 6).slice(2, 3))
    assert copy.columns == ("package", "module", "kind", "first_line", "lines")
    with pytest.raises(HilbertflowError, match="lie outside"):
        source.read(0, source.count + 1)


def test_cache_is_used_and_a_damaged_one_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DocstringRows(directory=str(write(tmp_path / "src")))
    first = source.fingerprint
    kept = sorted(cache.iterdir())
    assert len(kept) == 4
    monkeypatch.setattr(docstrings, "_scan", lambda files: pytest.fail("scanned again"))
    docstrings._content.cache_clear()
    assert (source.fingerprint, source.skipped) == (first, 2)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    docstrings._content.cache_clear()
    assert source.fingerprint == first
    (tmp_path / "src/single.py").write_text('def alone():\n    "Alone, but otherwise."')
    docstrings._content.cache_clear()
    assert source.fingerprint != first


def test_limit_takes_the_first_package_whole_and_shares_the_rest(tmp_path: Path) -> None:
    for name, count in (("first", 60), ("second", 30), ("third", 5)):
        body = "".join(f'def f{i:03}():\n    "Number {i}."\n' for i in range(count))
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(body + 'class C:\n    def m(self):\n        "Method."\n')
    source = DocstringRows(directory=str(tmp_path), limit=82)
    table = source.read(0, source.count)
    counts = {name: table["package"].to_pylist().count(name) for name in ("first", "second", "third")}
    assert counts == {"first": 61, "second": 15, "third": 6}
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    assert "second.C.m" not in table["id"].to_pylist(), "methods come last"
    small = DocstringRows(directory=str(tmp_path), limit=9)
    assert small.count == 9 and len(set(small.read(0, 9)["package"].to_pylist())) == 3
    assert DocstringRows(directory=str(tmp_path), limit=10_000).count == 98


def test_numpy_is_found_under_its_public_names() -> None:
    imported = set(sys.modules)
    source = DocstringRows(("numpy", "constriction"), limit=4000)
    table = source.read(0, source.count)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert rows["numpy.linalg.svd"]["first_line"] == "Singular Value Decomposition."
    assert rows["numpy.linalg.svd"]["module"] == "numpy.linalg._linalg"
    assert {"numpy.arange", "numpy.ndarray.T", "numpy.fft.fft", "numpy.lib.stride_tricks.as_strided"} <= set(rows)
    assert not any(part.startswith("_") for name in rows for part in name.split("."))
    assert "constriction" not in set(sys.modules) - imported


def test_a_distribution_may_be_named_other_than_its_package() -> None:
    source = DocstringRows(("PyYAML",))
    assert "yaml.safe_load" in source.read(0, source.count)["id"].to_pylist()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(HilbertflowError, match=r"'no-such-package' is not installed.*pip install no-such-package"):
        DocstringRows(("numpy", "no-such-package")).check()
    with pytest.raises(HilbertflowError, match="is not a directory"):
        DocstringRows(directory=str(tmp_path / "nope")).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(HilbertflowError, match="no public docstring"):
        DocstringRows(directory=str(tmp_path / "empty")).check()


def test_scanning_in_processes_and_in_line_agree(tmp_path: Path) -> None:
    root = write(tmp_path / "src")
    for number in range(20):
        (root / f"extra{number}.py").write_text(f'def f():\n    "Text {number} é."\n')
    files = {path.stem: str(path) for path in sorted(root.glob("*.py"))}
    assert len(files) >= 16
    through = docstrings._scan(files)
    assert through == {
        name: docstrings.json.loads(docstrings.json.dumps(docstrings.python_scan.scan_file(path, name)))
        for name, path in files.items()
    }
