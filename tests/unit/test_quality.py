"""Quality of stored levels, and planes read by whole units: measured on archives made in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from operators.errors import HilbertflowError
from pipelines.bench.local import archive_model
from pipelines.cli import app
from pipelines.restore import restore
from storage.model import ModelArchive
from storage.quality import measure, structural_similarity
from storage.shard import pack, unpack
from tests.fixtures import write_safetensors

SMALL = ("operators.1.side=64", "operators.4.coder=rans", "operators.1.layout=raster", "compute.planes_per_unit=4")


def values(count: int = 10 * 64 * 64 + 100) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(count).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ModelArchive:
    folder = tmp_path_factory.mktemp("quality")
    w, ids = values(), np.arange(300, dtype=np.int64)
    tensors = {"w": ("F32", w.shape, w.tobytes()), "ids": ("I64", ids.shape, ids.tobytes())}
    return archive_model(write_safetensors(folder / "m.safetensors", tensors), folder, *SMALL)


def test_figures_agree_with_what_is_read(whole: ModelArchive) -> None:
    truth = values().astype(np.float64)
    for found in measure(whole):
        error = whole["w"].read(found.level).astype(np.float64) - truth
        assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(truth).sum() / np.square(error).sum()), abs=1e-6)
        assert found.max_error == pytest.approx(np.abs(error).max())
        span = truth.max() - truth.min()
        assert found.psnr_db == pytest.approx(10 * np.log10(span**2 / np.square(error).mean()), abs=1e-6)
        assert found.sqnr_db == pytest.approx(whole.manifest.quality[f"sqnr_db_level{found.level}"], abs=2e-3)
    first, second = measure(whole)
    assert 0.9 < first.ssim < second.ssim < 1


def test_similarity_is_one_for_equal_planes_and_less_for_others() -> None:
    plane = values(64 * 64)
    assert structural_similarity(plane, plane) == pytest.approx(1)
    assert structural_similarity(plane, plane[::-1].copy()) < 0.2


def test_without_an_exact_level_the_source_is_read(tmp_path: Path) -> None:
    w = values()
    source = write_safetensors(tmp_path / "m.safetensors", {"w": ("F32", w.shape, w.tobytes())})
    handle = archive_model(source, tmp_path, *SMALL, "operators.3.levels=[base, fine]")
    (first, second) = measure(handle)
    assert first.sqnr_db is not None and second.sqnr_db is not None and first.sqnr_db < second.sqnr_db
    Path(source).rename(tmp_path / "moved.safetensors")
    with pytest.raises(HilbertflowError, match="--source"):
        measure(handle)
    assert measure(handle, str(tmp_path / "moved.safetensors")) == [first, second]
    write_safetensors(tmp_path / "other.safetensors", {"w": ("F32", w.shape, (2 * w).tobytes())})
    with pytest.raises(HilbertflowError, match="another checkpoint"):
        measure(handle, str(tmp_path / "other.safetensors"))


def test_info_prints_it(whole: ModelArchive) -> None:
    told = CliRunner().invoke(app, ["info", whole.url, "--quality", "--json"])
    assert told.exit_code == 0
    measured = json.loads(told.stdout)["measured"]
    assert [m["level"] for m in measured] == [0, 1] and set(measured[0]) >= {"sqnr_db", "max_error", "psnr_db", "ssim"}
    assert "SSIM" in CliRunner().invoke(app, ["info", whole.url, "--quality"]).stdout


def test_every_way_of_reading_gives_the_same(whole: ModelArchive, tmp_path: Path) -> None:
    truth = values()
    np.testing.assert_array_equal(whole["w"].read("exact"), truth)
    for start, stop in ((0, 1), (4000, 20_000), (16_384, 32_768), (40_959, 41_060)):
        np.testing.assert_array_equal(whole["w"][start:stop], truth[start:stop])
        np.testing.assert_array_equal(whole["w"].read(0, slice(start, stop)), whole["w"].read(0)[start:stop])
    restore(whole.url, str(tmp_path / "all.safetensors"))
    restore(whole.url, str(tmp_path / "one.safetensors"), tensor="w")
    whole_file, one = (tmp_path / "all.safetensors").read_bytes(), (tmp_path / "one.safetensors").read_bytes()
    assert one.endswith(truth.tobytes()) and truth.tobytes() in whole_file
    assert np.arange(300, dtype=np.int64).tobytes() in whole_file


@pytest.mark.parametrize("array", ["level0", "level1", "exact", "scales"])
def test_any_damaged_byte_of_an_object_is_refused(array: str, tmp_path: Path) -> None:
    w = values(4 * 64 * 64)
    source = write_safetensors(tmp_path / "m.safetensors", {"w": ("F32", w.shape, w.tobytes())})
    handle = archive_model(source, tmp_path, *SMALL)
    (path,) = [p for p in Path(handle.url, array).rglob("*") if p.is_file() and p.name != "zarr.json"]
    data = path.read_bytes()
    for at in [*range(0, len(data), 331), *range(len(data) - 8, len(data))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(HilbertflowError, match=r"damaged|checksum|decode"):
            handle["w"].read("exact")
    path.unlink()
    if array != "scales":
        with pytest.raises(HilbertflowError, match=array):
            handle["w"].read("exact")


def test_a_shard_gives_back_its_chunks_and_nothing_else() -> None:
    chunks = [b"abc", None, b"", b"x" * 70]
    data = pack(chunks, 5)
    assert data is not None and unpack(data, 5) == [*chunks, None]
    for at in range(len(data)):
        with pytest.raises(ValueError, match=r"checksum|shard"):
            unpack(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :], 5)
    with pytest.raises(ValueError, match="shorter"):
        unpack(data[:50], 5)
