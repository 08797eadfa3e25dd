"""What a person sees: tables that fit, bars that tell bytes, a question that can be answered, refused and left."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.fs import Location
from storage.upkeep import copy
from tests.archived_model import archived_model
from tests.collection_fixtures import archive_vectors, clustered
from tests.terminal import on_terminal


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a model and a collection."""
    root = tmp_path_factory.mktemp("sound")
    model = archived_model(root)
    vectors = archive_vectors(root / "more", clustered(400, 16).astype(np.float32))
    copy(Location(vectors), Location(str(Path(model).parents[1])))
    return Path(model).parents[1]


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "root"))


def test_ls_fits_a_terminal_of_80_columns_and_cuts_no_number(root: Path) -> None:
    (half := root / "models/begun").mkdir()
    (half / "zarr.json").write_text("{}")
    code, shown = on_terminal(["ls", str(root)])
    told, heads, _, *lines = filter(str.strip, shown.splitlines())
    assert code == 0 and max(map(len, (heads, *lines))) <= 80
    assert heads.split() == ["archive", "source", "archived", "level0", "level1", "level2", "exact"]
    rows = {line.split()[0]: line for line in lines}
    assert set(rows) == {"collections/rows", f"models/{next((root / 'models').glob('[!b]*')).name}"}
    assert rows["collections/rows"].count("B") == 6, "each size with its unit, on one line"
    assert told.startswith("half-written: models/begun; ")


def test_a_bar_tells_bytes(root: Path) -> None:
    code, shown = on_terminal(["verify", str(root / "collections/rows")])
    assert code == 0 and "verifying rows" in shown and "100%" in shown
    read = shown.rsplit("(", 1)[1].partition(" read)")[0]
    assert f"{read} of {read}" in shown


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (["n\n"], 1, "[y/N] n\nnot removed\n"),
        (["\n"], 1, "[y/N] \nnot removed\n"),
        (["\x04"], 1, "not removed: nobody answered; --yes goes on without asking\n"),
        (["\x03"], 130, "[y/N] ^C\ninterrupted\n"),
        (["what\n", "yes\n"], 0, "[y/N] what\nanswer y or n\n"),
    ],
    ids=["no", "nothing", "end", "interrupt", "yes"],
)  # fmt: skip
def test_rm_asks(root: Path, keys: list[str], code: int, said: str) -> None:
    place = root / "collections/rows"
    ended, shown = on_terminal(["rm", str(place)], *((r"\[y/N\] ", key) for key in keys))
    assert ended == code and said in shown
    assert place.exists() == (code != 0)
