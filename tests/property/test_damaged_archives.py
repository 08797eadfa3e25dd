"""A model's archive with one object damaged: what is read is right or refused in one line, soon and in little memory.

30 damaged copies of each object; HILBERTFLOW_FUZZ=10000 for the long mode.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from operators.errors import HilbertflowError
from pipelines.bench.local import archive_model
from storage import archive
from storage.verify import verify
from tests.fixtures import write_safetensors
from tests.property.test_readers import CASES, apply, damage, peak

OBJECTS = ("manifest.json", "objects.parquet", "tensors.parquet", "planes.parquet", "zarr.json", "level0/zarr.json",
           "level0/c/0/0/0", "level1/c/0/0/0", "exact/c/0/0/0", "scales/c/0/0", "means/c/0/0")  # fmt: skip
PLACES = 40  # of single bytes that are flipped, in each object


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A small archive and the bytes of its two tensors."""
    folder = tmp_path_factory.mktemp("archive")
    w, ids = np.random.default_rng(1).normal(size=(96, 96)).astype("<f4"), np.arange(40).astype("<i8")
    tensors = {"w": ("F32", w.shape, w.tobytes()), "ids": ("I64", ids.shape, ids.tobytes())}
    source = write_safetensors(folder / "m.safetensors", tensors)
    handle = archive_model(source, folder, "operators.1.side=32", "operators.1.layout=hilbert",
                           "operators.4.coder=rans", "operators.2.states=8")  # fmt: skip
    return Path(handle.url), {name: data for name, (_, _, data) in tensors.items()}


def read(url: Path, source: dict[str, bytes]) -> None:
    """All that an archive holds, the exact level compared."""
    handle = archive.open(str(url))
    for name in handle:
        for level in handle.levels:
            values = handle[name].read(level)
            assert level != "exact" or values.tobytes() == source[name], "read over damage"
    handle.means(0, handle.layout.planes)
    verify(handle.place)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("key", OBJECTS)
def test_damaged_objects(whole: tuple[Path, dict[str, bytes]], key: str, tmp_path: Path) -> None:
    url, source = whole
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    read(copy, source)
    good, before = (url / key).read_bytes(), peak()

    @settings(
        max_examples=CASES if CASES > 300 else CASES // 10, deadline=None, derandomize=CASES <= 300, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damage())
    def check(steps: list[tuple[str, float, int]]) -> None:
        (copy / key).write_bytes(apply(good, steps))
        begin = time.process_time()
        try:
            read(copy, source)
        except HilbertflowError as error:
            assert str(copy) in str(error) and "\n" not in str(error)
        assert time.process_time() - begin < 5, "took longer than 5 seconds"

    check()
    assert peak() - before < 1e9, f"grew by {(peak() - before) / 1e6:.0f} MB"


@pytest.mark.parametrize("key", [key for key in OBJECTS if "/c/" in key])
def test_any_byte_flipped_in_a_chunk_is_refused(whole: tuple[Path, dict[str, bytes]], key: str, tmp_path: Path) -> None:
    url, source = whole
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    good = (url / key).read_bytes()
    for at in sorted({*np.linspace(0, len(good) - 1, PLACES).astype(int).tolist()}):
        (copy / key).write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(HilbertflowError, match=key.split("/")[0]):
            read(copy, source)
