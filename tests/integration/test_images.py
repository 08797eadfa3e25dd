"""A folder of pictures to a collection by a CLIP model, and searches of it by words and by a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.config import parse_config
from cluster.serve_app import encoder_users
from cluster.thumbnails import Thumbnails
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from pipelines.cli import call
from pipelines.compact import compact_recipe
from pipelines.recipe import load
from pipelines.run import run, run_here
from storage import archive
from storage.rowlog import RowLog
from tests.model_fixtures import bert, clip
from tests.pictures import bomb, png


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP."""
    return clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures at two depths, a broken one, and one that claims 144 million pixels."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(20):
        kind = "JPEG" if i % 2 else "PNG"
        path = root / ("deep/er" if i % 3 else ".") / f"{i:02d}.{kind.lower().replace('jpeg', 'jpg')}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed=i, kind=kind))
    (root / "broken.jpg").write_bytes(png(kind="JPEG")[:200])
    (root / "bomb.png").write_bytes(bomb(12_000, 12_000))
    return root


def settings(folder: Path, model: Path, root: Path) -> list[str]:
    return [f"source.path={folder}", f"operators.0.model={model}", f"sink.path={root}",
            "compute.rows_per_unit=64", "index.kind=hnsw"]  # fmt: skip


def test_pictures_are_found_by_picture_and_by_words(
    folder: Path, model: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(load("images", settings(folder, model, tmp_path)))
    said = capsys.readouterr().err
    assert "broken.jpg is left out: byte 200: it is no picture that can be read" in said
    assert "bomb.png is left out: byte 41: it has 12,000 × 12,000 pixels" in said
    rows = archive.open(report.url)
    paths = rows.table(0, rows.count).column("path").to_pylist()
    assert len(paths) == 20 and "deep/er/01.jpg" in paths
    encoder = open_encoder(str(model))
    expected = encoder.encode_pictures([(folder / path).read_bytes() for path in paths])
    np.testing.assert_allclose(rows.read(0, 20), expected, atol=2e-6)
    for number, path in ((3, "03.jpg"), (8, "deep/er/08.png")):
        assert call(["search", report.url, "--image", str(folder / path), "-k", "3", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["results"][0]
        assert found["ids"][0] == f"{path}#0" and found["scores"][0] == pytest.approx(1, abs=1e-3), number
    assert call(["search", report.url, "--text", "a red shirt", "-k", "20", "--tier", "exact", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"][0]
    scores = expected @ encoder.encode(["a red shirt"])[0]
    assert found["ids"] == [f"{paths[i]}#0" for i in np.argsort(-scores)]
    assert call(["search", report.url, "--image", str(folder / "bomb.png")]) == 1
    assert "12,000 × 12,000 pixels" in capsys.readouterr().err
    assert call(["search", report.url, "--image", str(folder / "nowhere.png")]) == 1


def test_pictures_and_model_are_known_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archived by relative paths, compacted and served from another directory, the model by another path as well."""
    made = clip(tmp_path / "clip")
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(seed=i))
    monkeypatch.chdir(tmp_path)
    url = run_here(load("images", settings(Path("pictures"), Path("clip"), Path("root")))).url
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    shutil.copytree(made, tmp_path / "copy")
    RowLog(archive.open(url)).delete(["3.png#0"])
    for _ in range(2):
        rows = archive.open(url)
        told = rows.table(0, 1).to_pylist()[0]
        thumbnails = Thumbnails.of(rows)
        assert thumbnails is not None
        assert thumbnails.read(told["path"], told["sha256"])[8:12] == b"WEBP"
        for model in (made, tmp_path / "copy"):
            item = {"name": "pictures", "url": url, "encoder": {"model": str(model)}}
            assert list(encoder_users(parse_config({"collections": [item]})).values()) == [["pictures"]]
        run_here(compact_recipe(rows, RowLog(rows).home))
    other = bert(tmp_path / "bert")
    item = {"name": "pictures", "url": url, "encoder": {"model": str(other)}}
    with pytest.raises(HilbertflowError, match="were not made by"):
        encoder_users(parse_config({"collections": [item]}))


def test_a_model_of_texts_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    texts = bert(tmp_path / "bert")
    with pytest.raises(HilbertflowError, match="takes no pictures; name a CLIP model directory"):
        run(load("images", settings(folder, texts, tmp_path / "out")))
    assert not (tmp_path / "out").exists()
