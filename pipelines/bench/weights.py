"""``bench weights``: rate against distortion, what levels cost on the way to bit-exact, speed, the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from operators import rans, scales, single
from operators.layerize import Layerize
from operators.quantize import Quantize
from pipelines.bench.excess import split
from pipelines.bench.fidelity import fidelity
from pipelines.bench.material import SIDE, Material, gaussian, model_planes, shuffled
from pipelines.bench.rate import encode, order, rate_distortion
from pipelines.bench.report import Table
from pipelines.bench.weights_speed import speed

DECIBELS = (3.0, 6.0, 10.0, 15.0, 20.0, 25.0, 29.5)
BASE_DB = 20.2
MOST = 1.02
"""All levels together against the smallest lossless copy."""


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` takes half of the planes and fewer operating points."""
    planes = 16 if quick else 32
    control, weights = gaussian("F32", planes), model_planes("F32", planes)
    materials = (control, weights, model_planes("BF16", planes), shuffled(weights))
    for material in materials:
        yield rate_distortion(material, DECIBELS[::3] if quick else DECIBELS, quick)
    for material in materials[:2]:
        yield split(material, (8, 256), (256, 512), DECIBELS[::3])
    yield order(weights, Quantize(sqnr_db=BASE_DB))
    for dtype in ("BF16", "F16", "F32"):
        yield progressive(model_planes(dtype, planes))
    yield speed(control, planes, quick)
    yield fidelity(quick)


def progressive(material: Material) -> Table:
    """Base, refinement and exact level beside one lossless copy, ours and the peers'."""
    layers = Layerize(levels=("base", "fine", "exact"))
    coded = encode(material, Quantize(sqnr_db=BASE_DB), layers)
    bits = {name: 8 * size / material.count for name, size in coded.levels.items()}
    rows: list[tuple[Any, ...]] = [(f"ours: {name}", f"{value:.3f}", "") for name, value in bits.items()]
    others, alone, total = peers(material), single_bytes(material), coded.bytes
    contenders = {"ours, single level": alone} | others
    best = min(contenders.values())
    rows.append(("ours: all levels", f"{8 * total / material.count:.3f}", f"{total / best:.4f}"))
    rows += [(name, f"{8 * size / material.count:.3f}", f"{size / best:.4f}") for name, size in contenders.items()]
    base = bits["level0"] + bits["scales"]
    notes = [
        f"base at most 4 bits and at least 20 dB: {'met' if base <= 4 and coded.sqnr_db >= 20 else 'missed'}",
        f"all levels at most {MOST} of the smallest: {'met' if total <= MOST * best else 'missed'}",
    ]
    if others:
        name = min(others, key=lambda peer: others[peer])
        met = "met" if alone <= others[name] else "missed"
        notes.append(f"single level at most the smallest peer's: {met}, {alone / others[name]:.4f} of {name}")
    missing = {"ZipNN", "lmzip"} - set(others)
    if missing:
        notes.append(f"not installed: {', '.join(sorted(missing))} (pip install 'hilbertflow[bench]')")
    return Table(
        f"progressive to bit-exact: {material.name} as {material.dtype}, base at {coded.sqnr_db:.2f} dB",
        ("coder", "bits/value", "against the smallest lossless copy"), tuple(rows), tuple(notes),
    )  # fmt: skip


def single_bytes(material: Material) -> int:
    """Our own lossless coding in one level: symbols and row codes."""
    codes = np.stack([scales.encode(words, material.dtype) for words in material.words])
    symbols = (single.encode(words, material.dtype, code) for words, code in zip(material.words, codes, strict=True))
    return sum(len(rans.encode(plane)) for plane in symbols) + len(rans.encode(scales.stored(codes)))


def peers(material: Material) -> dict[str, int]:
    """Bytes of ZipNN and lmzip on the same words; a peer that is not installed is left out."""
    data, found = material.words.tobytes(), {}
    try:
        from zipnn import ZipNN

        name = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[material.dtype]
        methods = (ZipNN(method=method, bytearray_dtype=name) for method in ("AUTO", "ZSTD", "HUFFMAN"))
        found["ZipNN"] = min(len(method.compress(bytearray(data))) for method in methods)
    except ImportError:
        pass
    try:
        import lmz.api
    except ImportError:
        return found
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "m.safetensors", material)
        lmz.api.compress(f"{folder}/m.safetensors", f"{folder}/m.lmz")
        found["lmzip"] = Path(folder, "m.lmz").stat().st_size
    return found


def write_safetensors(path: Path, material: Material) -> None:
    """The words as one tensor of a checkpoint, for peers that read files."""
    size = material.words.nbytes
    header = json.dumps({"w": {"dtype": material.dtype, "shape": [size // material.words.itemsize // SIDE, SIDE],
                               "data_offsets": [0, size]}}).encode()  # fmt: skip
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + material.words.tobytes())
