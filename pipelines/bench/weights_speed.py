"""Speed of the coders on one core, of a restore on the cores there are, and of the peers in the same run."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Zstd

from operators import rans, scales, trellis, uniform, video_lossy
from operators.capacity import entropy
from pipelines.bench.local import archive_model
from pipelines.bench.material import SIDE, Material, model_planes, write_model
from pipelines.bench.rate import pixels
from pipelines.bench.report import Table, median_seconds
from pipelines.restore import restore
from storage.checkpoint import open_checkpoint

DECIBELS = 20.2
REPEATS = 3
RANS, TRELLIS, EXACT = "rANS", "trellis, 8 states", "archive to safetensors, bit-exact, all cores"
ABOVE = "rANS above the entropy, tables counted"
LEAST = {  # by row: of its columns 1 (encode) and 2 (decode)
    RANS: (160.0, 300.0), TRELLIS: (20.0, None), EXACT: (None, 300.0),
}  # fmt: skip
MOST_ABOVE = 0.005


def speed(control: Material, planes: int, quick: bool) -> Table:
    """MB of source a second, symbols a second, and ratios to zstd-3."""
    words = model_planes("BF16", max(planes, 16))
    rows = [*_coders(control), *_lossless(words, quick), *_video(words.values[:2]), *_restored()]
    return Table(
        "speed, one core where no other number is named",
        ("what", "encode", "decode", "unit", "bytes of the source"), tuple(rows),
        ("rANS and trellis on Gaussian symbols at 20.2 dB; the others in MB/s of MiniLM as bfloat16, in this run",
         *_targets(rows)),
    )  # fmt: skip


def _targets(rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """What each row was to reach."""
    for name, *values, unit, _ in rows:
        for what, value, least in zip(("encode", "decode"), values, LEAST.get(name, (None, None)), strict=True):
            if least is not None:
                met = "met" if float(value) >= least else "missed"
                yield f"{name}, {what}: {value} {unit}, target {least:.0f}: {met}"
        if name == ABOVE:
            met = "met" if float(values[0]) <= MOST_ABOVE else "missed"
            yield f"{name}: {values[0]} bit a symbol, target {MOST_ABOVE}: {met}"


def _coders(control: Material) -> Iterator[tuple[Any, ...]]:
    codes = [scales.encode(plane, control.dtype) for plane in control.words]
    step, count = uniform.step_for(DECIBELS), control.count / 1e6
    symbols = [uniform.quantize(v, c, step) for v, c in zip(control.values, codes, strict=True)]
    chunks = [rans.encode(s) for s in symbols]
    coding = median_seconds(lambda: [rans.encode(s) for s in symbols])
    decoding = median_seconds(lambda: [rans.decode(c, (SIDE, SIDE), np.int16) for c in chunks])
    yield RANS, f"{count / coding:.0f}", f"{count / decoding:.0f}", "M symbols/s", ""
    yield "the same by two threads at once, times one", "", f"{_second_core(chunks):.2f}", "", ""
    above = 8 * sum(map(len, chunks)) / control.count - float(np.mean([entropy(s) for s in symbols]))
    yield ABOVE, f"{above:.4f}", "", "bits/symbol", ""
    for states in (8, 32):
        at = trellis.step_for(DECIBELS, states)
        paths = [trellis.quantize(v, c, at, states) for v, c in zip(control.values, codes, strict=True)]
        coding = median_seconds(
            lambda s=states, a=at: [trellis.quantize(v, c, a, s) for v, c in zip(control.values, codes, strict=True)],  # type: ignore[misc]
            REPEATS,
        )
        decoding = median_seconds(lambda p=paths, s=states: [trellis.index(x, s) for x in p], REPEATS)  # type: ignore[misc]
        yield f"trellis, {states} states", f"{count / coding:.1f}", f"{count / decoding:.0f}", "M values/s", ""


def _lossless(words: Material, quick: bool) -> Iterator[tuple[Any, ...]]:
    """Peers that keep every bit: fed the same bytes from memory, lmzip through files."""
    data, size = words.words.tobytes(), words.words.nbytes / 1e6
    for level in (1, 3):
        coder = Zstd(level=level)
        coded = coder.encode(data)
        yield _line(f"zstd-{level}", size, lambda c=coder: c.encode(data), lambda c=coder, d=coded: c.decode(d), coded)  # type: ignore[misc]
    try:
        from zipnn import ZipNN

        nn = ZipNN(bytearray_dtype="bfloat16", threads=1)
        packed = nn.compress(bytearray(data))
        yield _line("ZipNN", size, lambda: nn.compress(bytearray(data)), lambda: nn.decompress(packed), packed)
    except ImportError:
        yield "ZipNN: not installed", "", "", "", ""
    try:
        import lmz.api as lmz
    except ImportError:
        yield "lmzip: not installed", "", "", "", ""
        return
    from pipelines.bench.weights import write_safetensors

    with tempfile.TemporaryDirectory() as folder:
        plain, packed_file, back = (f"{folder}/{name}" for name in ("m.safetensors", "m.lmz", "b.safetensors"))
        write_safetensors(Path(plain), words)
        lmz.compress(plain, packed_file)
        coded = Path(packed_file).read_bytes()
        yield _line("lmzip", size, lambda: lmz.compress(plain, packed_file),
                    lambda: lmz.decompress(packed_file, back, overwrite=True), coded)  # fmt: skip


def _line(
    name: str, size: float, coder: Callable[[], Any], decoder: Callable[[], Any], coded: bytes
) -> tuple[Any, ...]:
    ratio = len(coded) / 1e6 / size
    taken = median_seconds(coder, REPEATS), median_seconds(decoder, REPEATS)
    return name, f"{size / taken[0]:.0f}", f"{size / taken[1]:.0f}", "MB/s", f"{100 * ratio:.1f} %"


def _video(values: Any) -> Iterator[tuple[Any, ...]]:
    frames, _ = pixels(values)
    size = frames.size * 2 / 1e6
    coded = video_lossy.encode_frames(frames, "hevc", 28.0, intra=True)
    coding = median_seconds(lambda: video_lossy.encode_frames(frames, "hevc", 28.0, intra=True), 1)
    decoding = median_seconds(lambda: video_lossy.decode_frames(coded), 1)
    ratio = 100 * len(coded) / 1e6 / size
    yield "x265 medium, lossy at 17 dB", f"{size / coding:.1f}", f"{size / decoding:.0f}", "MB/s", f"{ratio:.1f} %"


def _restored() -> Iterator[tuple[Any, ...]]:
    """The whole model as a real archive through the operators, and back to a safetensors file, on all cores.

    In memory where the system has a file system there, as the peers work; then onto the disk, which a restore waits for
    until it has every byte.
    """
    for place, name in ((_memory(), EXACT), (None, "the same onto the disk, flushed")):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            source = Path(folder, "m.safetensors")
            size = write_model(source, "BF16") / 1e6
            handle = archive_model(str(source), Path(folder), "operators.4.coder=rans", "operators.1.layout=raster",
                                   f"operators.2.sqnr_db={DECIBELS}")  # fmt: skip
            taken, back = _seconds_to_restore(handle.url, folder)
            if _digest(back) != _digest(source):
                raise AssertionError("the restored bytes differ")
            total = f"{100 * sum(handle.manifest.levels.values()) / 1e6 / size:.1f} %"
            yield name, "", f"{size / taken:.0f}", "MB/s", total
            if name == EXACT:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _on_one_core) as alone:
                    one, _ = alone.submit(_seconds_to_restore, handle.url, folder).result()
                yield "the same on one core", "", f"{size / one:.0f}", "MB/s", total


def _memory() -> str | None:
    """A folder that lies in memory and has room for a model, its archive and six copies."""
    folder = Path("/dev/shm")
    fits = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 1 << 30
    return str(folder) if fits else None


def _on_one_core() -> None:
    """Leave this process one core: how many threads decode is read from that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _seconds_to_restore(url: str, folder: str) -> tuple[float, Path]:
    """Median seconds, and the last file; a new one each time: to replace one takes the system an eighth longer."""
    files = [Path(folder, f"back{i}.safetensors") for i in range(6)]
    left = iter(files)
    return median_seconds(lambda: restore(url, str(next(left))), len(files) - 1), files[-1]


def _second_core(chunks: list[bytes]) -> float:
    """How much more two threads decode than one: 2 on two cores, near 1 where two "cores" are one core's threads."""

    def work() -> None:
        for chunk in chunks:
            rans.decode(chunk, (SIDE, SIDE), np.int16)

    with ThreadPoolExecutor(2) as pool:
        one = median_seconds(lambda: pool.submit(work).result())
        two = median_seconds(lambda: [f.result() for f in [pool.submit(work), pool.submit(work)]])
    return 2 * one / two


def _digest(path: Path) -> str:
    """Hash of a checkpoint's tensors, whatever order its header has."""
    checkpoint, digest = open_checkpoint(str(path)), hashlib.sha256()
    for spec in sorted(checkpoint.tensors, key=lambda spec: spec.name):
        digest.update(f"{spec.name} {spec.dtype} {spec.shape}".encode() + checkpoint.read(spec))
    return digest.hexdigest()
