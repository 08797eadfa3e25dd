"""``bench weights``: rate against distortion, what levels cost on the way to bit-exact, and the speed of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import rans, scales, single, trellis, uniform, video
from operators.capacity import entropy, excess, gaussian_rate
from operators.decode import Ladder
from operators.frame_encode import FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.quantize import Quantize
from pipelines.bench.block_formats import FORMATS
from pipelines.bench.material import SIDE, Material, gaussian, model_planes, shuffled
from pipelines.bench.report import Table, median_seconds

DECIBELS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
VIDEO = (("hevc", (20.0, 28.0, 36.0)), ("h264", (30.0, 38.0, 46.0)), ("av1", (28.0, 40.0, 52.0)))
BASE_DB = 20.2


def run(quick: bool) -> list[Table]:
    """All tables; ``quick`` takes an eighth of the planes and fewer operating points."""
    planes = 4 if quick else 32
    real, control = model_planes("F32", planes), gaussian("F32", planes)
    materials = (real, shuffled(real), control)
    tables = [rate_distortion(m, DECIBELS[1:5:2] if quick else DECIBELS, quick) for m in materials]
    tables += [order(real)]
    tables += [progressive(lambda d=dtype: model_planes(d, planes), dtype) for dtype in ("BF16", "F16", "F32")]  # type: ignore[misc]
    tables += [speed(control, model_planes("BF16", planes))]
    return tables


@dataclass(frozen=True)
class Coded:
    """Planes through the operators: bytes by level and, for the base, the error on rows scaled to unit deviation."""

    levels: dict[str, int]
    sqnr_db: float

    @property
    def bytes(self) -> int:
        """Of all levels and scales."""
        return sum(self.levels.values())


def encode(material: Material, quantizer: Quantize, layers: Layerize, layout: str = "raster") -> Coded:
    """Run the real operators with rANS and count every byte they write."""
    table = HilbertMap(side=SIDE, layout=layout).apply(_planes(material))  # type: ignore[arg-type]
    table = layers.apply(quantizer.apply(table))
    codes = np.stack([np.frombuffer(row, np.uint16) for row in table.column("scales").to_pylist()])
    symbols = [np.frombuffer(row, np.int16).reshape(SIDE, SIDE) for row in table.column("level0").to_pylist()]
    coded = FrameEncode(coder="rans").apply(table)
    names = [name for name in coded.column_names if name == "exact" or name.startswith("level")]
    sizes = {name: sum(len(c) for c in coded.column(name).to_pylist() if c) for name in names}
    sizes["scales"] = len(rans.encode(scales.stored(codes)))
    ladder = _ladder(quantizer, layers, layout)
    base = np.stack([ladder.values([s], c, material.dtype).copy() for s, c in zip(symbols, codes, strict=True)])
    return Coded(sizes, sqnr(material, base))


def sqnr(material: Material, approximate: npt.NDArray[np.float32]) -> float:
    """Signal to noise in decibels: of an i.i.d. source as a whole, of any other with its rows scaled alike."""
    if not material.independent:
        return row_sqnr(material.values, approximate)
    values = material.values.astype(np.float64)
    return float(10 * np.log10(np.square(values).mean() / np.square(approximate - values).mean()))


def row_sqnr(values: npt.NDArray[np.float32], approximate: npt.NDArray[np.float32]) -> float:
    """Signal to noise in decibels with every row of SIDE values scaled to unit deviation."""
    rows = values.reshape(-1, SIDE).astype(np.float64)
    power = np.square(rows).mean(axis=1)
    error = np.square(approximate.reshape(-1, SIDE) - rows).mean(axis=1)
    kept = power > 0
    return float(-10 * np.log10((error[kept] / power[kept]).mean()))


def rate_distortion(material: Material, decibels: tuple[float, ...], quick: bool) -> Table:
    """Bits a value at the distortion reached, and how far that lies above the Gaussian bound."""
    rows: list[tuple[Any, ...]] = []
    base = Layerize(levels=("base",))
    methods: list[tuple[str, Callable[[float], Quantize]]] = [
        ("uniform + rANS", lambda db: Quantize(method="uniform", sqnr_db=db)),
        ("trellis, 8 states + rANS", lambda db: Quantize(states=8, sqnr_db=db)),
        ("trellis, 256 states + rANS", lambda db: Quantize(states=256, sqnr_db=db)),
    ]
    for name, quantizer in methods:
        for db in decibels:
            coded = encode(material, quantizer(db), base)
            rows.append(_point(name, 8 * coded.bytes / material.count, coded.sqnr_db))
    for name, coder in FORMATS.items():
        decoded = coder(material.values)
        rows.append(_point(name, decoded.bits, row_sqnr(material.values, decoded.values)))
    frames, restore = _pixels(material.values[: 2 if quick else 8])
    for codec, qualities in VIDEO:
        for quality in qualities[1:2] if quick else qualities:
            data = video.encode_frames(frames, codec, quality, intra=True)  # type: ignore[arg-type]
            reached = row_sqnr(restore(frames), restore(video.decode_frames(data)))
            rows.append(_point(f"{codec}, 10-bit intra, {quality:g}", 8 * len(data) / frames.size, reached))
    return Table(
        f"rate against distortion: {material.name}, {material.count:,} values of {material.dtype}",
        ("coder", "bits/value", "SQNR dB", "bound", "excess bits"), tuple(rows),
        ("scales and tables counted; SQNR on rows of 256 scaled to unit deviation; bound: Shannon's for a Gaussian",),
    )  # fmt: skip


def order(material: Material) -> Table:
    """Whether the order of the values matters to the rate, against the shuffled control."""
    rows: list[tuple[Any, ...]] = []
    layers = Layerize(levels=("base", "fine", "exact"))
    for name, source in ((material.name, material), ("shuffled", shuffled(material))):
        for layout in ("hilbert", "raster"):
            coded = encode(source, Quantize(sqnr_db=BASE_DB), layers, layout)
            base = 8 * (coded.levels["level0"] + coded.levels["scales"]) / material.count
            rows.append(
                (name, layout, f"{base:.4f}", f"{8 * coded.bytes / material.count:.4f}", f"{coded.sqnr_db:.2f}")
            )
    return Table("order of the values", ("values", "layout", "base bits", "bits in all", "base SQNR dB"), tuple(rows))


def progressive(make: Callable[[], Material], dtype: str) -> Table:
    """Base, refinement and exact level beside one lossless copy, ours and the peers'."""
    material = make()
    layers = Layerize(levels=("base", "fine", "exact"))
    coded = encode(material, Quantize(sqnr_db=BASE_DB), layers)
    bits = {name: 8 * size / material.count for name, size in coded.levels.items()}
    rows: list[tuple[Any, ...]] = [(f"ours: {name}", f"{value:.3f}", "") for name, value in bits.items()]
    rivals = {"ours, single level": single_bytes(material)} | peers(material)
    best = min(rivals.values())
    total = coded.bytes
    rows.append(("ours: all levels", f"{8 * total / material.count:.3f}", f"{total / best:.4f}"))
    rows += [(name, f"{8 * size / material.count:.3f}", f"{size / best:.4f}") for name, size in rivals.items()]
    return Table(
        f"progressive to bit-exact: {material.name} as {dtype}, base at {coded.sqnr_db:.2f} dB",
        ("coder", "bits/value", "against the smallest lossless copy"), tuple(rows),
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
        _safetensors(Path(folder) / "m.safetensors", material)
        lmz.api.compress(f"{folder}/m.safetensors", f"{folder}/m.lmz")
        found["lmzip"] = Path(folder, "m.lmz").stat().st_size
    return found


def speed(control: Material, words: Material) -> Table:
    """One core: the entropy coder, the trellis, and all levels back to bits."""
    codes = [scales.encode(plane, control.dtype) for plane in control.words]
    step = uniform.step_for(BASE_DB)
    symbols = [uniform.quantize(v, c, step) for v, c in zip(control.values, codes, strict=True)]
    chunks = [rans.encode(s) for s in symbols]
    count = control.count / 1e6
    rows: list[tuple[Any, ...]] = []
    above = 8 * sum(map(len, chunks)) / control.count - float(np.mean([entropy(s) for s in symbols]))
    rows.append(("rANS encode", f"{count / median_seconds(lambda: [rans.encode(s) for s in symbols]):.0f} M symbols/s"))
    decode = median_seconds(lambda: [rans.decode(c, (SIDE, SIDE), np.int16) for c in chunks])
    rows.append(("rANS decode", f"{count / decode:.0f} M symbols/s"))
    rows.append(("rANS above the entropy, tables counted", f"{above:.4f} bits/symbol"))
    for states in (8, 32):
        at = trellis.step_for(BASE_DB, states)
        taken = median_seconds(
            lambda s=states, a=at: [trellis.quantize(v, c, a, s) for v, c in zip(control.values, codes, strict=True)], 3  # type: ignore[misc]
        )  # fmt: skip
        rows.append((f"trellis encode, {states} states", f"{count / taken:.1f} M values/s"))
    rows += list(_restore_speed(words))
    return Table("speed, one core", ("what", "figure"), tuple(rows))


def _restore_speed(material: Material) -> Iterator[tuple[Any, ...]]:
    quantizer, layers = Quantize(sqnr_db=BASE_DB), Layerize(levels=("base", "fine", "exact"))
    table = layers.apply(quantizer.apply(HilbertMap(side=SIDE, layout="raster").apply(_planes(material))))
    codes = [np.frombuffer(row, np.uint16) for row in table.column("scales").to_pylist()]
    coded = FrameEncode(coder="rans").apply(table)
    chunks = {name: coded.column(name).to_pylist() for name in ("level0", "level1", "exact")}
    ladder = _ladder(quantizer, layers, "raster")

    def restore() -> None:
        for at, code in enumerate(codes):
            base = rans.decode(chunks["level0"][at], (SIDE, SIDE), np.int16)
            fine = rans.decode(chunks["level1"][at], (SIDE, SIDE), np.int8)
            residual = rans.decode(chunks["exact"][at], (SIDE, SIDE), material.words.dtype)
            ladder.bits([base, fine], code, residual, material.dtype)

    taken = median_seconds(restore)
    yield f"restore, all levels to {material.dtype}", f"{material.words.nbytes / 1e6 / taken:.0f} MB/s"


def _planes(material: Material) -> pa.Table:
    n, width = len(material.words), material.words.itemsize
    return pa.table(
        {
            "unit": pa.array([0] * n, pa.int64()), "plane": pa.array(range(n), pa.int64()),
            "planes": pa.array([n] * n, pa.int32()), "dtype": pa.array([material.dtype] * n, pa.string()),
            "opaque": pa.array([False] * n, pa.bool_()), "word": pa.array([width] * n, pa.int8()),
            "exact_word": pa.array([width] * n, pa.int8()), "height": pa.array([SIDE] * n, pa.int32()),
            "width": pa.array([SIDE] * n, pa.int32()), "count": pa.array([SIDE * SIDE] * n, pa.int32()),
            "bits": pa.array([plane.tobytes() for plane in material.words], pa.binary()),
        }
    )  # fmt: skip


def _ladder(quantizer: Quantize, layers: Layerize, layout: Any) -> Ladder:
    return Ladder(
        quantizer.method, quantizer.step, layers.fine_bits, layers.refinements, layers.levels[-1] == "exact", layout,
        quantizer.states,
    )  # fmt: skip


def _point(name: str, bits: float, reached: float) -> tuple[Any, ...]:
    return name, f"{bits:.3f}", f"{reached:.2f}", f"{gaussian_rate(reached):.3f}", f"{excess(bits, reached):.3f}"


def _pixels(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint16], Callable[[npt.NDArray[np.uint16]], npt.NDArray[np.float32]]]:
    """Rows scaled to unit deviation as 10-bit pixels, 96 levels a deviation, and the way back to the scaled rows."""
    rows = values.reshape(-1, SIDE)
    deviation = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    pixels = np.clip(np.rint(512 + 96 * rows / np.maximum(deviation, 1e-30)), 0, 1023).astype(np.uint16)
    return pixels.reshape(values.shape), lambda frames: (frames.astype(np.float32) - 512) / 96


def _safetensors(path: Path, material: Material) -> None:
    import json

    size = material.words.nbytes
    header = json.dumps({"w": {"dtype": material.dtype, "shape": [size // material.words.itemsize // SIDE, SIDE],
                               "data_offsets": [0, size]}}).encode()  # fmt: skip
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + material.words.tobytes())
