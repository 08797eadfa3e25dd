"""Coders against arbitrary arrays and damaged chunks: the same values, or HilbertflowError; never anything else."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from operators import rans, raw, video, video_lossy
from operators.coders import CODERS
from operators.errors import HilbertflowError
from operators.rans_tables import Tables

CASES = int(os.environ.get("HILBERTFLOW_FUZZ_CASES", "300"))
fuzz = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
fuzz_video = settings(fuzz, max_examples=max(1, CASES // 4))  # for each of four codecs

DTYPES = st.sampled_from(["int8", "int16", "int32", "uint8", "uint16", "uint32"])
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40)


@st.composite
def mixtures(draw):
    """Arrays like those that are stored: runs of several scales, a few far values."""
    dtype = np.dtype(draw(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = draw(st.lists(st.floats(0.01, 2.0**31), min_size=1, max_size=6))
    each = draw(st.integers(1, 3000))
    values = np.concatenate([rng.normal(size=each) * scale for scale in scales])
    far = rng.random(values.size) < draw(st.sampled_from([0, 0, 0.001, 0.1]))
    values[far] *= 2.0 ** rng.integers(0, 20, int(far.sum()))
    info = np.iinfo(dtype)
    return np.round(values).clip(info.min, info.max).astype(dtype)


@fuzz
@given(st.one_of(mixtures(), DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))))
def test_rans_returns_any_array(plane):
    chunk = rans.encode(plane)
    assert len(chunk) <= plane.nbytes + raw.OVERHEAD
    back = rans.decode(chunk, plane.shape, plane.dtype)
    assert back.dtype == plane.dtype and np.array_equal(back, plane)


@fuzz
@given(mixtures(), mixtures(), st.booleans())
def test_shared_tables_return_any_array(seen, plane, with_plan):
    columns = 8 if with_plan else 0
    if with_plan:
        seen, plane = np.resize(seen, (seen.size // 8 + 1, 8)), np.resize(plane, (plane.size // 8 + 1, 8))
    tables = Tables.from_bytes(Tables.train([seen], columns=columns).to_bytes())
    assert np.array_equal(rans.decode(rans.encode(plane, tables), plane.shape, plane.dtype, tables), plane)


@settings(fuzz, max_examples=max(1, CASES // 10))
@given(st.sampled_from(["hevc", "h264", "av1", "ffv1", "raw"]), DTYPES.flatmap(lambda d: arrays.arrays(d, SHAPES)))
def test_other_coders_return_any_array(kind, plane):
    chunk = CODERS[kind].encode(plane)
    assert len(chunk) <= plane.nbytes + raw.OVERHEAD
    assert np.array_equal(CODERS[kind].decode(chunk, plane.shape, plane.dtype), plane)


def example(deviation, dtype="int16", shape=(48, 48)):
    drift = np.exp(np.linspace(-1, 2, shape[0]))[:, None]
    return np.round(np.random.default_rng(0).normal(size=shape) * deviation * drift).astype(dtype)


PLANES = [example(0.3), example(4), example(900), example(3e6, "int32"), np.full((48, 48), 5, np.int16)]
SHARED = [Tables.train([PLANES[1]], columns=columns) for columns in (0, 48)]
RANS_CHUNKS = [(plane, None, rans.encode(plane)) for plane in PLANES]
RANS_CHUNKS += [(PLANES[2], tables, rans.encode(PLANES[2], tables)) for tables in SHARED]
RANS_CHUNKS += [(PLANES[1], tables, rans.encode(PLANES[1], tables)) for tables in SHARED]


@st.composite
def damage(draw, chunk):
    """A chunk with bytes changed, inserted, cut out or cut off."""
    data = bytearray(chunk)
    for _ in range(draw(st.integers(1, 4))):
        at = (
            draw(st.integers(0, max(0, min(len(data), 80) - 1)))
            if draw(st.booleans())
            else draw(st.integers(0, max(0, len(data) - 1)))
        )
        what = draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "repeat"]))
        if what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif what == "delete":
            del data[at : at + draw(st.integers(1, 16))]
        elif what == "cut":
            del data[at:]
        else:
            data[at:at] = data[at : at + 32]
    return bytes(data)


def right_or_refused(decode, plane):
    try:
        back = decode()
    except HilbertflowError:
        return
    assert np.array_equal(back, plane)


@fuzz
@given(st.data())
def test_damaged_rans_chunks_are_right_or_refused(data):
    plane, tables, chunk = data.draw(st.sampled_from(RANS_CHUNKS))
    damaged = data.draw(damage(chunk))
    right_or_refused(lambda: rans.decode(damaged, plane.shape, plane.dtype, tables), plane)


@fuzz
@given(st.binary(max_size=200), SHAPES, DTYPES, st.integers(0x11, 0x13))
def test_bytes_that_never_were_a_chunk_are_refused(data, shape, dtype, mode):
    for tables in (None, *SHARED):
        with pytest.raises(HilbertflowError):
            rans.decode(bytes([mode]) + data, shape, dtype, tables)


@fuzz
@given(damage(SHARED[1].to_bytes()), st.integers(0, 3))
def test_damaged_shared_tables_never_crash(blob, which):
    try:
        tables = Tables.from_bytes(blob)
    except HilbertflowError:
        return
    plane = PLANES[which]
    assert np.array_equal(rans.decode(rans.encode(plane, tables), plane.shape, plane.dtype, tables), plane)
    _, _, chunk = RANS_CHUNKS[-1]
    right_or_refused(lambda: rans.decode(chunk, PLANES[1].shape, PLANES[1].dtype, tables), PLANES[1])


VIDEO_PLANES = [np.add.outer(np.arange(64), 2 * np.arange(80)).astype(np.int16), example(2, "int8", (64, 64))]
VIDEO_CHUNKS = {kind: [(p, CODERS[kind].encode(p)) for p in VIDEO_PLANES] for kind in ("hevc", "h264", "av1", "ffv1")}


@pytest.mark.parametrize("kind", list(VIDEO_CHUNKS))
@fuzz_video
@given(st.data())
def test_damaged_video_chunks_are_right_or_refused(kind, data):
    plane, chunk = data.draw(st.sampled_from(VIDEO_CHUNKS[kind]))
    damaged = data.draw(damage(chunk))
    right_or_refused(lambda: video.decode_plane(damaged, plane.shape, plane.dtype, kind), plane)


@fuzz
@given(st.binary(max_size=60), st.sampled_from(list(VIDEO_CHUNKS)), st.integers(1, 4), st.integers(1, 16))
def test_forged_video_chunks_are_refused(stream, kind, groups, width):
    head = struct.pack("<BBBIq", video.MODE, groups, width, zlib.crc32(b"x"), 0)
    with pytest.raises(HilbertflowError):
        video.decode_plane(head + struct.pack("<I", len(stream)) + stream, (64, 64), np.int16, kind)


@settings(fuzz, max_examples=max(1, CASES // 10))
@given(st.data())
def test_damaged_lossy_video_never_crashes(data):
    frames = np.full((2, 64, 64), 512, np.uint16) + np.arange(64, dtype=np.uint16)
    codec = data.draw(st.sampled_from(["hevc", "h264", "av1"]))
    damaged = data.draw(
        damage(video_lossy.encode_frames(frames, codec, 20, False, "ultrafast" if codec != "av1" else "10"))
    )
    try:
        back = video_lossy.decode_frames(damaged)
    except HilbertflowError:
        return
    assert back.ndim == 3 and back.dtype == np.uint16
