from __future__ import annotations

import hashlib
import io
import json
import resource
import time
from pathlib import Path

import av
import numpy as np
import pytest

from operators import raw, video, video_lossy
from operators.coders import CODERS, VideoCoder, cheapest, coded_sizes
from operators.errors import HilbertflowError

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ["hevc", "h264", "av1", "ffv1"]


def smooth(shape, top, dtype, seed=0):
    """A plane that video codecs compress: a gradient and a little noise."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    gradient = (rows / shape[0] + columns / shape[1]) / 2 * top
    noise = np.random.default_rng(seed).normal(size=shape) * top / 200
    info = np.iinfo(dtype)
    return (gradient + noise).clip(max(0, info.min), min(top, info.max)).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, top", [("uint8", 255), ("int8", 127), ("int16", 1000), ("uint16", 4000), ("uint16", 65535)]
)
def test_planes_come_back_and_are_compressed(kind, dtype, top):
    plane = smooth((128, 192), top, dtype)
    chunk = video.encode_plane(plane, kind)
    assert chunk[0] == video.MODE and len(chunk) < 0.95 * plane.nbytes
    back = video.decode_plane(chunk, plane.shape, plane.dtype, kind)
    assert back.dtype == plane.dtype and np.array_equal(back, plane)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [2**17, 2**24, 2**31 - 1])
def test_planes_deeper_than_the_pixel_format_are_cut_in_groups_of_bits(kind, top):
    plane = smooth((128, 128), top, np.int32) - np.int32(top // 2)
    back = video.decode_plane(video.encode_plane(plane, kind), plane.shape, plane.dtype, kind)
    assert np.array_equal(back, plane)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (7, 3), (100,), (33, 300), (2, 30, 41), (0, 5), (3, 9000)])
def test_any_shape_comes_back(kind, shape):
    plane = np.asarray(np.random.default_rng(1).integers(-3, 4, shape).astype(np.int8))
    chunk = video.encode_plane(plane, kind)
    assert len(chunk) <= plane.nbytes + raw.OVERHEAD
    assert np.array_equal(video.decode_plane(chunk, plane.shape, plane.dtype, kind), plane)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_falls_back_to_raw(kind):
    noise = np.random.default_rng(2).integers(0, 2**16, (64, 64)).astype(np.uint16)
    chunk = video.encode_plane(noise, kind)
    assert chunk[0] == raw.MODE and len(chunk) == noise.nbytes + raw.OVERHEAD
    assert np.array_equal(video.decode_plane(chunk, noise.shape, noise.dtype, kind), noise)


def test_an_encoder_that_loses_is_caught(monkeypatch):
    lossy = {"preset": "ultrafast", "x265-params": "qp=30:log-level=none"}
    monkeypatch.setitem(video.LOSSLESS, "hevc", lossy)
    plane = smooth((128, 128), 255, np.uint8)
    assert video.encode_plane(plane, "hevc")[0] == raw.MODE


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed(kind):
    plane = smooth((64, 64), 255, np.uint8)
    chunk = video.encode_plane(plane, kind)
    assert chunk[0] == video.MODE
    for damaged in (b"", chunk[:10], chunk[:-40], chunk + b"\0", b"\x21" + chunk[1:], chunk[:3] + b"\0" + chunk[4:]):
        with pytest.raises(HilbertflowError):
            video.decode_plane(damaged, plane.shape, plane.dtype, kind)
    for shape, dtype in (((64, 65), np.uint8), ((200, 64), np.uint8), ((64, 64), np.int8)):
        with pytest.raises(HilbertflowError):
            video.decode_plane(chunk, shape, dtype, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_checked(kind):
    plane, other = smooth((64, 64), 255, np.uint8), smooth((64, 64), 255, np.uint8, 1)
    chunk = bytearray(video.encode_plane(plane, kind))
    stranger = video.encode_plane(other, kind)
    chunk[15:] = stranger[15:]  # another picture behind this one's header
    chunk[7:15] = stranger[7:15]
    with pytest.raises(HilbertflowError, match="check sum of the pixels"):
        video.decode_plane(bytes(chunk), plane.shape, plane.dtype, kind)


def golden_chunks():
    return [entry for path in sorted(GOLDEN.glob("video-*.json")) for entry in json.loads(path.read_text())]


@pytest.mark.parametrize("entry", golden_chunks(), ids=lambda entry: f"{entry['kind']} {entry['name']}")
def test_old_chunks_decode_for_ever(entry):
    coder = VideoCoder(entry["kind"], entry.get("quality"))
    plane = coder.decode(bytes.fromhex(entry["chunk"]), tuple(entry["shape"]), entry["dtype"])
    little = plane.astype(plane.dtype.newbyteorder("<"))
    assert hashlib.sha256(little.tobytes()).hexdigest() == entry["sha256"]


def test_there_are_old_chunks():
    assert {entry["kind"] for entry in golden_chunks()} == set(KINDS)
    assert {entry["kind"] for entry in golden_chunks() if "quality" in entry} == set(LOSSY)


LOSSY = ["hevc", "h264", "av1"]


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("dtype, top", [("uint8", 255), ("int8", 127), ("int16", 1000), ("uint16", 65535)])
def test_planes_with_loss_are_nearer_for_more_bytes(kind, dtype, top):
    plane = smooth((96, 160), top, dtype)
    error, size = [], []
    for quality in (4, 20, 36):
        chunk = video_lossy.encode_plane(plane, kind, quality)
        back = video_lossy.decode_plane(chunk, plane.shape, plane.dtype, kind)
        assert back.shape == plane.shape and back.dtype == plane.dtype
        error.append(float(np.mean((back.astype(float) - plane) ** 2)))
        size.append(len(chunk))
    assert size == sorted(size, reverse=True) and size[2] < size[0] < plane.nbytes
    assert error == sorted(error) and error[0] < 0.01 * plane.astype(float).var()


@pytest.mark.parametrize("kind", LOSSY)
def test_noise_that_expands_falls_back_to_raw_and_comes_back_whole(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    chunk = video_lossy.encode_plane(noise, kind, 0)
    assert chunk[0] == raw.MODE and len(chunk) == noise.nbytes + raw.OVERHEAD
    assert np.array_equal(video_lossy.decode_plane(chunk, noise.shape, noise.dtype, kind), noise)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_chunks_that_are_damaged_are_refused(kind):
    plane = smooth((64, 72), 255, np.uint8)
    chunk = video_lossy.encode_plane(plane, kind, 20)
    good, rng = video_lossy.decode_plane(chunk, plane.shape, plane.dtype, kind), np.random.default_rng(1)
    for damaged in (b"", chunk[:10], chunk[:-9], b"\x22" + chunk[1:], chunk[:1] + b"\x40" + chunk[2:]):
        with pytest.raises(HilbertflowError):
            video_lossy.decode_plane(damaged, plane.shape, plane.dtype, kind)
    for at in rng.choice(np.arange(3, len(chunk)), 40, replace=False):  # what the pixels do not depend on may differ
        flipped = bytearray(chunk)
        flipped[at] ^= 1 << int(rng.integers(8))
        try:
            back = video_lossy.decode_plane(bytes(flipped), plane.shape, plane.dtype, kind)
        except HilbertflowError:
            continue
        assert np.array_equal(back, good)


@pytest.mark.parametrize("kind", LOSSY)
def test_numbers_of_a_header_that_cannot_be_are_refused_at_once(kind):
    """The largest length, count of frames and edges that their fields hold, before memory is asked for."""
    plane, most = smooth((64, 64), 255, np.uint8), b"\xff" * 4
    chunk = video.encode_plane(plane, kind)
    films = video_lossy.encode_frames(plane[None].astype(np.uint16), kind, 20.0, intra=True)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(HilbertflowError, match="end too early"):
        video.decode_plane(chunk[:15] + most + chunk[19:], plane.shape, plane.dtype, kind)
    for at in (2, 6, 10, 14):  # frames, height, width, the length of the first packet
        with pytest.raises(HilbertflowError):
            video_lossy.decode_frames(films[:at] + most + films[at + 4 :])
    assert time.process_time() - begin < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_quality_that_no_codec_has_is_refused():
    plane = smooth((64, 64), 255, np.uint8)
    for kind, quality in (("hevc", 52), ("h264", -1), ("av1", 64), ("ffv1", 10)):
        with pytest.raises(HilbertflowError, match=r"quality|lossy"):
            video_lossy.encode_plane(plane, kind, quality)


def frames_of_noise(count=4, deviation=40):
    noise = np.random.default_rng(3).normal(size=(count, 96, 160)) * deviation
    return np.clip(512 + np.round(noise), 0, 1023).astype(np.uint16)


@pytest.mark.parametrize("intra", [True, False])
@pytest.mark.parametrize("codec", ["hevc", "h264", "av1"])
def test_lossy_frames_are_better_for_more_bytes(codec, intra):
    frames = frames_of_noise()
    error, size = [], []
    for quality in (8, 20, 32):
        data = video_lossy.encode_frames(frames, codec, quality, intra)
        back = video_lossy.decode_frames(data)
        assert back.shape == frames.shape and back.dtype == np.uint16
        error.append(float(np.mean((back.astype(float) - frames) ** 2)))
        size.append(len(data))
    assert error == sorted(error) and size == sorted(size, reverse=True)
    assert error[0] < 0.2 * frames.var() and size[2] < 0.7 * size[0]


@pytest.mark.parametrize("codec", ["hevc", "h264", "av1"])
def test_prediction_between_frames_pays_when_they_are_alike(codec):
    one = frames_of_noise(1)
    frames = np.repeat(one, 8, axis=0)
    assert len(video_lossy.encode_frames(frames, codec, 20, False)) < 0.5 * len(
        video_lossy.encode_frames(frames, codec, 20, True)
    )


def test_bad_frames_are_refused():
    good = frames_of_noise(1)
    for frames in (good[0], good[:0], good + np.uint16(600), np.zeros((1, 9000, 8), np.uint16)):
        with pytest.raises(HilbertflowError):
            video_lossy.encode_frames(frames, "h264", 20, True)
    with pytest.raises(HilbertflowError, match="lossy"):
        video_lossy.encode_frames(good, "ffv1", 20, True)
    data = video_lossy.encode_frames(good, "h264", 20, True)
    for damaged in (b"", data[:10], data[:-5], b"\x09" + data[1:], data[:2] + b"\xff" + data[3:]):
        with pytest.raises(HilbertflowError):
            video_lossy.decode_frames(damaged)


@pytest.mark.parametrize("shape", [(5, 64, 64), (1, 33, 65), (3, 256, 256)])
def test_an_mp4_has_its_index_in_front_and_plays(shape):
    frames = np.random.default_rng(4).integers(0, 256, shape).astype(np.uint8)
    file = video.write_mp4(frames, fps=6)
    assert file[4:8] == b"ftyp" and 0 < file.find(b"moov") < file.find(b"mdat")
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 6
        decoded = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(decoded) == shape[0]
    shown = np.stack(decoded)[:, : shape[1], : shape[2]].astype(float)
    assert np.corrcoef(shown.ravel(), frames.ravel())[0, 1] > 0.98


def test_an_mp4_needs_frames_of_bytes():
    for frames in (np.zeros((0, 8, 8), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8), np.uint16)):
        with pytest.raises(HilbertflowError):
            video.write_mp4(frames)


def test_the_cheapest_coder_is_the_one_of_fewest_bytes():
    rng = np.random.default_rng(5)
    noise = [np.round(rng.normal(size=(64, 64)) * 3).astype(np.int16) for _ in range(2)]
    picture = [smooth((128, 128), 2000, np.int16, seed) for seed in range(2)]
    for planes in (noise, picture):
        sizes = coded_sizes(planes, list(CODERS))
        assert set(sizes) == set(CODERS)
        assert cheapest(planes, list(CODERS)) == min(sizes, key=sizes.get)
    assert cheapest(noise) == "rans" and cheapest(picture) != "rans"
    assert cheapest(noise, ["raw", "hevc"]) in ("raw", "hevc")


def test_comparing_nothing_is_refused():
    with pytest.raises(HilbertflowError):
        cheapest([], ["rans"])
    with pytest.raises(HilbertflowError):
        cheapest([np.zeros((4, 4), np.int8)], [])
    with pytest.raises(HilbertflowError, match="unknown coder"):
        cheapest([np.zeros((4, 4), np.int8)], ["zip"])
