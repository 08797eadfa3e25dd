"""A small model for the tests, archived by the real operators and writer in this process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from pipelines.bench.local import archive_with
from pipelines.recipe import Recipe

Arrays = dict[str, npt.NDArray[np.generic]]


def small_tensors() -> Arrays:
    """A large tensor, a half-precision one, a small one with a slash in its name, integers, a scalar."""
    random = np.random.default_rng(5)
    return {
        "layer.0.weight": random.standard_normal((300, 128)).astype(np.float32),
        "layer.1.weight": (random.standard_normal((200, 64)) / 7).astype(np.float16),
        "blocks/0/bias": random.standard_normal(64).astype(np.float32),
        "positions": np.arange(12, dtype=np.int64).reshape(4, 3),
        "scale": np.array(0.5, np.float32),
    }


def archived_model(root: Path) -> str:
    """Archive `small_tensors` under `root`; its URL."""
    return _archived(root, "small", small_tensors())


def archived_child(root: Path, name: str, parent: str, step: int) -> str:
    """Archive what `small_tensors` are after some steps of training, as differences to `parent`; its URL."""
    random, moved = np.random.default_rng(step), small_tensors()
    for key in ("layer.0.weight", "layer.1.weight"):
        way = 0.001 * step * random.standard_normal(moved[key].shape)
        moved[key] = (moved[key].astype(np.float32) + way).astype(moved[key].dtype)
    return _archived(root, name, moved, parent)


def _archived(root: Path, name: str, tensors: Arrays, parent: str = "") -> str:
    save_file(tensors, root / f"{name}.safetensors")
    body = {
        "name": name,
        "source": {"kind": "checkpoint", "path": str(root / f"{name}.safetensors")},
        "operators": [
            {"kind": "hilbert_map", "side": 64}, {"kind": "quantize", "method": "uniform", "sqnr_db": 20},
            {"kind": "layerize"}, {"kind": "frame_encode", "coder": "rans"},
        ],
        "sink": {"path": str(root / "archives"), "name": name},
    } | ({"parent": parent} if parent else {})  # fmt: skip
    return archive_with(Recipe.model_validate_json(json.dumps(body))).url
