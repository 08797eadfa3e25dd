"""What the catalog tells of a model beyond its manifest, from the archive alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from math import prod
from typing import Any

from storage import signatures
from storage.model import ModelArchive

VERSION = 2
"""Of these columns; rows of an earlier one are made again."""
_HYPER = ("size", "num_", "n_", "hidden", "dim", "layers", "heads", "act", "dropout", "max_position", "rope", "eps")


def model_row(handle: ModelArchive) -> dict[str, Any]:
    """Architecture and hyper-parameters of config.json, values by kind, dtypes, parent, code of the signature."""
    config, kinds = handle.attributes.get("config") or {}, dict[str, int]()
    for tensor in handle.layout.placements:
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + prod(tensor.shape)
    told = {
        "version": VERSION, "architecture": architecture(config), "hyper": hyper_parameters(config),
        "tensors": len(handle), "parameters": sum(kinds.values()), "kinds": dict(sorted(kinds.items())),
        "dtypes": sorted({tensor.dtype for tensor in handle.layout.placements}),
        "parent": "" if handle.link is None else handle.link.url.rsplit("/", 1)[-1],
    }  # fmt: skip
    signature = signatures.kept(handle)
    if signature is not None:
        told["code"] = base64.b64encode(signature.code.tobytes()).decode()
    return told


def architecture(config: Mapping[str, Any]) -> str:
    """The first class that config.json names, else its model_type, else nothing."""
    named = config.get("architectures")
    return str(named[0] if isinstance(named, list) and named else config.get("model_type", ""))


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Entries of config.json that say how large a model is, and of what parts."""
    return {
        key: value for key, value in sorted(config.items())
        if isinstance(value, int | float | str) and not key.endswith("_id") and any(word in key for word in _HYPER)
    }  # fmt: skip
