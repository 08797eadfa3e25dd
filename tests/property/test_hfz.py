"""Packed vectors: any shape and dtype comes back, targets are met, and no damaged or hostile file does harm."""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from operators import hfz
from operators.errors import HilbertflowError
from storage.hfz import compress, compress_file, decompress, decompress_file, describe

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def embeddings(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(d, d)))[0] * np.exp(-np.arange(d) / (d / 3))[:, None]
    made = rng.normal(size=(n, d)) @ turn
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([dtype.name for dtype in hfz.DTYPES]), SHAPES)
def test_without_a_target_any_matrix_comes_back_exactly(
    data: st.DataObject, dtype: str, shape: tuple[int, int]
) -> None:
    elements = None
    if dtype.startswith("float"):
        elements = st.floats(width=8 * np.dtype(dtype).itemsize, allow_nan=False, allow_infinity=False)
    values = data.draw(hnp.arrays(dtype, shape, elements=elements))
    assert same(decompress(compress(values)), values)


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32"]),
       st.sampled_from([1e-30, 1e-3, 1.0, 50.0, 1e30]), st.floats(1.5, 6))  # fmt: skip
def test_a_size_is_kept_to_or_refused(shape: tuple[int, int], seed: int, dtype: str, scale: float, bits: float) -> None:
    drawn = np.random.default_rng(seed).normal(size=shape) * (scale if dtype in ("float32", "float64") else 20)
    values = drawn.astype(dtype)
    size = shape[1] * bits / 8 + 330 / shape[0]  # a file of nothing but a header takes some 250 bytes
    data = compress(values, size=size)
    again = decompress(data)
    assert len(data) <= size * len(values) and again.shape == values.shape and again.dtype == values.dtype
    assert np.isfinite(again.astype(np.float64)).all()
    with pytest.raises(HilbertflowError, match="allow at least"):
        compress(values, size=20 / shape[0])


@pytest.mark.parametrize("shape", [(8, 10), (9, 12), (12, 7)])
def test_a_size_is_found_below_that_of_the_finest_code(shape: tuple[int, int]) -> None:
    """Files of codes finer than symbols reach are all as long: the search leaves them for coarser ones."""
    values = np.random.default_rng(0).normal(size=shape)
    for bits in (1.5, 2.0, 3.3):
        size = shape[1] * bits / 8 + 330 / shape[0]
        assert len(compress(values, size=size)) <= size * shape[0]


def test_more_bytes_less_error() -> None:
    rows = embeddings(600)
    errors = [float(np.mean((decompress(compress(rows, size=size)) - rows) ** 2)) for size in (6, 12, 24)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


@pytest.mark.parametrize(
    ("shape", "tails"),
    [((600, 48), "normal"), ((600, 2), "t"), ((600, 1), "t"), ((40, 300), "t"), ((600, 2), "uneven")],
)
def test_more_bytes_than_a_code_can_use_do_no_harm(shape: tuple[int, int], tails: str) -> None:
    """A level is as fine as its symbols reach the furthest value, and no finer."""
    random = np.random.default_rng(0)
    values = (random.standard_t(2, size=shape) if tails == "t" else random.normal(size=shape)).astype(np.float32)
    if tails == "uneven":
        values[:, 1] /= 84  # its steps are one or two units
    sizes = [share * shape[1] for share in (1.5, 1.75, 2, 2.5, 3)]
    errors = [float(np.mean(np.square(decompress(compress(values, size=size)) - values))) for size in sizes]
    assert all(more <= 1.1 * less for less, more in itertools.pairwise(errors))
    assert errors[-1] < 1e-6 * float(np.mean(np.square(values)))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_a_recall_is_reached_for_fewer_bytes_than_more_of_it(metric: str) -> None:
    rows = embeddings(800) * np.float32(3 if metric == "l2" else 1)
    sizes = []
    for recall in (0.7, 0.9, 0.99):
        data = compress(rows, recall=recall, metric=metric)
        assert describe(rows, data, metric).recall >= recall
        sizes.append(len(data))
    assert sizes[0] < sizes[1] < sizes[2] < len(compress(rows))


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 8), (3, 16), (5, 64), (10, 384)])
def test_a_few_vectors_take_no_more_than_exactly(shape: tuple[int, int]) -> None:
    """The smaller form is chosen, and the size that an error advises is enough."""
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    exact = len(compress(vectors))
    assert all(len(compress(vectors, recall=recall)) <= exact for recall in (0.5, 0.9, 1.0))
    with pytest.raises(HilbertflowError, match="allow at least") as caught:
        compress(vectors, size=4)
    advised = int(caught.value.remedy.split()[3])
    assert advised <= -(-exact // len(vectors))
    assert len(compress(vectors, size=advised)) <= advised * len(vectors)


def test_recall_is_that_of_queries_from_elsewhere() -> None:
    """Rows ask for others, never for themselves, so vectors that are not in the set find as much."""
    rows, asked = np.split(embeddings(3300), [3000])
    near = [np.argsort(np.square(rows - q).sum(axis=1))[:10] for q in asked]
    packed = decompress(compress(rows, recall=0.9))
    found = [np.argsort(np.square(packed - q).sum(axis=1))[:10] for q in asked]
    held_out = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(near, found, strict=True)])
    assert 0.88 <= held_out <= 0.93


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.4e38, 1e-45])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_constants(value: float, n: int) -> None:
    rows = np.full((n, 7), value, np.float32)
    assert same(decompress(compress(rows)), rows)
    assert len(compress(np.full((5000, 7), value, np.float32))) < 500
    assert np.allclose(decompress(compress(rows, size=400)), rows, rtol=1e-2, atol=1e-44)
    assert decompress(compress(rows, recall=0.9)).shape == (n, 7)


def test_one_value_and_very_long_rows() -> None:
    for shape in ((1, 1), (1, 9000), (3, 5000)):
        rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert same(decompress(compress(rows)), rows)
        lossy = decompress(compress(rows, size=shape[1] / 2 + 600))
        assert float(np.mean((lossy - rows) ** 2)) < 0.02


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    rows = embeddings(20)
    rows[13, 3] = np.nan
    for options in ({}, {"size": 20.0}, {"recall": 0.9}):
        with pytest.raises(HilbertflowError, match=r"row 13.*NaN"):
            compress(rows, **options)
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(HilbertflowError, match=r"v\.npy: row 13, byte 1792: "):
        compress_file(str(tmp_path / "v.npy"), str(tmp_path / "v.hfz"))
    assert not (tmp_path / "v.hfz").exists()
    good = embeddings(20)
    for values, options, what in (
        (good[0], {}, "shape"), (good[:0], {}, "shape"), (good[:, :0], {}, "shape"), (good + 1j, {}, "complex"),
        (np.array([["a"]]), {}, "vectors of"), (np.array([[None]]), {}, "object"), (good, {"size": 0.0}, "above 0"),
        (good, {"size": float("nan")}, "above 0"), (good, {"recall": 1.5}, "at most 1"),
        (good, {"size": 1.0, "recall": 0.5}, "one of them"), (good, {"recall": 0.5, "metric": "hamming"}, "metric"),
        (np.full((3, 2), 1e300), {"size": 400.0}, "row 0"),
    ):  # fmt: skip
        with pytest.raises(HilbertflowError, match=what):
            compress(values, **options)  # type: ignore[arg-type]


FILES = {
    "lossy": compress(np.random.default_rng(0).normal(size=(300, 32)), size=14),
    "turned": compress(embeddings(3000), size=10),
    "exact": compress((embeddings(600) * 200).round()), "words": compress(embeddings(9).astype(np.float64)),
    "columns": hfz.from_columns([compress(embeddings(9)), compress(embeddings(9, 8))], 9, 40, np.float32),
}  # fmt: skip


def test_the_files_below_are_of_every_kind() -> None:
    about = {name: hfz.read_header(data) for name, data in FILES.items()}
    assert [h["kind"] for h in about.values()] == ["rows", "rows", "rows", "words", "columns"]
    assert about["lossy"]["plain"] and not about["turned"]["plain"] and about["exact"]["exact"]


def resealed(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_is_noticed(name: str) -> None:
    data = FILES[name]
    places = sorted(
        {*range(80), *np.random.default_rng(0).integers(0, len(data), 150).tolist(), *range(len(data) - 8, len(data))}
    )
    for at in (place for place in places if place < len(data)):
        with pytest.raises(HilbertflowError):
            decompress(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(HilbertflowError):
            decompress(data[:at])


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_with_a_good_check_sum_does_no_harm(name: str) -> None:
    data, rng = FILES[name], np.random.default_rng(1)
    for _ in range(150):
        at = int(rng.integers(8, len(data) - 4) if rng.random() < 0.5 else rng.integers(5, min(200, len(data) - 4)))
        changed = resealed(data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :])
        try:
            values = decompress(changed, 1 << 24)
        except HilbertflowError:
            continue
        assert values.nbytes <= 1 << 24


def test_numbers_in_the_header_are_checked_before_memory_is_taken() -> None:
    def altered(name: str, **changes: object) -> bytes:
        data = FILES[name]
        size = int.from_bytes(data[5:8], "little")
        text = json.dumps(json.loads(data[8 : 8 + size]) | changes).encode()
        return resealed(data[:5] + len(text).to_bytes(3, "little") + text + data[8 + size :])

    for name in FILES:
        for changes in (
            {"rows": 1 << 39}, {"rows": 1 << 60}, {"rows": -1}, {"rows": "9"}, {"rows": True}, {"dim": 1 << 39},
            {"dim": 0}, {"dtype": "O"}, {"dtype": ["f4"]}, {"kind": "pickle"}, {"kind": ["rows"]},
        ):  # fmt: skip
            with pytest.raises(HilbertflowError):
                decompress(altered(name, **changes))
    for changes in ({"rank": 1 << 30}, {"rank": 0}, {"states": 7}, {"shift": 1 << 30}, {"cell": 9999}, {"block": 0},
                    {"block": None}):  # fmt: skip
        with pytest.raises(HilbertflowError):
            decompress(altered("exact" if "cell" in changes else "lossy", **changes))
    for sizes in ([], [1], ["a"], [-5, 9], None, [FILES["columns"]]):
        with pytest.raises((HilbertflowError, TypeError)):
            decompress(altered("columns", sizes=sizes))


def test_files_there_and_back(tmp_path: Path) -> None:
    source, packed, back = (str(tmp_path / name) for name in ("v.npy", "v.hfz", "back.npy"))
    np.save(source, embeddings(200).astype(np.float16))
    told = compress_file(source, packed)
    assert told.exact and told.recall == told.cosine == 1 and told.bytes == Path(packed).stat().st_size
    assert decompress_file(packed, back) == (200, 32) and same(np.load(back), np.load(source))
    lossy = compress_file(source, packed, size=10)
    assert lossy.bytes_a_vector <= 10 and 0.5 < lossy.recall < 1 and 0.9 < lossy.cosine < 1
    with pytest.raises(HilbertflowError, match=r"v\.npy: byte 0: is not a file of packed vectors"):
        decompress_file(source, back)
    with pytest.raises(HilbertflowError, match=r"\.npy"):
        decompress_file(packed, str(tmp_path / "back.csv"))
    (tmp_path / "object.npy").write_bytes(b"\x93NUMPY\x01\x00" + b"v" * 90)
    with pytest.raises(HilbertflowError, match=r"object\.npy: byte 8: is not a NumPy array"):
        compress_file(str(tmp_path / "object.npy"), packed)


def test_vectors_of_which_nothing_is_left_are_not_called_alike() -> None:
    rows = np.eye(3, dtype=np.float32)
    zeros = np.zeros_like(rows)
    assert describe(rows, compress(zeros)).cosine == 0
    assert describe(zeros, compress(zeros)).cosine == 1
    mixed = np.vstack([zeros[:1], rows[:1]])
    assert describe(mixed, compress(np.vstack([zeros[:1], zeros[:1]]))).cosine == 0.5
