"""Vector files as rows: every format gives the same rows, and every fault is named by file and row."""

from __future__ import annotations

import builtins
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from operators.errors import HilbertflowError
from storage.rows import RowSource, check_unique
from storage.vectors import VectorRows, open_vectors
from tests.fixtures import write_safetensors

N, D = 1000, 7
VALUES = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
IDS = [f"id {i} é" for i in range(N)]


def fixed(values: npt.NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def table(values: npt.NDArray[Any] = VALUES, **columns: Any) -> pa.Table:
    return pa.table({"vector": fixed(values), "id": IDS[: len(values)], "lines": range(len(values)), **columns})


def arrow(data: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), data.schema) as writer:
        writer.write_table(data, max_chunksize=300)


def shuffled_npz(path: Path) -> None:
    np.savez_compressed(path, ids=np.array(IDS), vector=VALUES, labels=np.arange(N))


def vecs(values: npt.NDArray[Any]) -> bytes:
    return b"".join(len(row).to_bytes(4, "little") + row.tobytes() for row in values)


def tensors(path: Path, values: npt.NDArray[Any]) -> None:
    from tests.fixtures import write_safetensors

    write_safetensors(path, {"other": ("F32", (1,), bytes(4)), "emb": ("F32", values.shape, values.tobytes())})


def jsonl(values: npt.NDArray[Any] = VALUES) -> str:
    rows = [{"id": IDS[i], "vector": row.tolist(), "lines": i, "tags": ["a", i]} for i, row in enumerate(values)]
    return "\n\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))


def hdf5(path: Path, **datasets: Any) -> None:
    h5py = pytest.importorskip("h5py", reason="writes an HDF5 file")
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)


def zarr_array(path: Path, values: npt.NDArray[Any], **options: Any) -> None:
    import zarr

    zarr.create_array(str(path), data=values, chunks=(128, 4), **options)


def zarr_group(path: Path, **arrays: Any) -> None:
    import zarr

    group = zarr.create_group(str(path))
    for name, values in arrays.items():
        group.create_array(name, data=values)


WRITERS: dict[str, tuple[Callable[[Path], None], bool]] = {  # name -> writer, whether ids are in it
    "c.npy": (lambda path: np.save(path, VALUES), False),
    "fortran.npy": (lambda path: np.save(path, np.asfortranarray(VALUES)), False),
    "f64.npy": (lambda path: np.save(path, VALUES.astype(np.float64)), False),
    "big_endian.npy": (lambda path: np.save(path, VALUES.astype(">f4")), False),
    "plain.npz": (lambda path: np.savez(path, whatever=VALUES), False),
    "packed.npz": (shuffled_npz, True),
    "one_group.parquet": (lambda path: pq.write_table(table(), path), True),
    "groups.parquet": (lambda path: pq.write_table(table(), path, row_group_size=77), True),
    "lists.parquet": (
        lambda path: pq.write_table(table().set_column(0, "vector", pa.array(VALUES.tolist())), path),
        True,
    ),
    "dictionary.parquet": (
        lambda path: pq.write_table(table(kind=pa.array(["a", "b"] * (N // 2)).dictionary_encode()), path),
        True,
    ),
    "zstd.feather": (lambda path: feather.write_feather(table(), path, compression="zstd", chunksize=91), True),
    "x.arrow": (lambda path: arrow(table(), path), True),
    "x.fvecs": (lambda path: path.write_bytes(vecs(VALUES)), False),
    "x.safetensors": (lambda path: tensors(path, VALUES), False),
    "x.jsonl": (lambda path: path.write_text(jsonl(), "utf-8"), True),
    "x.hdf5": (lambda path: hdf5(path, train=VALUES, test=VALUES[:9], ids=IDS), True),
    "urls.h5": (lambda path: hdf5(path, embeddings=VALUES, urls=IDS), True),
    "one.zarr": (lambda path: zarr_array(path, VALUES), False),
    "v2.zarr": (lambda path: zarr_array(path, VALUES, zarr_format=2), False),
    "group.zarr": (lambda path: zarr_group(path, vectors=VALUES, id=np.array(IDS)), True),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, where: str) -> None:
    write, with_ids = WRITERS[name]
    write(tmp_path / name)
    url = str(tmp_path / name)
    if where == "memory":
        import fsspec

        url = f"memory://{tmp_path.name}/{name}"
        fsspec.filesystem("memory").put(str(tmp_path / name), url, recursive=True)
    source = open_vectors(url)
    assert isinstance(source, RowSource)
    assert (source.count, source.dim) == (N, D)
    source.check()
    ids = IDS if with_ids else [str(i) for i in range(N)]
    copy = pickle.loads(pickle.dumps(source))
    for start, stop in ((0, N), (0, 10), (10, 300), (290, 310), (5, 6), (900, N), (76, 78), (300, 300), (0, 1)):
        rows = copy.read(start, stop)
        assert rows.column_names == ["id", "vector", *source.columns]
        assert rows["id"].to_pylist() == ids[start:stop]
        assert rows.schema.field("vector").type == pa.list_(pa.float32(), D)
        got = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, D)
        np.testing.assert_array_equal(got, VALUES[start:stop])
        if "lines" in source.columns:
            assert rows["lines"].to_pylist() == list(range(start, stop))
    assert copy.fingerprint == source.fingerprint
    with pytest.raises(HilbertflowError, match="lie outside its 1000 rows"):
        source.read(990, 1001)


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.float16, "npy"), (np.uint8, "npy"), (np.int16, "parquet"), (np.float16, "parquet")]
)
def test_narrow_types_are_exact(tmp_path: Path, dtype: Any, suffix: str) -> None:
    values = (VALUES * 20).astype(np.int8).astype(dtype)
    path = tmp_path / f"x.{suffix}"
    np.save(path, values) if suffix == "npy" else pq.write_table(pa.table({"emb": pa.array(list(values))}), path)
    rows = open_vectors(str(path)).read(0, N)["vector"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(rows, values.astype(np.float32).reshape(-1))


@pytest.mark.parametrize(("suffix", "dtype"), [("bvecs", np.uint8), ("ivecs", np.int32), ("fvecs", np.float32)])
def test_texmex_files_of_every_type(tmp_path: Path, suffix: str, dtype: Any) -> None:
    values = np.random.default_rng(1).integers(0, 256, (300, D)).astype(dtype)
    (tmp_path / f"x.{suffix}").write_bytes(vecs(values))
    rows = open_vectors(str(tmp_path / f"x.{suffix}"))
    assert (rows.count, rows.dim) == (300, D)
    got = rows.read(7, 290)["vector"].combine_chunks().flatten().to_numpy().reshape(-1, D)
    np.testing.assert_array_equal(got, values[7:290].astype(np.float32))


def test_an_ann_benchmarks_file(tmp_path: Path) -> None:
    """Its rows are ``train``; the queries are asked for by name, and the neighbours are not mistaken for vectors."""
    path, queries = tmp_path / "set.hdf5", VALUES[:9] + 1
    near = np.zeros((9, 100), np.int32)
    hdf5(path, train=VALUES, test=queries, neighbors=near, distances=near.astype(np.float32))
    assert open_vectors(str(path)).count == N
    rows = open_vectors(str(path), column="test").read(0, 9)
    np.testing.assert_array_equal(rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, D), queries)
    assert rows["id"].to_pylist() == [str(i) for i in range(9)]


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    for part in range(3):
        np.save(tmp_path / f"part-{part}.npy", VALUES[part * 300 : part * 300 + 300])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.npy").write_bytes(b"")
    source = open_vectors(str(tmp_path))
    rows = source.read(250, 700)
    assert rows["id"].to_pylist() == [str(i) for i in range(250, 700)]
    np.testing.assert_array_equal(rows["vector"].combine_chunks().flatten().to_numpy(), VALUES[250:700].reshape(-1))
    np.save(tmp_path / "part-9.npy", np.zeros((2, D + 1), np.float32))
    with pytest.raises(
        HilbertflowError, match=r"part-9\.npy: row 0, byte 128: has vectors of length 8, part-0\.npy of 7"
    ):
        open_vectors(str(tmp_path))
    (tmp_path / "part-9.npy").unlink()
    pq.write_table(table(), tmp_path / "x.parquet")
    with pytest.raises(HilbertflowError, match="several formats"):
        open_vectors(str(tmp_path))


def test_fingerprint_sees_content_and_not_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a/x.npy", VALUES)
    np.save(tmp_path / "y.npy", VALUES)
    other = VALUES.copy()
    other[500, 3] += 1
    np.save(tmp_path / "z.npy", other)
    prints = [open_vectors(str(tmp_path / name)).fingerprint for name in ("a/x.npy", "y.npy", "z.npy")]
    assert prints[0] == prints[1] != prints[2]


def test_columns_may_be_named(tmp_path: Path) -> None:
    data = pa.table({"a": fixed(VALUES), "b": fixed(-VALUES), "key": range(N), "row": range(N)})
    pq.write_table(data, tmp_path / "x.parquet")
    source = open_vectors(str(tmp_path / "x.parquet"), "b", "key")
    assert source.columns == ("a", "row_")
    assert source.read(3, 4)["id"].to_pylist() == ["3"]
    assert source.read(3, 4)["vector"][0].as_py() == (-VALUES[3]).tolist()
    both = data.append_column("row_", pa.array(range(N)))
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(HilbertflowError, match=r"column 'row' would be called row_, and there is one.*rename one"):
        open_vectors(str(tmp_path / "both.parquet"), "b", "key").check()
    with pytest.raises(HilbertflowError, match=r"no column 'vector'; set source\.column to one of a, b"):
        open_vectors(str(tmp_path / "x.parquet"))
    with pytest.raises(HilbertflowError, match="no column 'nope' for ids; its columns are a, b, key, row"):
        open_vectors(str(tmp_path / "x.parquet"), "a", "nope")
    with pytest.raises(HilbertflowError, match="schema, column 'key': is int64, not a list of numbers"):
        open_vectors(str(tmp_path / "x.parquet"), "key")
    np.savez(tmp_path / "x.npz", a=VALUES, b=-VALUES, key=np.arange(N))
    assert open_vectors(str(tmp_path / "x.npz"), "b", "key").read(3, 4)["id"].to_pylist() == ["3"]
    with pytest.raises(HilbertflowError, match="2 matrices of numbers"):
        open_vectors(str(tmp_path / "x.npz"))


def put(values: npt.NDArray[Any], row: int, bad: float) -> npt.NDArray[Any]:
    values = values.copy()
    values[row, 2] = bad
    return values


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("raise SystemExit('unpickled')",)


def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def lists(rows: list[Any], kind: Any = None) -> pa.Table:
    return pa.table({"vector": pa.array(rows, kind or pa.list_(pa.float32()))})


def parquet(data: pa.Table) -> Callable[[Path], None]:
    return lambda path: pq.write_table(data, path)


def with_ids(ids: Any) -> pa.Table:
    return table().set_column(1, "id", pa.array(ids))


def tensors_twice(path: Path) -> None:
    write_safetensors(path, {name: ("F32", VALUES.shape, VALUES.tobytes()) for name in "ab"})


def hdf5_external(path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="writes an HDF5 file")
    with h5py.File(path, "w") as file:
        file.create_dataset("train", (2, 8), "u1", external=[("/etc/hostname", 0, 16)])


def zarr_pickle(path: Path) -> None:
    zarr_array(path, VALUES, zarr_format=2)
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, "filters": [{"id": "pickle"}]}))
    (path / "0.0").write_bytes(pickle.dumps(Bomb()))


def zarr_lying(path: Path) -> None:
    zarr_array(path, VALUES, zarr_format=2)
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, "chunks": [1 << 58, 4]}))


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content, "utf-8")


def raw(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "nan": ("x.npy", lambda p: np.save(p, put(VALUES, 500, np.nan)),
            r"x\.npy: row 500, byte 14136: the vector holds nan"),
    "inf": ("x.npy", lambda p: np.save(p, put(VALUES, 999, np.inf)),
            r"x\.npy: row 999, byte 28108: the vector holds inf"),
    "too large for float32": ("x.npy", lambda p: np.save(p, put(VALUES.astype(float), 7, 1e300)),
                              r"x\.npy: row 7, byte 536: .* inf"),
    "nan with id": ("x.parquet", parquet(table(put(VALUES, 500, -np.inf))),
                    "row group 0, column 'vector', row 500: the vector of id 'id 500 é' holds -inf"),
    "nan in npz": ("x.npz", lambda p: np.savez(p, a=put(VALUES, 500, np.nan)),
                   r"x\.npz: a\.npy, row 500, byte 14136: the vector holds nan"),
    "unequal": ("x.parquet", parquet(lists([[1, 2]] * 5000 + [[1, 2, 3]])), "row 5000: has 3 values, row 0 has 2"),
    "null row": ("x.parquet", parquet(lists([[1, 2], None])), "row 1: has no vector"),
    "null first row": ("x.parquet", parquet(lists([None, [1, 2]])),
                       "row group 0, column 'vector', row 0: has no vector"),
    "null value": ("x.parquet", parquet(lists([[1, 2], [1, None]])), "row 1: has a null among"),
    "null fixed": ("x.parquet", parquet(lists([[1, 2], None], pa.list_(pa.float32(), 2))), "row 1: has no vector"),
    "null id": ("x.parquet", parquet(with_ids([*IDS[:-1], None])), "row group 0, column 'id', row 999: has no id"),
    "ids of floats": ("x.parquet", parquet(with_ids(VALUES[:, 0])), "not text or integers"),
    "twice": ("x.parquet", parquet(with_ids([*IDS[:-1], IDS[3]])),
              "id 'id 3 é' is both row 3 and row 999"),
    "twice in npz": ("x.npz", lambda p: np.savez(p, ids=[1] * N, v=VALUES), "id '1' is both row 0 and row 1"),
    "no rows": ("x.npy", lambda p: np.save(p, VALUES[:0]), "has no rows"),
    "no rows in parquet": ("x.parquet", parquet(table().slice(0, 0)), "has no rows"),
    "no rows in feather": ("x.feather", lambda p: feather.write_feather(table().slice(0, 0), p), "has no rows"),
    "no columns": ("x.npy", lambda p: np.save(p, VALUES[:, :0]), "vectors of length 0"),
    "empty lists": ("x.parquet", parquet(lists([[], []])), "vectors of length 0"),
    "one dimension": ("x.npy", lambda p: np.save(p, VALUES[0]), "two dimensions are needed"),
    "three dimensions": ("x.npy", lambda p: np.save(p, VALUES.reshape(10, 100, 7)), "two dimensions are needed"),
    "objects": ("x.npy", lambda p: np.save(p, np.array([[Bomb(), 1]], object)), "was not unpickled"),
    "objects in npz": ("x.npz", lambda p: np.savez(p, a=np.array([[Bomb(), 1]], object)), "was not unpickled"),
    "pickle": ("x.npy", raw(pickle.dumps(Bomb())), "is not a NumPy array"),
    "strings": ("x.npy", lambda p: np.save(p, np.array([["a", "b"]])), "not real numbers"),
    "complex": ("x.npy", lambda p: np.save(p, VALUES * 1j), "not real numbers"),
    "records": ("x.npy", lambda p: np.save(p, np.zeros((3, 3), "f4,i4")), "not real numbers"),
    "truncated npy": ("x.npy", lambda p: (np.save(p, VALUES), truncate(p, 0.7)), "it is truncated or its header lies"),
    "longer npy": ("x.npy", lambda p: (np.save(p, VALUES), p.write_bytes(p.read_bytes() + b"1234")), "header lies"),
    "truncated npz": ("x.npz", lambda p: (np.savez(p, a=VALUES), truncate(p, 0.7)), "not a zip archive"),
    "truncated parquet": ("x.parquet", lambda p: (pq.write_table(table(), p), truncate(p, 0.7)), "not a Parquet file"),
    "truncated feather": ("x.feather", lambda p: (feather.write_feather(table(), p), truncate(p, 0.7)), "not an Arrow"),
    "not parquet": ("x.parquet", raw(b"hello"), "not a Parquet file"),
    "empty file": ("x.npy", raw(b""), "is not a NumPy array"),
    "no vectors": ("x.parquet", parquet(pa.table({"a": [1]})), "no column is a list of numbers"),
    "other suffix": ("x.bin", raw(b"1"), "is not a file of vectors; expected .npy"),
    "fvecs cut": ("x.fvecs", raw(vecs(VALUES)[:-1]), "no whole number of rows"),
    "fvecs ragged": ("x.fvecs", raw(vecs(VALUES[:, :3]) + vecs(VALUES[:2, :1]) * 2),
                     "row 1000, byte 16000: claims 1 values, row 0 has 3"),
    "fvecs of 2^31": ("x.fvecs", raw(b"\xff\xff\xff\x7f" + bytes(64)), "claims 2,147,483,647 values"),
    "fvecs negative": ("x.fvecs", raw(b"\xff" * 64), "claims -1 values"),
    "fvecs empty": ("x.fvecs", raw(b""), "claims 0 values"),
    "fvecs nan": ("x.fvecs", raw(vecs(put(VALUES, 5, np.nan))), "row 5, byte 172: the vector holds nan"),
    "two tensors": ("x.safetensors", tensors_twice, "2 matrices of numbers; set source.column"),
    "jsonl cut": ("x.jsonl", text(jsonl()[:-40]), r"line 1999, byte \d+: is not JSON"),
    "jsonl nan": ("x.jsonl", text(jsonl(put(VALUES, 500, np.nan))),
                  r"line 1001, byte \d+: the vector of id '.*' holds nan"),
    "jsonl ragged": ("x.jsonl", text(jsonl() + '\n{"id": "z", "vector": [1]}'), r"line 2000, byte \d+: has 1 values"),
    "jsonl text": ("x.jsonl", text('{"vector": [1, 2]}\n{"vector": [1, "2"]}'), "line 2, byte 19: holds what is no"),
    "jsonl bool": ("x.jsonl", text('{"vector": [1, 2]}\n{"vector": [1, true]}'), "line 2, byte 19: holds what is no"),
    "jsonl list": ("x.jsonl", text("[1, 2]"), "line 1, byte 0: is not a JSON object"),
    "jsonl without": ("x.jsonl", text('{"a": 1}'), "no field of it is a list of numbers"),
    "jsonl lost id": ("x.jsonl", text(jsonl() + '\n{"vector": [1, 2, 3, 4, 5, 6, 7]}'),
                      r"line 2000, byte \d+: has no id"),
    "jsonl twice": ("x.jsonl", text(f"{jsonl()}\n{jsonl(VALUES[:1])}"), "is both row 0 and row 1000"),
    "jsonl new field": ("x.jsonl", text(jsonl() + '\n{"id": "z", "vector": [1], "extra": 1}'),
                        r"line 2000, byte \d+: has the field 'extra'"),
    "jsonl other type": ("x.jsonl", text(jsonl() + f'\n{{"id": "z", "vector": {[1] * 7}, "lines": "x"}}'),
                         r"line 2000, byte \d+: has str in 'lines'"),
    "jsonl deep": ("x.jsonl", text('{"vector": ' + "[" * 100_000), "line 1, byte 0: is not JSON"),
    "jsonl blank": ("x.jsonl", text('\n{"vector": [1, 2]}\n \n\n{"vector": [1, 2,}'), "line 5, byte 40: is not JSON"),
    "jsonl bytes": ("x.jsonl", raw(b'{"vector": [1, 2]}\n{"vector": [1, 2], "a": "\xff"}'),
                    "line 2, byte 44: is not JSON"),
    "jsonl half a pair": ("x.jsonl", text('{"vector": [1], "id": "a"}\n{"vector": [1], "id": "\\ud800"}'),
                          "line 2, byte 27: has an id that is not valid Unicode"),
    "jsonl half a name": ("x.jsonl", text('{"vector": [1]}\n{"vector": [1], "\\ud800": 1}'),
                          "line 2, byte 16: a field"),
    "jsonl empty": ("x.jsonl", text("\n\n"), "has no rows"),
    "hdf5 cut": ("x.h5", lambda p: (hdf5(p, train=VALUES), truncate(p, 0.5)), "cannot be read as HDF5"),
    "hdf5 nothing": ("x.h5", lambda p: hdf5(p, a=np.arange(3)), "has no matrix 'vector'; it has a"),
    "hdf5 two": ("x.h5", lambda p: hdf5(p, a=VALUES, b=VALUES), "name a matrix"),
    "hdf5 nan": ("x.h5", lambda p: hdf5(p, a=put(VALUES, 3, np.nan)),
                 r"dataset 'a', row 3, byte \d+: the vector holds nan"),
    "hdf5 elsewhere": ("x.h5", hdf5_external, "keeps its values in other files"),
    "zarr nothing": ("x.zarr", lambda p: p.mkdir(), "is not a Zarr store"),
    "zarr pickle": ("x.zarr", zarr_pickle, "names the codec 'pickle'"),
    "zarr chunks of 2^60": ("x.zarr", zarr_lying, r"x\.zarr: array /: has chunks of 4,611,686,018,427,387,904 bytes"),
    "zarr flat": ("x.zarr", lambda p: zarr_group(p, a=np.arange(3)), "has no matrix"),
    "zarr broken": ("x.zarr", lambda p: (zarr_array(p, VALUES), (p / "zarr.json").write_text("{")), "Zarr metadata"),
    "zarr chunk": ("x.zarr", lambda p: (zarr_array(p, VALUES), (p / "c/0/0").write_bytes(b"x")),
                   r"x\.zarr: c/0/0, row 0: cannot be read"),
    "missing": ("x.npy", lambda p: None, "does not exist"),
    "missing, other suffix": ("x", lambda p: None, "does not exist"),
    "empty directory": ("x.d", lambda p: p.mkdir(), "is not a file of vectors"),
}  # fmt: skip


WITHOUT_PLACE = ("other suffix", "missing", "missing, other suffix", "empty directory")


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_by_file_and_place(tmp_path: Path, case: str) -> None:
    name, write, says = BAD[case]
    write(tmp_path / name)
    with pytest.raises(HilbertflowError, match=says) as caught:
        source = open_vectors(str(tmp_path / name))
        source.check()
        source.read(0, source.count)
    assert "\n" not in str(caught.value)
    place = caught.value.where.removeprefix(str(tmp_path / name))
    assert re.fullmatch(r": \S.*", place) or (case in WITHOUT_PLACE and not place)


@pytest.mark.parametrize("name", ["x.npy", "fortran.npy", "x.fvecs", "x.safetensors", "x.h5"])
def test_the_byte_is_where_the_wrong_value_lies(tmp_path: Path, name: str) -> None:
    path, bad = tmp_path / name, put(VALUES, 321, np.nan)
    if path.suffix == ".npy":
        np.save(path, np.asfortranarray(bad) if name.startswith("fortran") else bad)
    elif path.suffix == ".fvecs":
        path.write_bytes(vecs(bad))
    elif path.suffix == ".h5":
        hdf5(path, train=bad)
    else:
        write_safetensors(path, {"v": ("F32", bad.shape, bad.tobytes())})
    with pytest.raises(HilbertflowError, match=r"row 321, byte (\d+): ") as caught:
        open_vectors(str(path)).read(300, N)
    byte = int(caught.value.where.rpartition(" ")[2])
    assert np.isnan(np.frombuffer(path.read_bytes()[byte : byte + 4], "<f4")[0])


@pytest.mark.parametrize(
    ("groups", "batches", "part"), [(100, 1, "row group 4"), (1000, 1, "row group 0"), (0, 64, "record batch 6")]
)
def test_the_part_of_a_table_that_holds_the_wrong_row(tmp_path: Path, groups: int, batches: int, part: str) -> None:
    data = table(put(VALUES, 430, np.nan))
    path = tmp_path / ("x.parquet" if groups else "x.feather")
    pq.write_table(data, path, row_group_size=groups) if groups else feather.write_feather(
        data, path, chunksize=batches
    )
    with pytest.raises(HilbertflowError, match="nan") as caught:
        open_vectors(str(path)).read(0, N)
    assert caught.value.where == f"{path}: {part}, column 'vector', row 430"


def test_a_damaged_column_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path, row_group_size=250, compression="zstd", write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    column = chunk.path_in_schema.partition(".")[0]
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    data, at = bytearray(path.read_bytes()), begin + chunk.total_compressed_size // 2
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(HilbertflowError, match="cannot be read") as caught:
        open_vectors(str(path)).read(0, N)
    assert caught.value.where == f"{path}: row group 2, column {column!r}, row 500"


def test_a_damaged_chunk_of_an_hdf5_file_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="writes an HDF5 file")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("train", data=VALUES, chunks=(100, 4), compression="gzip", fletcher32=True)
        byte = file["train"].id.get_chunk_info_by_coord((300, 4)).byte_offset
    data = bytearray(path.read_bytes())
    data[byte + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(HilbertflowError, match="cannot be read as HDF5") as caught:
        open_vectors(str(path)).read(250, 700)
    assert caught.value.where == f"{path}: dataset 'train', chunk (3, 1) at byte {byte}, row 300"


def test_a_damaged_chunk_of_a_zarr_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    zarr_array(path, VALUES)
    (path / "c/3/1").write_bytes(b"x")
    with pytest.raises(HilbertflowError, match="cannot be read") as caught:
        open_vectors(str(path)).read(250, 700)
    assert caught.value.where == f"{path}: c/3/1, row 384"


def test_a_parquet_file_damaged_within_a_page_is_refused(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "x.parquet", compression="zstd", write_page_checksum=True)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[200:260] = bytes(60)
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(HilbertflowError, match=r"x\.parquet: row group 0, column '\w+', row 0: "):
        open_vectors(str(tmp_path / "x.parquet")).read(0, N)


def test_large_row_groups_are_read_in_small_batches(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200_000, 64)).astype(np.float32)
    pq.write_table(pa.table({"vector": fixed(values)}), tmp_path / "x.parquet", row_group_size=200_000)
    del values
    source = open_vectors(str(tmp_path / "x.parquet"))
    before = pa.total_allocated_bytes()
    peak = 0
    for start in range(0, 200_000, 4096):
        source.read(start, min(200_000, start + 4096))
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 25e6, f"{peak / 1e6:.0f} MB held of a row group of 51 MB"


def test_duplicates_are_told_from_equal_hashes() -> None:
    batches = [["a", "b"], ["c", "", "d" * 10_000, "\N{PILE OF POO}"]]
    check_unique(batches, batches, "x: row {}".format)
    with pytest.raises(HilbertflowError, match="x: row 6: id '' is both row 3 and row 6"):
        check_unique([*batches, [""]], [*batches, [""]], "x: row {}".format)


@pytest.mark.parametrize(("name", "said"), [("", "0 characters"), ("x" * 10_001, "10,001 characters")])
def test_ids_that_no_change_could_name_are_refused(tmp_path: Path, name: str, said: str) -> None:
    ids = [str(number) for number in range(N - 1)]
    pq.write_table(pa.table({"id": [*ids, name], "vector": fixed(VALUES)}), tmp_path / "x.parquet")
    with pytest.raises(HilbertflowError, match=rf"x\.parquet: .*{said}.*1 to 10,000"):
        open_vectors(str(tmp_path / "x.parquet")).check()


def test_pickles_small(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "x.parquet")
    source = open_vectors(str(tmp_path / "x.parquet"))
    source.read(0, N)
    assert len(pickle.dumps(source)) < 1000
    assert isinstance(pickle.loads(pickle.dumps(source)), VectorRows)
