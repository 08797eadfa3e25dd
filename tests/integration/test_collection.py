"""Vectors into a collection and out again: archive, index, search, restore, and what is wrong with an input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import HilbertflowError
from pipelines.recipe import load
from pipelines.restore import restore
from pipelines.run import run, run_here
from storage import archive
from tests.integration.test_run import CHECKOUT, digests

COUNT, DIM = 3000, 48


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clustered vectors with ids and metadata as Parquet, and the same as .npy beside it."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, DIM))
    values = (centres[rng.integers(0, 40, COUNT)] + 0.3 * rng.standard_normal((COUNT, DIM))).astype(np.float32)
    folder = tmp_path_factory.mktemp("vectors")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIM)
    ids = pa.array([f"row-{i}" for i in range(COUNT)])
    pq.write_table(
        pa.table({"id": ids, "vector": column, "parity": pa.array(["even", "odd"] * (COUNT // 2))}),
        folder / "v.parquet", row_group_size=700,
    )  # fmt: skip
    np.save(folder / "v.npy", values)
    return folder


def settings(source: Path, root: Path, *more: str) -> list[str]:
    return [f"source.path={source}", f"sink.path={root}", "source.id_column=id",
            "compute.rows_per_unit=512", *more]  # fmt: skip


@pytest.fixture(scope="module")
def root(vectors: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A finished collection with two kinds of index in two shards."""
    root = tmp_path_factory.mktemp("collections")
    report = run(load("vectors", settings(vectors / "v.parquet", root)))
    assert report.written == 6 and set(report.indexes) == {"ivfpq", "hnsw"}
    return root


def truth(values: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ values.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


def test_vectors_ids_and_metadata_come_back(vectors: Path, root: Path, tmp_path: Path) -> None:
    restore(str(root), str(tmp_path / "back.parquet"))
    before, after = pq.read_table(vectors / "v.parquet"), pq.read_table(tmp_path / "back.parquet")
    assert after.select(["id", "parity"]).equals(before.select(["id", "parity"]))
    np.testing.assert_array_equal(
        after.column("vector").combine_chunks().flatten(), before.column("vector").combine_chunks().flatten()
    )
    restore(str(root), str(tmp_path / "back.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), np.load(vectors / "v.npy"))


def test_rows_are_taken_in_the_order_asked_and_levels_differ(vectors: Path, root: Path) -> None:
    handle, values = archive.open(str(root)), np.load(vectors / "v.npy")
    rows = np.array([2999, 0, 513, 64, 0])
    np.testing.assert_array_equal(handle.take(rows), values[rows])
    assert handle.metadata(rows).column("id").to_pylist() == [f"row-{i}" for i in rows]
    errors = [np.square(handle.take(rows, level) - values[rows]).sum() for level in (0, 1, 2)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize(("tier", "least"), [("exact", 1.0), ("ivfpq", 0.9), ("hnsw", 0.9)])
def test_every_tier_from_the_command_line(vectors: Path, root: Path, tmp_path: Path, tier: str, least: float) -> None:
    values = np.load(vectors / "v.npy")
    queries = values[:20] + 0.05
    np.save(tmp_path / "q.npy", queries)
    command = ["search", str(root), "--vector", str(tmp_path / "q.npy"), "-k", "10", "--tier", tier, "--json"]
    answer = cli(*command)
    results = json.loads(answer.stdout)["results"]
    expected = truth(values, queries, 10)
    hits = [
        len({f"row-{row}" for row in expected[q]} & set(results[q]["ids"])) for q in range(20)
    ]  # fmt: skip
    assert all(len(r["ids"]) == len(r["scores"]) == 10 and r["partial"] is False for r in results)
    assert sum(hits) / 200 >= least


def test_a_second_run_does_nothing(vectors: Path, root: Path) -> None:
    before = digests(root)
    report = run(load("vectors", settings(vectors / "v.parquet", root)))
    assert report.written == 0 and report.indexes == ()
    assert digests(root) == before


@pytest.fixture(scope="module")
def listed(vectors: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The same rows in lists, by an undisturbed run of many small units."""
    root = tmp_path_factory.mktemp("listed")
    report = run(load("vectors", in_lists(vectors, root)))
    assert report.written == report.plan.spec.units > 5
    return root


def in_lists(vectors: Path, root: Path, *more: str) -> list[str]:
    return settings(vectors / "v.parquet", root, "operators.0.order=lists", "index=null", *more)


def test_rows_lie_list_by_list_and_restore_in_the_order_of_the_source(
    vectors: Path, listed: Path, tmp_path: Path
) -> None:
    handle, values = archive.open(str(listed)), np.load(vectors / "v.npy")
    source = handle.source_rows(0, COUNT)
    assert handle.sorted and np.array_equal(np.sort(source), np.arange(COUNT))
    np.testing.assert_array_equal(handle.read(0, COUNT), values[source])
    assert handle.ids(0, COUNT).to_pylist() == [f"row-{row}" for row in source]
    centroids, borders = handle.centroids, handle.borders
    assert len(centroids) == len(borders) - 1 == handle.attributes["lists"] and borders[-1] == COUNT
    mine = np.repeat(np.arange(len(centroids)), np.diff(borders))
    far = np.square(values[source][:, None] - centroids[None]).sum(axis=2)
    assert (far.argmin(axis=1) == mine).mean() > 0.999
    for out in ("back.npy", "back.parquet"):
        restore(str(listed), str(tmp_path / out))
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), values)
    before, after = pq.read_table(vectors / "v.parquet"), pq.read_table(tmp_path / "back.parquet")
    assert after.select(["id", "vector", "parity"]).to_pydict() == before.select(["id", "vector", "parity"]).to_pydict()


def test_a_query_reads_few_ranges_and_no_index_of_a_shard(listed: Path) -> None:
    handle = archive.open(str(listed))
    handle.code, handle.manifest  # noqa: B018 - open
    everything = handle.read(0, COUNT, 0)
    traffic = handle.place.traffic
    before, held = traffic.requests, traffic.bytes_read
    start, stop = (int(border) for border in handle.borders[[10, 13]])
    rows, values = handle.base_blocks([(start, stop), (start + 1, stop - 1), (5, 6)], 0)
    assert traffic.requests - before <= 3
    assert traffic.bytes_read - held < 0.2 * handle.manifest.levels["level0"]
    assert np.isin(np.arange(start, stop), rows).all() and 5 in rows and len(rows) == len(set(rows))
    np.testing.assert_array_equal(values, everything[rows])
    chunks = handle.chunks.chunk_of(rows)
    fetched = handle.fetch({"level0": np.unique(chunks), "ids": np.unique(chunks)})
    coefficients = handle.coefficients(np.unique(chunks), 0, fetched)
    np.testing.assert_array_equal(handle.code.klt.inverse(coefficients), values)
    ids = [name for frame, chunk in zip(fetched["ids"], np.unique(chunks), strict=True)
           for name in handle.chunk_ids(frame, int(np.diff(handle.chunks.first_row)[chunk]))]  # fmt: skip
    assert ids == handle.metadata(rows).column("id").to_pylist()
    assert handle.base_blocks([], 0)[1].shape == (0, DIM)


def test_stock_zarr_reads_the_symbols(listed: Path) -> None:
    import zarr

    handle = archive.open(str(listed))
    stored = zarr.open_array(handle.url, path="level1", mode="r")
    assert stored.shape == (handle.chunks.chunks * 16, handle.code.width("level1"))
    chunk = int(np.flatnonzero(np.diff(handle.chunks.first_row) < 16)[3])  # a short one
    (data,) = handle.fetch({"level1": np.array([chunk])})["level1"]
    rows = int(np.diff(handle.chunks.first_row)[chunk])
    whole = stored[16 * chunk : 16 * (chunk + 1)]
    np.testing.assert_array_equal(whole[:rows], handle.symbols("level1", data, rows))
    assert not whole[rows:].any()


@pytest.mark.parametrize("moment", ["scratch/sorted", "journal"])
def test_killed_runs_resume_to_the_same_bytes(vectors: Path, listed: Path, tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "vectors", "--json"]
    for setting in in_lists(vectors, tmp_path, "compute.actors=1"):
        command += ["--set", setting]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    place = tmp_path / "collections" / "vectors"
    while process.poll() is None and len(list((place / moment).glob("0*.json"))) < 2:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "manifest.json").exists()
    with pytest.raises(HilbertflowError, match="half-written"):
        archive.open(str(place))
    run_here(load("vectors", in_lists(vectors, tmp_path)))
    assert digests(place) == digests(listed / "collections" / "vectors")


def bad_vectors(path: Path, case: str) -> str:
    values: Any = np.ones((100, 8), np.float32)
    ids = [f"i{n}" for n in range(100)]
    rows: list[list[float]] = values.tolist()
    if case == "NaN":
        rows[41][3] = float("nan")
    elif case == "unequal":
        rows[17] = rows[17][:5]
    elif case == "duplicate":
        ids[60] = ids[7]
    elif case == "null":
        rows[3] = None  # type: ignore[call-overload]
    pq.write_table(pa.table({"id": ids, "vector": pa.array(rows, pa.list_(pa.float32()))}), path)
    return str(path)


@pytest.mark.parametrize(("case", "named"), [("NaN", "41"), ("unequal", "17"), ("duplicate", "i7"), ("null", "3")])
def test_bad_vectors_are_named_in_one_line_and_leave_nothing(tmp_path: Path, case: str, named: str) -> None:
    source = bad_vectors(tmp_path / "bad.parquet", case)
    options = [part for setting in settings(Path(source), tmp_path / "root") for part in ("--set", setting)]
    answer = cli("run", "vectors", *options, check=False)
    assert answer.returncode == 1, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.strip() and "units" not in line]
    assert len(lines) == 1 and named in lines[0] and "bad.parquet" in lines[0]
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_an_unwritable_sink_is_one_line(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    options = [p for s in settings(vectors / "v.npy", tmp_path / "file" / "root")[:2] for p in ("--set", s)]
    answer = cli("run", "vectors", *options, check=False)
    assert answer.returncode == 1
    assert len(answer.stderr.strip().splitlines()) == 1 and str(tmp_path / "file") in answer.stderr


def cli(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=check
    )


def test_half_a_collection_is_not_opened(vectors: Path, root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / "collections" / "vectors" / "manifest.json").unlink()
    with pytest.raises(HilbertflowError, match="half-written"):
        archive.open(str(tmp_path / "copy" / "collections" / "vectors"))


def test_verify_names_a_damaged_index_file(root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    place = tmp_path / "copy" / "collections" / "vectors"
    victim = next(path for path in sorted((place / "indexes").rglob("*.faiss")) if "hnsw" in path.name)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    answer = cli("verify", str(place), check=False)
    assert answer.returncode == 1
    assert str(victim.relative_to(place)) in answer.stderr
