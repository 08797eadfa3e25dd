"""Repair: whatever is broken comes back bit for bit, from the source or from a copy, and nothing else is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from operators.errors import HilbertflowError
from pipelines.cli import call
from pipelines.repair import repair, unit_of
from pipelines.run import here
from storage import archive
from storage.fs import Location
from storage.manifest import load_objects
from storage.verify import verify
from tests.archived_model import archived_model, small_tensors
from tests.collection_fixtures import archive_vectors, clustered


@pytest.fixture(scope="module", params=["model", "collection"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive of either kind, of several units, and its source, which is not where the recipe says any more."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "model":
        url, source = archived_model(root), root / "small.safetensors"
    else:
        url, source = archive_vectors(root, clustered(4200, 8), rows_per_unit=1024), root / "rows.parquet"
    moved = source.rename(source.with_stem("moved"))
    return Path(url), moved


def copied(sound: Path, root: Path) -> Path:
    place = root / sound.parent.name / sound.name
    shutil.copytree(sound, place)
    for path in place.rglob("*"):
        os.utime(path, (1, 1))
    return place


def written(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and p.stat().st_mtime > 1}


def break_(path: Path, how: int) -> None:
    data = bytearray(path.read_bytes())
    if how == 2:
        path.unlink()
        return
    data[len(data) // 2] ^= 8
    path.write_bytes(bytes(data) if how else bytes(data[: len(data) // 3]))


def content(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_each_object_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    sound, source = made
    place, truth = copied(sound, tmp_path), content(sound)
    per_array: dict[str, str] = {}
    for key in truth:
        if key != "manifest.json":
            per_array[key if unit_of(key) < 0 else key.split("/")[0]] = key
    for at, key in enumerate(per_array.values()):
        if "code/" in key and at % 4:
            continue  # each small array of the code is like the next
        for path in place.rglob("*"):
            os.utime(path, (1, 1))
        break_(place / key, at % 3)
        done = repair(Location(str(place)), str(source), here)
        assert done.objects == (key,) and content(place) == truth
        assert {name for name in written(place) if (place / name).is_file()} == {key}
        assert done.units == (
            0 if unit_of(key) < 0 and key not in ("planes.parquet", "signature.parquet") else done.units
        )
        assert unit_of(key) < 0 or done.units == 1


def test_many_at_once_and_all_of_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    sound, source = made
    place, truth = copied(sound, tmp_path), content(sound)
    random = np.random.default_rng(0)
    keys = [key for key in truth if key not in ("manifest.json", "objects.parquet")]
    for how, key in enumerate(random.choice(keys, len(keys) // 2, replace=False)):
        break_(place / key, how % 3)
    assert not verify(Location(str(place))).sound
    repair(Location(str(place)), str(source), here)
    assert content(place) == truth
    for key in keys:
        (place / key).unlink()
    repair(Location(str(place)), str(source), here)
    assert content(place) == truth


def test_from_a_copy_even_the_manifest(made: tuple[Path, Path], tmp_path: Path) -> None:
    sound, _ = made
    place, truth = copied(sound, tmp_path), content(sound)
    keys = [key for key in truth if key != "zarr.json"]
    for how, key in enumerate(keys):
        break_(place / key, how % 3)
    done = repair(Location(str(place)), str(sound), here)
    assert content(place) == truth and done.units == 0 and set(done.objects) == set(keys)


def test_what_cannot_be_mended_is_said(made: tuple[Path, Path], tmp_path: Path) -> None:
    sound, source = made
    place = copied(sound, tmp_path)
    item = next(item for item in load_objects(Location(str(place)), archive.open(str(place)).manifest) if item.unit > 0)
    break_(place / item.key, 1)
    damaged = content(place)
    with pytest.raises(HilbertflowError, match=r"does not exist|no such"):
        repair(Location(str(place)), "", here)  # the recipe's own path: it has moved
    other = tmp_path / source.name
    if source.suffix == ".parquet":
        shutil.copy(archive_source(tmp_path), other)
    else:
        data = bytearray(source.read_bytes())
        data[-1] ^= 1
        other.write_bytes(data)
    with pytest.raises(HilbertflowError, match="is not what the archive was made of"):
        repair(Location(str(place)), str(other), here)
    assert content(place) == damaged
    break_(place / "objects.parquet", 1)
    with pytest.raises(HilbertflowError, match=r"remove manifest\.json and run"):
        repair(Location(str(place)), str(source), here)
    break_(place / "manifest.json", 1)
    with pytest.raises(HilbertflowError, match="manifest"):
        repair(Location(str(place)), str(source), here)


def archive_source(root: Path) -> Path:
    archive_vectors(root / "other", clustered(4200, 8, seed=9))
    return root / "other" / "rows.parquet"


def test_by_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None) -> None:
    url = archived_model(tmp_path)
    assert call(["repair", url]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    victim = Path(url, "level0/c/1/0/0")
    break_(victim, 1)
    assert call(["verify", url]) == 1
    assert "level0/c/1/0/0: checksum differs" in capsys.readouterr().err
    assert call(["repair", url, "--from", str(tmp_path / "small.safetensors")]) == 0
    assert "1 object mended, 1 unit made again" in capsys.readouterr().out
    assert call(["verify", url]) == 0
    weight = archive.open(url)["layer.0.weight"].read("exact")
    assert weight.tobytes() == small_tensors()["layer.0.weight"].tobytes()
