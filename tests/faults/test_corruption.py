"""Every object of an archive, in every region, with one wrong bit or cut short: `verify` names it, no read is wrong.

HILBERTFLOW_FAULTS=long flips more bits of each object and reads after every one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.build import build_indexes
from cluster.engine import SearchEngine
from operators.errors import HilbertflowError
from pipelines.cli import call
from storage import archive, catalog, signatures
from storage.fs import Location
from storage.rowlog import RowLog
from storage.verify import verify
from tests.archived_model import archived_model
from tests.collection_fixtures import archive_vectors, clustered

LONG = os.environ.get("HILBERTFLOW_FAULTS") == "long"
Reading = Callable[[], Any]


@pytest.fixture(scope="module", params=["model", "collection"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive of either kind, of several units."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "model":
        return Path(archived_model(root))
    ids, kinds = [f"id {i}" for i in range(4200)], [f"kind {i % 7}" for i in range(4200)]
    return Path(archive_vectors(root, clustered(4200, 8), columns={"kind": kinds}, ids=ids, rows_per_unit=2048))


def readings(url: str) -> dict[str, Reading]:
    """Everything that can be read of an archive, by what it is, each from a handle of its own."""

    def opened(read: Callable[[Any], Any]) -> Reading:
        return lambda: read(archive.open(url))

    handle = archive.open(url)
    found: dict[str, Callable[[Any], Any]] = {}
    if handle.manifest.kind == "model":
        for level in handle.levels:
            found[f"level {level}"] = lambda h, at=level: [h[name].read(at).tobytes() for name in h.names]
        found["rows"] = lambda h: h["layer.0.weight"].read(0, rows=slice(40, 70)).tobytes()
        found["index"] = lambda h: [means.tobytes() for means in h.means(0, h.layout.planes)]
        found["signature"] = lambda h: signatures.dump(signatures.of_archive(h))
        found["names"] = lambda h: [(h[name].shape, h[name].dtype) for name in h.names]
    else:
        for level in handle.levels:
            found[f"level {level}"] = lambda h, at=level: h.read(0, h.count, at).tobytes()
        found["rows"] = lambda h: (h.table(0, h.count).to_pydict(), h.source_rows(0, h.count).tolist())
        found["ids"] = lambda h: h.fetch({"ids": np.arange(h.chunks.chunks)})
        found["lists"] = lambda h: (h.centroids.tobytes(), h.borders.tolist(), h.chunks.residual.tolist())
    return {name: opened(read) for name, read in found.items()}


def damages(data: bytes, random: np.random.Generator) -> Iterator[bytes]:
    """The object with a bit flipped in its header, its payload, its index, its checksum; cut short; empty."""
    size = len(data)
    regions = [(0, 4), (4, size // 2), (size // 2, size - 84), (size - 84, size - 4), (size - 4, size)]
    for low, high in regions:
        low, high = max(0, low), min(size, high)
        for _ in range(8 if LONG else 1):
            if low < high:
                wrong = bytearray(data)
                wrong[int(random.integers(low, high))] ^= 1 << int(random.integers(8))
                yield bytes(wrong)
    yield from (data[: size // 2], data[:-1], b"")


def test_no_wrong_bit_goes_unseen_or_is_read_over(sound: Path, tmp_path: Path) -> None:
    place = tmp_path / sound.name
    shutil.copytree(sound, place)
    reads = readings(str(place))
    truth = {name: read() for name, read in reads.items()}
    cases = found = refused = 0
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        key, data = str(path.relative_to(place)), path.read_bytes()
        random = np.random.default_rng(len(data))
        wrongs: list[bytes | None] = [*damages(data, random), None]  # None: no such object any more
        told = refused
        for case, wrong in enumerate(wrongs):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            cases += 1
            try:
                seen = [damage.key for damage in verify(Location(str(place))).damaged]
            except HilbertflowError as error:
                seen = [error.where.removeprefix(f"{place}/")] if "no archive" not in str(error) else [key]
            assert seen in ([key], [str(place)]), (key, case, seen)
            found += 1
            if LONG or case in (1, 3, 5, len(wrongs) - 1):
                for name, read in reads.items():
                    try:
                        value = read()
                    except HilbertflowError as error:
                        refused += 1
                        assert "\n" not in str(error)
                    else:
                        assert value == truth[name], f"{name} is wrong after damage {case} of {key}"
            path.write_bytes(data)
        assert refused > told or key == "objects.parquet", f"no read goes by {key}"
    assert found == cases
    assert verify(Location(str(place))).sound


def test_indexes_and_the_log_and_the_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = clustered(600, 8)
    url = archive_vectors(tmp_path, rows)
    build_indexes(url, ["hnsw"], actors=0)
    log = RowLog(archive.open(url))
    for at in range(3):
        log.upsert([f"late {at}"], rows[at : at + 1])
    listed = catalog.ls(str(tmp_path / "archives"))
    before = SearchEngine.open(url).search(rows[:3], 5)
    beside = [p for folder in ("indexes", "log") for p in sorted(Path(url, folder).rglob("*")) if p.is_file()]
    for path in [p for p in beside if p.suffix != ".npy" and p.name != "format.json"]:  # these are made again
        data = path.read_bytes()
        for wrong in damages(data, np.random.default_rng(len(data))):
            path.write_bytes(wrong)
            assert call(["verify", url]) == 1, path
            assert path.name in capsys.readouterr().err
            try:
                found = SearchEngine.open(url).search(rows[:3], 5)
            except HilbertflowError:
                continue
            assert found.rows.tolist() == before.rows.tolist()
        path.write_bytes(data)
    assert call(["verify", url]) == 0
    (row,) = (tmp_path / "archives" / "catalog").iterdir()
    row.write_bytes(row.read_bytes()[:-9])
    assert catalog.ls(str(tmp_path / "archives")) == listed
