"""The page of examples in Python, executed from its first line to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, in one namespace; what it says of the answers holds."""
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 7
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), known)
    said = capsys.readouterr().out
    assert "hnsw" in said and "seconds" in said and "give vectors of 32 values" in said
    assert known["found"].ids.shape == (1, 5)
    assert known["engine"].collection.count == 500 and len(known["engine"].rows(["new"])) == 1
