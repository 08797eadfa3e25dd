"""A collection with a wrong byte anywhere: a read says so in one line, or gives what is right, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from operators.errors import HilbertflowError
from storage import archive
from storage.collection import CollectionArchive
from storage.fs import Location
from storage.verify import verify
from tests.collection_fixtures import archive_vectors, clustered

ROWS = clustered(4200, 8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection in lists."""
    return Path(archive_vectors(tmp_path_factory.mktemp("sound"), ROWS, rows_per_unit=2048))


def everything(handle: CollectionArchive) -> None:
    source = handle.source_rows(0, handle.count)
    if sorted(source) != list(range(len(ROWS))):
        raise HilbertflowError("other rows than the source's")
    if not np.array_equal(handle.read(0, handle.count), ROWS[source]):
        raise AssertionError("wrong vectors were returned")
    handle.read(0, 100, 0)
    handle.ids(0, handle.count)
    chunks = np.arange(handle.chunks.chunks)
    for frame, rows in zip(handle.fetch({"ids": chunks})["ids"], np.diff(handle.chunks.first_row), strict=True):
        handle.chunk_ids(frame, int(rows))


def objects() -> list[str]:
    return ["zarr.json", "planes.parquet", "manifest.json", "level0/c/0/0", "cells/c/1/0", "exact/c/0/0",
            "ids/00000000", "rows/00000001.parquet", "code/klt_axes/c/0/0", "code/centroids/c/0/0", "code/sizes/c/0",
            "code/sizes/zarr.json", "level1/zarr.json", "exact/zarr.json"]  # fmt: skip


@pytest.mark.parametrize("key", objects())
def test_one_wrong_byte(sound: Path, tmp_path: Path, key: str) -> None:
    place = tmp_path / "copy"
    shutil.copytree(sound, place)
    data = (place / key).read_bytes()
    random = np.random.default_rng(len(data))
    for case in range(8):
        wrong = bytearray(data)
        at = int(random.integers(len(wrong)))
        wrong[at] ^= 1 << int(random.integers(8))
        (place / key).write_bytes(wrong if case else data[: len(data) // 2])
        try:
            everything(archive.open(str(place)))
        except HilbertflowError as error:
            assert "\n" not in str(error)
        if key != "manifest.json":
            assert [damage.key for damage in verify(Location(str(place))).damaged] == [key]
