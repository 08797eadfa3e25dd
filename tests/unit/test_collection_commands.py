"""What the command line tells of a collection that changed, and of indexes that are not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artefact import check_shard
from cluster.build import build_indexes
from cluster.engine import SearchEngine
from cluster.faiss_errors import useful
from cluster.ivfpq import IvfPq
from operators.errors import HilbertflowError
from pipelines.cli import call
from pipelines.commands.tuned import built_lines
from tests.collection_fixtures import archive_vectors, clustered

VECTORS = clustered(600, 8)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """600 rows with a metadata column."""
    return archive_vectors(tmp_path, VECTORS, columns={"kind": ["a"] * 600})


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What a command prints as JSON."""
    assert call([*words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_info_counts_rows_as_archived_and_as_they_are(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After an upsert of a new row and two deletes one row fewer is there than was archived."""
    assert told(capsys, "info", url)["live_rows"] == 600
    engine = SearchEngine.open(url)
    engine.upsert(["new"], VECTORS[:1])
    engine.delete(["row-1", "row-2"])
    found = told(capsys, "info", url)
    assert (found["rows"], found["live_rows"]) == (600, 599)
    assert call(["info", url]) == 0
    assert "live rows" in capsys.readouterr().out


def test_upsert_says_which_columns_become_null(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without a column of the collection are taken, and the command names it."""
    table = {"id": ["row-1"], "vector": pa.FixedSizeListArray.from_arrays(pa.array(VECTORS[0]), 8)}
    pq.write_table(pa.table(table), tmp_path / "new.parquet")
    assert call(["upsert", url, str(tmp_path / "new.parquet")]) == 0
    said = capsys.readouterr()
    assert "has no kind: null in these rows" in " ".join((said.out + said.err).split())
    pq.write_table(pa.table(table | {"kind": ["b"]}), tmp_path / "new.parquet")
    assert told(capsys, "upsert", url, str(tmp_path / "new.parquet"))["null_columns"] == []


def test_verify_names_indexes_of_another_collection(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sound, and used by nobody."""
    other = archive_vectors(tmp_path / "other", clustered(600, 8, seed=5))
    build_indexes(other, ["hnsw"], actors=0)
    assert told(capsys, "verify", other)["unused"] == []
    shutil.copytree(Path(other) / "indexes", Path(url) / "indexes")
    found = told(capsys, "verify", url)
    assert found["sound"] is True
    assert "over other rows" in str(found["unused"]) and "indexes/hnsw-" in str(found["unused"])
    assert call(["verify", url]) == 0
    said = capsys.readouterr()
    assert "which no search uses" in " ".join((said.out + said.err).split())


def test_a_zero_vector_is_named_with_its_file(tmp_path: Path) -> None:
    """Where vectors are to have a direction: the file and the row, and the id if there is one."""
    vectors = VECTORS.copy()
    vectors[70] = 0
    with pytest.raises(HilbertflowError, match=r"rows\.parquet: .*row 70: the vector of id 'row-70' is zero") as caught:
        archive_vectors(tmp_path, vectors, "cosine")
    assert "metric l2 or ip" in caught.value.remedy
    assert archive_vectors(tmp_path, vectors, "ip", name="products")


def test_an_index_by_another_metric_says_so() -> None:
    """By what it compares, and by what the collection does."""
    with pytest.raises(HilbertflowError, match="compares by squared distance, and the collection's metric is ip"):
        check_shard(faiss.IndexFlat(8), "", 0, 8, "ip", "x")
    with pytest.raises(HilbertflowError, match="is an index of 8 values a row, not of 9"):
        check_shard(faiss.IndexFlat(8), "", 0, 9, "l2", "x")


def test_of_an_error_of_faiss_the_useful_part_is_told() -> None:
    """Not the signature and the source file in front of it."""
    with pytest.raises(RuntimeError) as caught:
        faiss.deserialize_index(np.frombuffer(b"abcdefgh" * 9, np.uint8))
    assert str(caught.value).startswith("Error in") and not useful(caught.value).startswith("Error in")
    assert "not recognized" in useful(caught.value)
    assert useful(RuntimeError("x" * 500)) == "x" * 157 + "..."
    assert useful(MemoryError()) == "MemoryError"


def test_an_index_that_misses_its_target_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Short codes alone do not tell the nearest rows, at any setting; whoever built them is told, and `info` tells."""
    for refine, missed in (("fp16", False), ("none", True)):
        build_indexes(url, [IvfPq(refine=refine, target_recall=0.97)], actors=0)  # type: ignore[arg-type]
        index = told(capsys, "info", url)["indexes"]["ivfpq"]  # type: ignore[index]
        assert (index["recall"] < index["target_recall"]) == missed
        lines = built_lines(url, ["ivfpq"])
        assert ("0.97 was asked for" in lines[0]) == (len(lines) == 2) == missed
        assert call(["info", url]) == 0
        assert ("0.97 was asked for" in " ".join(capsys.readouterr().out.split())) == missed
