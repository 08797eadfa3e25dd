"""Rate against distortion: bits a value at the error reached, beside the bound, the formats in use and video codecs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import rans, scales, video_lossy
from operators.capacity import excess, gaussian_rate
from operators.decode import Ladder
from operators.frame_encode import FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.quantize import Quantize
from operators.trellis_points import Tails
from pipelines.bench import nnc
from pipelines.bench.block_formats import FORMATS
from pipelines.bench.material import SIDE, Material, shuffled
from pipelines.bench.report import Chart, Table

F32 = npt.NDArray[np.float32]
VIDEO = (("hevc", (20.0, 28.0, 36.0)), ("h264", (30.0, 38.0, 46.0)), ("av1", (28.0, 40.0, 52.0)))
TARGETS = {"uniform": 0.27, "trellis, 8 states": 0.08, "trellis, 256 states": 0.05}
ON_WEIGHTS = 0.03  # bits that the excess on weights may lie above that on the Gaussian control
RIVAL = Quantize(states=32)
TAILS: tuple[Tails, ...] = ("gaussian", "laplace")
NNC = (4, 2, -2, -9, -15)  # quantization parameters: from a third of a bit to five on rows of unit deviation
EXCESS = "bits above the bound"
DB_A_BIT = 20 * math.log10(2)


@dataclass(frozen=True)
class Coded:
    """Planes through the operators: bytes by level and, for the base, the error."""

    levels: dict[str, int]
    sqnr_db: float

    @property
    def bytes(self) -> int:
        """Of all levels and scales."""
        return sum(self.levels.values())


@dataclass(frozen=True)
class Point:
    """A coder at an operating point."""

    coder: str
    bits: float
    sqnr_db: float

    @property
    def excess(self) -> float:
        """Bits above the Gaussian bound."""
        return excess(self.bits, self.sqnr_db)

    @property
    def row(self) -> tuple[Any, ...]:
        """As printed."""
        bound = gaussian_rate(self.sqnr_db)
        return self.coder, f"{self.bits:.3f}", f"{self.sqnr_db:.2f}", f"{bound:.3f}", f"{self.excess:.3f}"


def encode(
    material: Material, quantizer: Quantize, layers: Layerize, layout: str = "raster", side: int = SIDE
) -> Coded:
    """Run the real operators with rANS and count every byte they write."""
    material = material.cut(side)
    table = HilbertMap(side=side, layout=layout).apply(planes_table(material))  # type: ignore[arg-type]
    table = layers.apply(quantizer.apply(table))
    codes = np.stack([np.frombuffer(row, np.uint32) for row in table.column("scales").to_pylist()])
    symbols = [np.frombuffer(row, np.int16).reshape(side, side) for row in table.column("level0").to_pylist()]
    coded = FrameEncode(coder="rans").apply(table)
    names = [name for name in coded.column_names if name == "exact" or name.startswith("level")]
    sizes = {name: sum(len(c) for c in coded.column(name).to_pylist() if c) for name in names}
    sizes["scales"] = len(rans.encode(scales.stored(codes)))
    decoder = ladder(quantizer, layers, layout)
    base = np.stack([decoder.values([s], c, material.dtype).copy() for s, c in zip(symbols, codes, strict=True)])
    return Coded(sizes, sqnr(material, base))


def planes_table(material: Material) -> pa.Table:
    """Planes as a source gives them to the stream."""
    n, side, width = len(material.words), material.words.shape[-1], material.words.itemsize
    return pa.table(
        {
            "unit": pa.array([0] * n, pa.int64()), "plane": pa.array(range(n), pa.int64()),
            "planes": pa.array([n] * n, pa.int32()), "dtype": pa.array([material.dtype] * n, pa.string()),
            "opaque": pa.array([False] * n, pa.bool_()), "word": pa.array([width] * n, pa.int8()),
            "exact_word": pa.array([width] * n, pa.int8()), "height": pa.array([side] * n, pa.int32()),
            "width": pa.array([side] * n, pa.int32()), "count": pa.array([side * side] * n, pa.int32()),
            "bits": pa.array([plane.tobytes() for plane in material.words], pa.binary()),
        }
    )  # fmt: skip


def ladder(quantizer: Quantize, layers: Layerize, layout: Any) -> Ladder:
    """What decodes the levels that these operators make."""
    return Ladder(
        quantizer.method, quantizer.step, layers.fine_bits, layers.refinements, layers.levels[-1] == "exact", layout,
        quantizer.states, quantizer.inset,
    )  # fmt: skip


def sqnr(material: Material, approximate: F32) -> float:
    """Signal to noise in decibels: of an i.i.d. source as a whole, of any other with its rows scaled alike."""
    if not material.independent:
        return row_sqnr(material.values, approximate)
    values = material.values.astype(np.float64)
    return float(10 * np.log10(np.square(values).mean() / np.square(approximate - values).mean()))


def row_sqnr(values: F32, approximate: F32) -> float:
    """Signal to noise in decibels with every row, the last axis, scaled to unit deviation."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    power = np.square(rows).mean(axis=1)
    error = np.square(approximate.reshape(rows.shape) - rows).mean(axis=1)
    kept = power > 0
    return float(-10 * np.log10((error[kept] / power[kept]).mean()))


def ours(material: Material, decibels: tuple[float, ...]) -> list[Point]:
    """Every quantizer at every fidelity, on planes of two sizes."""
    methods: list[tuple[str, int, Callable[[float], Quantize]]] = [
        ("uniform", 256, lambda db: Quantize(method="uniform", sqnr_db=db)),
        ("trellis, 8 states", 256, lambda db: Quantize(states=8, sqnr_db=db)),
        ("trellis, 8 states", 512, lambda db: Quantize(states=8, sqnr_db=db)),
        ("trellis, 256 states", 256, lambda db: Quantize(states=256, sqnr_db=db)),
        ("trellis, 256 states", 512, lambda db: Quantize(states=256, sqnr_db=db)),
    ]
    points = []
    for name, side, quantizer in methods:
        for db in decibels:
            coded = encode(material, quantizer(db), Layerize(levels=("base",)), side=side)
            points.append(Point(f"{name}, planes of {side}²", 8 * coded.bytes / material.count, coded.sqnr_db))
    return points


def rivals(material: Material, quick: bool) -> Iterator[Point]:
    """Block formats, video codecs and the standard codec of neural networks on the same values."""
    for name, coder in FORMATS.items():
        decoded = coder(material.values)
        yield Point(name, decoded.bits, sqnr(material, decoded.values))
    frames, restore = pixels(material.values[: 2 if quick else 8])
    for codec, qualities in VIDEO:
        for quality in qualities[1:2] if quick else qualities:
            data = video_lossy.encode_frames(frames, codec, quality, intra=True)  # type: ignore[arg-type]
            reached = row_sqnr(restore(frames), restore(video_lossy.decode_frames(data)))
            yield Point(f"{codec}, 10-bit intra", 8 * len(data) / frames.size, reached)
    if nnc.installed():
        values = scaled(material.values[:4] if quick else material.values)
        for bits, back in nnc.coded(values, NNC[1:3] if quick else NNC):
            yield Point("NNC, 8 states", bits, row_sqnr(values, back))


def rate_distortion(material: Material, decibels: tuple[float, ...], quick: bool) -> Table:
    """Bits a value at the distortion reached, how far that lies above the Gaussian bound, and who wins."""
    own, others = ours(material, decibels), list(rivals(material, quick))
    bits = [_bits_at(material, other.sqnr_db) for other in others]
    rows = [(*point.row, "", "") for point in own]
    for other, at in zip(others, bits, strict=True):
        rows.append((*other.row, f"{at:.3f}", "beaten" if at < other.bits else "NOT BEATEN"))
    beaten = sum(at < other.bits for at, other in zip(bits, others, strict=True))
    notes = [
        "scales and tables counted; bound: Shannon's for a Gaussian; SQNR: of the whole where values are independent,",
        "else with the rows of a plane scaled to unit deviation; video and NNC get rows scaled, the scales for nothing",
        "shuffled rows of unlike deviations have heavy tails: easier than a Gaussian, they may lie below its bound",
        *_targets(material, own),
        f"peers beaten at equal distortion by {RIVAL.states} states, the better tails, planes of {SIDE}²: "
        f"{beaten} of {len(others)}",
        *([] if nnc.installed() else [nnc.MISSING]),
    ]  # fmt: skip
    return Table(
        f"rate against distortion: {material.name} as {material.dtype}, {material.count:,} values",
        ("coder", "bits/value", "SQNR dB", "bound", EXCESS, "ours at that dB", "verdict"), tuple(rows), tuple(notes),
        Chart("bits/value", EXCESS, "coder"),
    )  # fmt: skip


def _targets(material: Material, points: list[Point]) -> Iterator[str]:
    """Worst excess of each quantizer beside what it is to reach, for the control."""
    allowed = 0.0 if material.independent else ON_WEIGHTS
    for name in dict.fromkeys(p.coder for p in points):
        target = next(t for prefix, t in TARGETS.items() if name.startswith(prefix)) + allowed
        worst = max(p.excess for p in points if p.coder == name)
        met = "met" if worst <= target else "missed"
        yield f"{name}: at most {worst:.4f} bit above the bound, target {target:.2f}: {met}"


def _bits_at(material: Material, sqnr_db: float) -> float:
    """Bits a value of the default quantizer at an error, by the tails that suit the material.

    The last hundredths of a decibel are told by the bound's slope.
    """
    asked, bits = min(max(2.0, sqnr_db), 60.0), []
    for tails in TAILS:
        coded = encode(material, replace(RIVAL, sqnr_db=asked, tails=tails), Layerize(levels=("base",)))
        bits.append(8 * coded.bytes / material.count + (sqnr_db - coded.sqnr_db) / DB_A_BIT)
    return min(bits)


def order(material: Material, quantizer: Quantize) -> Table:
    """Whether the order of the values matters to the rate, against the shuffled control."""
    rows: list[tuple[Any, ...]] = []
    layers = Layerize(levels=("base", "fine", "exact"))
    for name, source in ((material.name, material), ("shuffled", shuffled(material))):
        for layout in ("hilbert", "raster"):
            coded = encode(source, quantizer, layers, layout)
            base = 8 * (coded.levels["level0"] + coded.levels["scales"]) / material.count
            rows.append(
                (name, layout, f"{base:.4f}", f"{8 * coded.bytes / material.count:.4f}", f"{coded.sqnr_db:.2f}")
            )
    return Table("order of the values", ("values", "layout", "base bits", "bits in all", "base SQNR dB"), tuple(rows))


def scaled(values: F32) -> F32:
    """Rows at unit deviation, (rows, width)."""
    rows = values.reshape(-1, values.shape[-1])
    deviation = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    return np.asarray(rows / np.maximum(deviation, 1e-30), np.float32)


def pixels(values: F32) -> tuple[npt.NDArray[np.uint16], Callable[[npt.NDArray[np.uint16]], F32]]:
    """Rows scaled to unit deviation as 10-bit pixels, 96 levels a deviation, and the way back to the scaled rows."""
    frames = np.clip(np.rint(512 + 96 * scaled(values)), 0, 1023).astype(np.uint16).reshape(values.shape)
    return frames, lambda frames: (frames.astype(np.float32) - 512) / 96
