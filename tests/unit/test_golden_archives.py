"""Archives of every format since they are kept: they read today as on the day they were written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from storage.fs import Location
from storage.manifest import FORMAT
from storage.verify import verify
from tests.golden.make_archive import told

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("archive-*.zip"))


def test_todays_format_is_among_them() -> None:
    assert f"archive-{FORMAT}.zip" in [path.name for path in GOLDEN]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_it_reads_as_it_was_written(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path)
    said = json.loads((tmp_path / "told.json").read_text())
    assert len(said) >= 3
    for name, expected in said.items():
        found = told(str(tmp_path / name))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (name, key)
        assert verify(Location(str(tmp_path / name))).sound
