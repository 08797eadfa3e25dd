"""``bench lineage``: a real chain of checkpoints, each archived as differences to the one before it.

Beside it, on the same words: XOR with the parent, split by bytes, Zstandard level 3 (the method of BitX in ZipLLM),
ZipNN of the same XOR, ZipNN without a parent, and video coding with prediction between the checkpoints.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import Zstd

from operators import video_lossy
from operators.floats import round_to
from pipelines.bench.finetune import chain
from pipelines.bench.local import archive_model
from pipelines.bench.report import Table
from pipelines.restore import restore
from storage.checkpoint import Checkpoint, open_checkpoint
from storage.lineage import MAX_CHAIN
from storage.model import ModelArchive

Words = npt.NDArray[Any]
Size = Callable[[Words, Words], int]  # bytes of a checkpoint's words, given its parent's
TARGET = 0.85
VIDEO_SIDE, VIDEO_QUALITIES = 512, (12.0, 20.0, 28.0)


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` takes 4 checkpoints instead of 11, and float32 chains only half as long."""
    paths = chain(4 if quick else 11)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("F32", "BF16"):
            sources = paths if dtype == "F32" else [_cast(path, Path(folder)) for path in paths]
            made = _archive(sources, Path(folder) / dtype)
            yield _sizes(sources, made, dtype)
            yield _reading(sources, made, dtype, Path(folder))
    yield _video(paths)


def _archive(sources: list[Path], folder: Path) -> list[ModelArchive]:
    made: list[ModelArchive] = []
    for number, source in enumerate(sources):
        sets = [f"name=step-{number:02d}", f"sink.name=step-{number:02d}", "operators.4.coder=rans",
                "operators.1.layout=raster"]  # fmt: skip
        sets += [f"parent={made[-1].url}"] if made else []
        made.append(archive_model(str(source), folder, *sets))
    return made


def _sizes(sources: list[Path], made: list[ModelArchive], dtype: str) -> Table:
    rows: list[tuple[Any, ...]] = []
    ratios, before = [], _words(sources[0])
    contenders: dict[str, Size] = {"XOR, bytes split, zstd-3": _bitx}
    contenders |= _zipnn(dtype)
    for number, (source, handle) in enumerate(zip(sources, made, strict=True)):
        words = _words(source)
        ours = sum(handle.manifest.levels.values())
        if not number:
            rows.append((number, "first", f"{ours / 1e6:.2f}", *(None for _ in contenders), None, None))
            continue
        sizes = [measure(words, before) for measure in contenders.values()]
        ratios.append([ours / size for size in sizes])
        quality = handle.manifest.quality.get("sqnr_db_parent")
        rows.append(
            (number, f"{100 * np.mean(words != before):.1f} %", f"{ours / 1e6:.2f}", *(f"{s / 1e6:.2f}" for s in sizes),
             f"{ratios[-1][0]:.3f}", None if quality is None else f"{quality:.1f}")
        )  # fmt: skip
        before = words
    means = np.mean(ratios, axis=0)
    notes = [
        f"{'met' if mean <= TARGET else 'MISSED'}: {mean:.3f} of {name} over {len(ratios)} children (target {TARGET})"
        for name, mean in zip(contenders, means, strict=True)
        if "alone" not in name
    ]
    return Table(
        f"Lossless bytes of a checkpoint given the one before it, {dtype}, MB (all of the archive counted)",
        ("step", "words changed", "ours", *contenders, "ours : first", "parent's SNR dB"), tuple(rows), tuple(notes),
    )  # fmt: skip


def _reading(sources: list[Path], made: list[ModelArchive], dtype: str, folder: Path) -> Table:
    rows = []
    for number in sorted({0, 1, len(made) // 2, len(made) - 1}):
        from storage import archive

        handle: ModelArchive = archive.open(made[number].url)
        restore(handle.url, str(out := folder / "restored.safetensors"))
        for _ in handle.pieces("exact"):
            pass
        own = sum(handle.manifest.levels.values())
        alike = _digests(open_checkpoint(str(out))) == _digests(open_checkpoint(str(sources[number])))
        depth = handle.link.depth if handle.link else 0
        tensor = handle["encoder.layer.3.attention.self.query.weight"]
        before = handle.bytes_read
        tensor.read("exact")
        rows.append(
            (number, depth, "yes" if alike else "NO", f"{own / 1e6:.2f}", f"{before / 1e6:.2f}",
             f"{(handle.bytes_read - before) / 1e6:.2f}")
        )  # fmt: skip
    return Table(
        f"Reading a child, {dtype}: what it fetches of itself and its parents",
        ("step", "depth", "SHA-256 alike", "own MB", "read MB, all of it", "read MB, one matrix"), tuple(rows),
        (f"A chain is {MAX_CHAIN} deep at most (max_chain); a child beyond that is coded against the chain's first.",),
    )  # fmt: skip


def _video(paths: list[Path]) -> Table:
    """HEVC over one matrix of every checkpoint: each frame alone, and predicted from the ones before it."""
    name = "encoder.layer.3.intermediate.dense.weight"
    side = VIDEO_SIDE if len(paths) > 4 else VIDEO_SIDE // 2
    planes = []
    for path in paths:
        source = open_checkpoint(str(path))
        spec = next(spec for spec in source.tensors if spec.name == name)
        planes.append(np.frombuffer(source.read(spec), np.float32)[: side * side].reshape(side, side))
    stack = np.stack(planes)
    steps = np.diff(stack.astype(np.float64), axis=0)
    deviation = float(stack.std())
    frames = np.clip(np.rint(512 + 96 * stack / deviation), 0, 1023).astype(np.uint16)
    rows = []
    for quality in VIDEO_QUALITIES:
        for how, intra in (("each alone", True), ("predicted", False)):
            data = video_lossy.encode_frames(frames, "hevc", quality, intra=intra)
            back = (video_lossy.decode_frames(data).astype(np.float64) - 512) / 96 * deviation
            told = np.diff(back, axis=0)
            rows.append(
                (f"HEVC QP {quality:g}", how, f"{8 * len(data) / stack.size:.3f}",
                 f"{_decibels(stack, back - stack):.1f}", f"{_decibels(steps, told - steps):.1f}")
            )  # fmt: skip
    return Table(
        f"Video over the chain: {len(paths)} checkpoints of {name}, {side}×{side}, 10 bits", ("coder", "frames",
        "bits a value", "SNR dB", "SNR of the steps dB"), tuple(rows),
        ("Below 0 dB the steps come back worse than as zeros: prediction between frames repeats the parent and loses "
         "what was learnt. It is a way to look at a chain, not to keep it.",),
    )  # fmt: skip


def _decibels(signal: npt.NDArray[Any], noise: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(signal, dtype=np.float64).sum() / max(1e-300, np.square(noise).sum())))


def _bitx(words: Words, parent: Words) -> int:
    xor, coder = words ^ parent, Zstd(level=3)
    planes = np.ascontiguousarray(xor.view(np.uint8).reshape(len(xor), -1).T)
    return sum(len(coder.encode(plane.tobytes())) for plane in planes)


def _zipnn(dtype: str) -> dict[str, Size]:
    try:
        from zipnn import ZipNN
    except ImportError:
        return {}
    name = {"F32": "float32", "BF16": "bfloat16"}[dtype]

    def size(words: Words) -> int:
        return len(ZipNN(bytearray_dtype=name, input_format="byte").compress(bytearray(words.tobytes())))

    return {"ZipNN of the XOR": lambda words, parent: size(words ^ parent), "ZipNN alone": lambda words, _: size(words)}


def _words(path: Path) -> Words:
    """All floats of a checkpoint, end to end."""
    source = open_checkpoint(str(path))
    parts = [(spec.dtype, source.read(spec)) for spec in source.tensors if spec.dtype in ("F32", "BF16")]
    return np.concatenate([np.frombuffer(data, np.uint32 if dtype == "F32" else np.uint16) for dtype, data in parts])


def _digests(source: Checkpoint) -> dict[str, str]:
    return {spec.name: hashlib.sha256(source.read(spec)).hexdigest() for spec in source.tensors}


def _cast(path: Path, folder: Path) -> Path:
    """The checkpoint in bfloat16."""
    import ml_dtypes
    from safetensors.numpy import save_file

    source = open_checkpoint(str(path))
    tensors = {}
    for spec in source.tensors:
        data = source.read(spec)
        if spec.dtype == "F32":
            words = round_to(np.frombuffer(data, np.float32), "BF16")
            tensors[spec.name] = words.view(ml_dtypes.bfloat16).reshape(spec.shape)
        else:
            tensors[spec.name] = np.frombuffer(data, np.int64).reshape(spec.shape)
    save_file(tensors, out := folder / f"bf16-{path.name}")
    return out
