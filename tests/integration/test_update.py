"""A folder that is run again: what is new or changed is embedded, what is gone goes, the rest is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.engine import SearchEngine
from operators.embed import Embed
from operators.errors import HilbertflowError
from pipelines.cli import call
from pipelines.recipe import Recipe, load
from pipelines.run import run, run_here
from pipelines.uses.live_rows import LiveRows
from tests.model_fixtures import bert, clip
from tests.pictures import png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("the red coat. " * 40)
    (root / "b.md").write_text("a shirt with a curve")
    (root / "deep/c.html").write_text("<p>the leather boot</p>")
    (root / "broken.pdf").write_bytes(b"%PDF and nothing")
    return root


def recipe(folder: Path, tmp_path: Path, *more: str) -> Recipe:
    model = tmp_path / "model"
    if not model.exists():
        bert(model)
    sets = [f"source.path={folder}", f"sink.path={tmp_path / 'root'}", f"operators.0.model={model}"]
    return load("documents", [*sets, "source.words=20", "source.overlap=2", "index.kind=hnsw", *more])


def rows_of(url: str) -> dict[str, dict[str, Any]]:
    """Ids and metadata of the rows that stand, by id."""
    live = LiveRows.of(url)
    return {row["id"]: row for row in live.table(np.arange(live.count)).to_pylist()}


def nearest(url: str, name: str) -> dict[str, float]:
    """The rows nearest to the one of this id, with their scores."""
    engine = SearchEngine.open(url)
    found = engine.search(engine.take(engine.rows([name])), 4, "exact")
    return dict(zip(found.ids[0], found.scores[0].round(5).tolist(), strict=True))


def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are embedded from now on, in this process."""
    seen: list[str] = []
    apply = Embed.apply
    monkeypatch.setattr(
        Embed, "apply", lambda self, batch: (seen.extend(batch["id"].to_pylist()), apply(self, batch))[1]
    )
    return seen


def test_a_run_embeds_only_what_changed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_here(recipe(folder, tmp_path))
    assert (
        set(rows_of(first.url)) == {*(f"a.txt#{i}" for i in range(7)), "b.md#0", "deep/c.html#0"}
        and first.changes is None
    )
    seen = embedded(monkeypatch)
    again = run_here(recipe(folder, tmp_path))
    assert not again.changes and again.changes is not None and again.changes.kept == 9 and seen == []
    (folder / "b.md").write_text("a dress with a curve")
    (folder / "a.txt").write_text("the red coat. " * 10)
    (folder / "new.txt").write_text("the shoe and the boot")
    (folder / "deep/c.html").unlink()
    before = LiveRows.of(first.url)
    changed = run_here(recipe(folder, tmp_path))
    assert changed.changes is not None
    assert sorted(seen) == ["a.txt#0", "a.txt#1", "b.md#0", "new.txt#0"]
    assert sorted(changed.changes.gone) == [*(f"a.txt#{i}" for i in range(2, 7)), "deep/c.html#0"]
    live = LiveRows.of(first.url)
    assert live.count == 4 and before.count == 9
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    whole = run_here(recipe(folder, tmp_path, f"sink.path={fresh}"))
    assert rows_of(first.url) == rows_of(whole.url)  # as if the folder had been archived anew
    for name in rows_of(first.url):
        assert nearest(first.url, name) == nearest(whole.url, name)
    assert not run_here(recipe(folder, tmp_path)).changes


def test_rows_that_came_from_no_file_stay(folder: Path, tmp_path: Path) -> None:
    url = run_here(recipe(folder, tmp_path)).url
    engine = SearchEngine.open(url)
    engine.upsert(["mine"], engine.take(engine.rows(["b.md#0"])))
    (folder / "b.md").unlink()
    assert run_here(recipe(folder, tmp_path)).changes.gone == ("b.md#0",)  # type: ignore[union-attr]
    engine.refresh()
    assert engine.rows(["mine", "b.md#0"])[0] >= 0 > engine.rows(["mine", "b.md#0"])[1]


def test_another_recipe_is_still_refused(folder: Path, tmp_path: Path) -> None:
    run_here(recipe(folder, tmp_path))
    with pytest.raises(HilbertflowError, match="another source or recipe has this name"):
        run_here(recipe(folder, tmp_path, "source.words=30"))


def test_a_model_that_has_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    run_here(recipe(folder, tmp_path))
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(HilbertflowError, match="embedded by another model"):
        run_here(recipe(folder, tmp_path))


def test_through_ray_and_the_command_line(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pictures = clip(tmp_path / "clip"), tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        (pictures / f"{i}.png").write_bytes(png(seed=i))
    sets = [
        f"source.path={pictures}",
        f"operators.0.model={model}",
        f"sink.path={tmp_path / 'root'}",
        "index.kind=hnsw",
    ]
    url = run(load("images", sets)).url
    (pictures / "5.png").write_bytes(png(seed=50))
    (pictures / "6.png").write_bytes(png(seed=6))
    (pictures / "0.png").unlink()
    command = ["run", "images", *(word for setting in sets for word in ("--set", setting))]
    capsys.readouterr()
    assert call(command) == 0
    said = capsys.readouterr().out
    assert "2 rows of 2 new or changed files put in, 1 rows deleted, 4 as they were" in said
    assert call(["search", url, "--image", str(pictures / "5.png"), "-k", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert found["ids"][0] == "5.png#0" and set(found["ids"]) == {f"{i}.png#0" for i in range(1, 7)}
    assert call([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert done["changes"] == {"put_in": 0, "deleted": 0, "kept": 6}
