from __future__ import annotations

import json
import resource
import time
from importlib.metadata import entry_points
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec
from zarr.registry import get_codec_class

from operators import raw
from operators.errors import HilbertflowError
from operators.rans_tables import Tables
from storage.codecs import CODECS, PREFIX, Av1Codec, H264Codec, HevcCodec, RansCodec, RawCodec

DTYPES = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]


def planes(count=7, side=64, deviation=3, dtype="int16"):
    values = np.round(np.random.default_rng(0).normal(size=(count, side, side)) * deviation)
    return (np.abs(values) if dtype[0] == "u" else values).astype(dtype)


def archived(path, values, codec, chunks=None, shards=None):
    chunks = chunks or (1, *values.shape[1:])
    array = zarr.create_array(
        store=str(path),
        shape=values.shape,
        chunks=chunks,
        shards=shards or (4 * chunks[0], *values.shape[1:]),
        dtype=values.dtype,
        serializer=codec,
        compressors=[Crc32cCodec()],
        fill_value=0,
    )
    array[:] = values
    return zarr.open_array(str(path), mode="r")


@pytest.mark.parametrize("kind", list(CODECS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sharded_array_reads_as_written(tmp_path, kind, dtype):
    values = planes(dtype=dtype)
    array = archived(tmp_path, values, CODECS[kind]())
    assert isinstance(array.metadata.codecs[0].codecs[0], CODECS[kind])
    assert np.array_equal(array[:], values)
    assert np.array_equal(array[5], values[5]) and np.array_equal(array[2:6, 7:9, 40], values[2:6, 7:9, 40])


@pytest.mark.parametrize("kind", list(CODECS))
def test_the_metadata_names_the_codec(tmp_path, kind):
    archived(tmp_path, planes(1), CODECS[kind]())
    sharding = json.loads((tmp_path / "zarr.json").read_text())["codecs"][0]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == [PREFIX + kind, "crc32c"]


@pytest.mark.parametrize("kind", list(CODECS))
def test_zarr_finds_the_codec_by_name(kind):
    assert get_codec_class(PREFIX + kind) is CODECS[kind]
    found = [entry for entry in entry_points(group="zarr.codecs") if entry.name == PREFIX + kind]
    assert found and found[0].load() is CODECS[kind]


@pytest.mark.parametrize("kind", list(CODECS))
def test_without_shards_and_uncompressed_fill_values(tmp_path, kind):
    values = planes(3)
    values[1] = 0
    array = zarr.create_array(
        store=str(tmp_path), shape=(3, 64, 64), chunks=(1, 64, 64), dtype="int16",
        serializer=CODECS[kind](), compressors=[Crc32cCodec()], fill_value=0,
    )  # fmt: skip
    array[:] = values
    assert np.array_equal(zarr.open_array(str(tmp_path), mode="r")[:], values)


@pytest.mark.parametrize("kind", list(CODECS))
def test_a_flipped_byte_in_any_chunk_is_refused(tmp_path, kind):
    values = planes(4, 32)
    array = archived(tmp_path, values, CODECS[kind](), shards=(4, 32, 32))
    path = next(path for path in Path(tmp_path).rglob("*") if path.is_file() and path.name != "zarr.json")
    whole = path.read_bytes()
    index = np.frombuffer(whole[-(16 * 4 + 4) : -4], "<u8").reshape(4, 2).astype(int)
    rng = np.random.default_rng(1)
    for plane, (offset, length) in enumerate(index):
        places = {0, 1, length - 1, *rng.integers(0, length, 5).tolist()}
        for place in places:
            damaged = bytearray(whole)
            damaged[offset + place] ^= 0x10
            path.write_bytes(bytes(damaged))
            with pytest.raises(ValueError, match="checksum"):
                array[plane]
            others = [n for n in range(4) if n != plane]
            assert np.array_equal(array[others[0]], values[others[0]])
    path.write_bytes(whole)
    assert np.array_equal(array[:], values)


EVERY = {kind: codec() for kind, codec in CODECS.items()}
EVERY |= {f"{codec.kind}, quality 24": codec(quality=24) for codec in (HevcCodec, H264Codec, Av1Codec)}


@pytest.mark.parametrize("name", EVERY)
def test_each_single_byte_of_a_chunk_and_of_its_index_is_checked(tmp_path, name):
    """Whatever byte is changed, a read says so; none gives other values, and none crashes a coder."""
    rows, columns = np.mgrid[0:64, 0:64] // 8
    array = archived(tmp_path, (rows * 2 + columns).astype(np.uint8)[None], EVERY[name], shards=(1, 64, 64))
    path = next(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    whole, good = path.read_bytes(), array[:]
    assert name == "raw" or whole[0] != raw.MODE, "coded, not stored"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            array[:]
    path.write_bytes(whole)
    assert np.array_equal(array[:], good)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("offset", "length"), [(0, 1 << 60), (1 << 60, 1 << 20), (0, (1 << 64) - 2)])
def test_an_index_that_asks_for_2_to_the_60_bytes_is_refused_at_once(tmp_path, name, offset, length):
    """The index is whole by its own checksum; what it says cannot be."""
    array = archived(tmp_path, planes(1, 16, dtype="uint8"), EVERY[name], shards=(1, 16, 16))
    path = next(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    index = np.array([offset, length], "<u8").tobytes()
    path.write_bytes(path.read_bytes()[:-20] + index + google_crc32c.value(index).to_bytes(4, "little"))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match="checksum"):
        array[:]
    assert time.process_time() - begin < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("kind", list(CODECS))
def test_damage_behind_a_forged_crc_is_refused_by_the_coder(kind):
    coder, plane = CODECS[kind]().coder(), planes(1)[0]
    chunk = bytearray(coder.encode(plane))
    chunk[len(chunk) // 2] ^= 0x04
    with pytest.raises(HilbertflowError):
        coder.decode(bytes(chunk), plane.shape, plane.dtype)


@pytest.mark.parametrize("columns", [0, 96])
def test_shared_tables_live_in_the_codec(tmp_path, columns):
    deviations = 4 * np.exp(-np.arange(96) / 20)
    values = np.round(np.random.default_rng(2).normal(size=(512, 96)) * deviations).astype(np.int8)
    tables = Tables.train([values[:256]], columns=columns).to_bytes()
    with_tables = archived(tmp_path / "shared", values, RansCodec(tables=tables), (32, 96), (256, 96))
    without = archived(tmp_path / "own", values, RansCodec(), (32, 96), (256, 96))
    assert np.array_equal(with_tables[:], values) and np.array_equal(with_tables[40:45], values[40:45])
    assert with_tables.nbytes_stored() < without.nbytes_stored()
    codec = with_tables.metadata.codecs[0].codecs[0]
    assert codec == RansCodec(tables=tables) and RansCodec.from_dict(codec.to_dict()) == codec


def test_big_endian_arrays_read_as_written(tmp_path):
    values = planes(2).astype(">i2")
    array = archived(tmp_path, values, RansCodec())
    assert np.array_equal(array[:], values)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(HilbertflowError, match="8 to 32 bits"):
        archived(tmp_path, np.zeros((2, 8, 8), dtype), RawCodec())


def test_malformed_configuration_is_refused():
    for tables in ("no base 64!", "AAAA"):
        with pytest.raises(HilbertflowError):
            RansCodec.from_dict({"name": "hilbertflow.rans", "configuration": {"tables": tables}})


def test_unknown_options_are_refused():
    for kind in CODECS:
        with pytest.raises(HilbertflowError, match="unknown option 'nonsense'"):
            CODECS[kind].from_dict({"name": PREFIX + kind, "configuration": {"nonsense": 1}})


@pytest.mark.parametrize("quality", [-1, 99, 2.5, "20", True])
def test_qualities_that_no_codec_has_are_refused(quality):
    with pytest.raises(HilbertflowError, match="quality"):
        HevcCodec.from_dict({"name": "hilbertflow.hevc", "configuration": {"quality": quality}})


@pytest.mark.parametrize("codec", [HevcCodec, H264Codec, Av1Codec])
def test_pictures_with_loss_read_alike_each_time(tmp_path, codec):
    rows, columns = np.mgrid[0:64, 0:64]
    values = np.stack([(rows * 2 + columns + shift) % 200 for shift in range(6)]).astype(np.uint8)
    array = archived(tmp_path, values, codec(quality=24))
    inner = json.loads((tmp_path / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"][0]
    assert inner["configuration"] == {"quality": 24} and array.metadata.codecs[0].codecs[0] == codec(quality=24)
    read = array[:]
    assert np.array_equal(read, array[:]) and 0 < np.abs(read.astype(int) - values).mean() < 8
    assert sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file()) < values.nbytes / 2


@pytest.mark.parametrize("kind", list(CODECS))
def test_codecs_are_values(kind):
    codec = CODECS[kind]()
    assert codec == CODECS[kind]() and hash(codec) == hash(CODECS[kind]())
    assert CODECS[kind].from_dict(codec.to_dict()) == codec
