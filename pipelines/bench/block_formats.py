"""Block formats of weights in use, as peers: what they store and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numcodecs import Zstd

F32 = npt.NDArray[np.float32]

# The sixteen values of NormalFloat (Dettmers et al., QLoRA, 2023, appendix E).
NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32
)  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """A peer's answer: bits a value, every scale counted, and the values that it gives back."""

    bits: float
    values: F32


def nf4(values: F32) -> Decoded:
    """NF4 in blocks of 64 with double-quantized scales: 8 bits a scale and one float32 each 256 scales."""
    blocks = values.reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1)
    groups = np.pad(largest, (0, -len(largest) % 256)).reshape(-1, 256)
    mean = groups.mean()
    span = np.maximum(np.abs(groups - mean).max(axis=1, keepdims=True), 1e-12)
    scale = (np.rint((groups - mean) / span * 127) / 127 * span + mean).reshape(-1)[: len(largest), None]
    middles = (NF4[1:] + NF4[:-1]) / 2
    codes = np.searchsorted(middles, blocks / np.maximum(scale, 1e-12))
    return Decoded(4 + 8 / 64 + 32 / (64 * 256), (NF4[codes] * scale).astype(np.float32).reshape(values.shape))


def ggml(bits: int) -> Callable[[F32], Decoded]:
    """Q4_0, Q5_0 and Q8_0 of GGUF: blocks of 32 with a float16 scale."""

    def coded(values: F32) -> Decoded:
        blocks = values.reshape(-1, 32)
        at = np.abs(blocks).argmax(axis=1)
        extreme = np.take_along_axis(blocks, at[:, None], 1)
        half = 1 << (bits - 1)
        divisor = 127.0 if bits == 8 else float(-half)
        scale = (np.abs(extreme) if bits == 8 else extreme) / divisor
        scale = scale.astype(np.float16).astype(np.float32)
        levels = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
        low, high = (-127, 127) if bits == 8 else (-half, half - 1)
        return Decoded(bits + 0.5, (np.clip(np.rint(levels), low, high) * scale).reshape(values.shape))

    return coded


def int8_zstd(values: F32) -> Decoded:
    """Rows of 256 as int8 by their largest magnitude, then deflated by Zstandard at level 19."""
    rows = values.reshape(-1, 256)
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127
    codes = np.rint(rows / scale).astype(np.int8)
    size = len(Zstd(level=19).encode(codes.tobytes())) + 4 * len(rows)
    return Decoded(8 * size / values.size, (codes * scale).astype(np.float32).reshape(values.shape))


FORMATS: Mapping[str, Callable[[F32], Decoded]] = {
    "NF4, blocks of 64": nf4,
    "Q4_0": ggml(4),
    "Q5_0": ggml(5),
    "Q8_0": ggml(8),
    "int8 + zstd-19": int8_zstd,
}
