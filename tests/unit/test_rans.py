from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from operators import rans, raw
from operators import rans_freq as kernels
from operators.errors import HilbertflowError
from operators.rans_tables import Tables

GOLDEN = Path(__file__).parents[1] / "golden"
INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]


def gaussian(shape, deviation, seed=0, dtype=np.int16):
    return np.round(np.random.default_rng(seed).normal(size=shape) * deviation).astype(dtype)


def entropy_bits(values):
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum())


def gaussian_bits(deviation):
    """Entropy of a rounded Gaussian: what a coder that knows the source would take."""
    edges = np.arange(-int(9 * deviation) - 3, int(9 * deviation) + 4) - 0.5
    share = np.diff([0.5 * (1 + math.erf(edge / deviation / 2**0.5)) for edge in edges])
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def round_trip(plane, tables=None):
    chunk = rans.encode(plane, tables)
    back = rans.decode(chunk, plane.shape, plane.dtype, tables)
    assert back.dtype == plane.dtype and back.shape == plane.shape and np.array_equal(back, plane)
    return chunk


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64, 64), (3, 5, 7), (1000,), (40, 384), (256, 256), (0, 4)])
def test_every_integer_type_and_shape_comes_back(shape, dtype):
    rng = np.random.default_rng(1)
    info = np.iinfo(dtype)
    small = np.round(rng.normal(size=shape) * 3 + 10).astype(dtype)
    wide = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    for plane in (small, wide, np.full(shape, info.max, dtype), np.full(shape, info.min, dtype)):
        plane = np.asarray(plane)
        chunk = round_trip(plane)
        assert len(chunk) <= plane.nbytes + raw.OVERHEAD


def test_rows_of_zeros_at_the_end_cost_next_to_nothing_with_shared_tables_too():
    plane = gaussian((64, 345), 0.8)
    tables = Tables.train([plane], columns=345)
    plane[20:] = 0
    for used in (None, tables):
        chunk = round_trip(plane, used)
        assert chunk[0] == rans.TRIMMED and len(chunk) == 5 + len(rans.encode(plane[:20], used))
        with pytest.raises(HilbertflowError):
            rans.decode(chunk, (20, 345), np.int16, used)
        with pytest.raises(HilbertflowError):
            rans.decode(chunk[:5], plane.shape, np.int16, used)
        with pytest.raises(HilbertflowError):
            rans.decode(chunk[:5] + chunk, plane.shape, np.int16, used)
    round_trip(plane.reshape(1, 64, 345))


@pytest.mark.parametrize("scale", [1, 40, 128, 300, 5000, 2**20, 2**29])
def test_values_of_any_magnitude_come_back(scale):
    rng = np.random.default_rng(2)
    heavy = (rng.standard_cauchy(20000) * scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
    round_trip(heavy)
    round_trip(rng.integers(0, scale, 5000).astype(np.uint32))


def test_the_size_is_the_entropy_and_a_few_bytes():
    plane = gaussian((256, 256), 2.75)
    chunk = round_trip(plane)
    table_bytes = 24
    assert len(chunk) * 8 <= entropy_bits(plane) + table_bytes * 8 + 0.005 * plane.size


@pytest.mark.parametrize("value", [-1, 0, 77])
def test_a_constant_plane_costs_a_few_bytes(value):
    assert len(round_trip(np.full((256, 256), value, np.int16))) <= 8


def test_a_plane_whose_statistics_drift_is_coded_near_its_conditional_entropy():
    deviations = [0.3, 1, 3, 9, 27, 81, 243, 729]
    plane = gaussian((8, 8192), np.array(deviations)[:, None], 3)
    bits = len(round_trip(plane)) * 8 / plane.size
    assert bits < entropy_bits(plane) / plane.size - 1.3  # far below what one table can do
    assert bits < np.mean([gaussian_bits(deviation) for deviation in deviations]) + 0.03


def test_alternating_blocks_share_two_tables():
    plane = gaussian((32, 2, 1024), np.array([0.5, 20])[:, None], 4)
    bits = len(round_trip(plane)) * 8 / plane.size
    assert bits < (gaussian_bits(0.5) + gaussian_bits(20)) / 2 + 0.015


def test_noise_is_stored_raw():
    noise = np.random.default_rng(5).integers(0, 2**32, 4096, dtype=np.uint32)
    assert round_trip(noise)[0] == raw.MODE


def test_low_bits_that_carry_nothing_are_stored_raw_and_the_rest_is_coded():
    rng = np.random.default_rng(6)
    plane = ((np.abs(rng.normal(size=65536) * 20).astype(np.uint32) << 16) | rng.integers(0, 2**16, 65536)).astype(
        np.uint32
    )
    ideal = entropy_bits(plane >> 16) + 16 * plane.size
    assert len(round_trip(plane)) * 8 < ideal + 0.02 * plane.size


def test_shared_tables_cost_the_chunk_nothing():
    chunks = [gaussian((32, 64), 1.5, seed) for seed in range(40)]
    tables = Tables.train(chunks[:32])
    ours = sum(len(round_trip(chunk, tables)) for chunk in chunks[32:])
    own = sum(len(round_trip(chunk)) for chunk in chunks[32:])
    ideal = entropy_bits(np.stack(chunks[32:])) / 8
    assert ours < own and ours < ideal * 1.01 + 8 * 30


@pytest.mark.parametrize("columns", [5, 64, 100, 384])
def test_a_plan_gives_each_column_its_table(columns):
    deviations = 6 * np.exp(-np.arange(columns) / (columns / 4))
    rng = np.random.default_rng(7)
    chunks = [np.round(rng.normal(size=(64, columns)) * deviations).astype(np.int8) for _ in range(40)]
    tables = Tables.train(chunks[:30], columns=columns)
    assert tables.plan.size == columns
    again = Tables.from_bytes(tables.to_bytes())
    assert again == tables and np.array_equal(again.freq, tables.freq) and np.array_equal(again.plan, tables.plan)
    bits = [len(round_trip(chunk, again)) * 8 / chunk.size for chunk in chunks[30:]]
    ideal = np.mean([gaussian_bits(deviation) for deviation in deviations])
    assert np.mean(bits) < ideal * 1.03 + 8 * 30 / chunks[0].size


@pytest.mark.parametrize("columns", [0, 64])
def test_values_that_shared_tables_do_not_know_cost_a_few_bytes_each(columns):
    plane = gaussian((64, 64), 3)
    tables = Tables.train([plane], columns=columns)
    size = len(round_trip(plane, tables))
    for count in (1, 5, 60):
        strange = plane.copy()
        strange.reshape(-1)[np.random.default_rng(count).permutation(plane.size)[:count]] = -20000
        chunk = round_trip(strange, tables)
        assert chunk[0] == rans.SHARED and len(chunk) <= size + 8 * count + 4
    assert round_trip(gaussian((64, 64), 2000), tables)[0] == rans.LEAN  # too many


@pytest.mark.parametrize("columns", [0, 4])
def test_tables_of_one_token(columns):
    plane = np.zeros((512, 4), np.int16)
    plane[:, 1] = 3
    plane[256:] += 1
    for mixed in (plane, plane.reshape(4, 512)):
        tables = Tables.train([mixed], columns=columns)
        round_trip(mixed)
        round_trip(mixed, tables)
        round_trip(gaussian((512, 4), 1), tables)


def test_runs_that_say_nothing_cost_nothing():
    plane = np.zeros(65536, np.int16)
    plane[:4096] = gaussian(4096, 5)
    size = len(round_trip(plane[:4096]))
    assert len(round_trip(plane)) <= size + 30
    plane = np.repeat(np.arange(8, dtype=np.int16), 8192)
    assert len(round_trip(plane)) <= 150


def test_shared_tables_with_raw_bits():
    rng = np.random.default_rng(8)
    scale = np.repeat([50, 4000, 2**20, 2**28], 16)
    chunks = [(rng.normal(size=(32, 64)) * scale).clip(-(2**31), 2**31 - 1).astype(np.int32) for _ in range(20)]
    for columns in (0, 64):
        tables = Tables.train(chunks, columns=columns)
        assert round_trip(chunks[0], tables)[0] == rans.SHARED


def test_tables_of_another_array_are_refused():
    one, other = Tables.train([gaussian((64, 64), 2)]), Tables.train([gaussian((64, 64), 9)])
    chunk = rans.encode(gaussian((64, 64), 2, 3), one)
    with pytest.raises(HilbertflowError):
        rans.decode(chunk, (64, 64), np.int16, other)
    with pytest.raises(HilbertflowError, match="none were given"):
        rans.decode(chunk, (64, 64), np.int16)


@pytest.mark.parametrize("deviation", [0.2, 3, 500])
def test_a_chunk_of_another_shape_or_type_is_refused(deviation):
    plane = gaussian((64, 64), deviation)
    chunk = rans.encode(plane)
    for shape in ((64, 63), (65, 64), (1, 1), (0,), (128, 64)):
        with pytest.raises(HilbertflowError):
            rans.decode(chunk, shape, np.int16)
    if deviation == 500:
        with pytest.raises(HilbertflowError):
            rans.decode(chunk, (64, 64), np.int8)


@pytest.mark.parametrize("deviation", [0.2, 3, 500, 1e7])
def test_a_changed_or_missing_byte_never_gives_other_values(deviation):
    plane = gaussian((32, 32), deviation, dtype=np.int32)
    chunk = rans.encode(plane)
    refused = 0
    for at in range(len(chunk)):
        damaged = bytearray(chunk)
        damaged[at] ^= 1 << (at % 8)
        try:
            back = rans.decode(bytes(damaged), plane.shape, plane.dtype)
        except HilbertflowError:
            refused += 1
        else:  # a bit that says nothing, such as padding
            assert np.array_equal(back, plane)
    assert refused > 0.95 * len(chunk)
    for length in range(len(chunk)):
        with pytest.raises(HilbertflowError):
            rans.decode(chunk[:length], plane.shape, plane.dtype)
    with pytest.raises(HilbertflowError):
        rans.decode(chunk + b"\0", plane.shape, plane.dtype)


def test_chunks_may_lie_anywhere_in_a_buffer():
    plane = gaussian((64, 64), 3)
    chunk = rans.encode(plane)
    for offset in range(5):
        view = memoryview(b"x" * offset + chunk)[offset:]
        assert np.array_equal(rans.decode(view, plane.shape, plane.dtype), plane)


def test_input_may_be_strided_or_big_endian():
    plane = gaussian((64, 64), 3)
    assert rans.encode(plane.T) == rans.encode(np.ascontiguousarray(plane.T))
    assert np.array_equal(rans.decode(rans.encode(plane.astype(">i2")), (64, 64), np.int16), plane)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint64", "bool", "complex64"])
def test_what_is_no_integer_of_32_bits_is_refused(dtype):
    with pytest.raises(HilbertflowError, match="8 to 32 bits"):
        rans.encode(np.zeros(4, dtype))
    with pytest.raises(HilbertflowError, match="8 to 32 bits"):
        rans.decode(b"\x10", (4,), dtype)


def test_tables_need_samples_and_well_formed_bytes():
    for samples, columns, most in (([], 0, 16), ([np.zeros(6, np.int8)], 4, 16), ([np.zeros(4, np.int8)], 0, 0)):
        with pytest.raises(HilbertflowError):
            Tables.train(samples, columns=columns, most=most)
    blob = Tables.train([gaussian((64, 64), 2)], columns=64).to_bytes()
    for bad in (b"", b"\1", b"\2" + blob[1:], blob[:20], blob[:-5], blob[:1] + b"\xff" + blob[2:]):
        with pytest.raises(HilbertflowError):
            Tables.from_bytes(bad)


def test_reciprocals_divide_exactly():
    rng = np.random.default_rng(9)
    for f in range(1, 4096):
        r = np.uint64(((1 << 44) - 1) // f)
        top = f << 20
        quotients = rng.integers(0, 1 << 20, 200, dtype=np.uint64) * np.uint64(f)
        x = np.concatenate([quotients, quotients + np.uint64(f - 1), rng.integers(0, top, 200, dtype=np.uint64)])
        x = np.append(x, np.array([0, top - 1], np.uint64))
        assert np.array_equal((x + np.uint64(1)) * r >> np.uint64(44), x // np.uint64(f))


@pytest.mark.parametrize("present", [[0], [227], [0, 227], [5, 6, 7], list(range(228))])
def test_tables_survive_writing(present):
    rng = np.random.default_rng(10)
    for scale in (1, 10, 60000):
        counts = np.zeros(kernels.TOKENS, np.int32)
        counts[present] = rng.integers(1, scale + 1, len(present))
        out, written, got = np.zeros(1000, np.uint8), np.zeros(228, np.int32), np.zeros(228, np.int32)
        end = kernels.put_table(out, 3, counts, 7, written)
        assert kernels.get_table(out, 3, got) == (end, 7) and np.array_equal(written, got)
        freq = np.zeros(228, np.int32)
        kernels.frequencies(got, freq)
        assert freq.sum() == 4096 and (freq[present] > 0).all()


def golden_chunks(stem):
    return [entry for path in sorted(GOLDEN.glob(f"{stem}-*.json")) for entry in json.loads(path.read_text())]


@pytest.mark.parametrize("entry", golden_chunks("rans"), ids=lambda entry: entry["name"])
def test_old_chunks_decode_for_ever(entry):
    tables = Tables.from_bytes(bytes.fromhex(entry["tables"])) if entry["tables"] else None
    plane = rans.decode(bytes.fromhex(entry["chunk"]), tuple(entry["shape"]), entry["dtype"], tables)
    little = plane.astype(plane.dtype.newbyteorder("<"))
    assert hashlib.sha256(little.tobytes()).hexdigest() == entry["sha256"]


def test_there_are_old_chunks():
    assert len(golden_chunks("rans")) >= 10
