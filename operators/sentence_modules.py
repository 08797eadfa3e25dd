"""What a sentence-transformers directory says of its model: how token vectors become one vector, and what comes after.

``modules.json`` lists the modules in order, each with a folder of its own: the transformer, a pooling, perhaps dense
layers, perhaps a normalisation. https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.errors import HilbertflowError

if TYPE_CHECKING:
    import torch

# In the order in which sentence-transformers joins them when a model names several.
_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_KEYS = {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling: its folder, its width, the activation's name."""

    folder: Path
    out: int
    activation: str


@dataclass(frozen=True)
class Modules:
    """The modules of a directory.

    Parameters
    ----------
    transformer: folder of the transformer and its tokenizer.
    pooling: modes, whose vectors are joined end to end.
    dense: linear layers, in order.
    normalize: whether vectors are scaled to unit length.
    max_tokens: the limit that the directory sets; 0 where it sets none.
    lower: texts are put in lower case first.
    prompt: what every text begins with.
    """

    transformer: Path
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    max_tokens: int = 0
    lower: bool = False
    prompt: str = ""


def read_modules(directory: Path) -> Modules:
    """Read what the directory says; without ``modules.json``, the mean of the token vectors, at unit length.

    Raises `HilbertflowError` for a module or a mode that is not known here: its vectors would not be the model's.
    """
    listed = _json(directory / "modules.json", [])
    limits = _json(directory / "sentence_bert_config.json", {})
    if not listed:
        return Modules(directory, max_tokens=int(limits.get("max_seq_length") or 0))
    transformer, normalize = directory, False
    pooling: tuple[str, ...] = ("mean",)
    dense: list[Dense] = []
    for module in listed:
        kind, folder = str(module.get("type", "")).rpartition(".")[2], directory / str(module.get("path", ""))
        if kind == "Transformer":
            transformer = folder
            limits = _json(folder / "sentence_bert_config.json", limits)
        elif kind == "Pooling":
            pooling = _pooling(_json(folder / "config.json", {}), folder)
        elif kind == "Dense":
            dense.append(_dense(folder))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Dropout":  # which does nothing once a model is trained
            raise HilbertflowError(f"its module {kind} is not known here", where=str(directory / "modules.json"))
    told = _json(directory / "config_sentence_transformers.json", {})
    prompt = (told.get("prompts") or {}).get(told.get("default_prompt_name") or "", "")
    return Modules(
        transformer, pooling, tuple(dense), normalize, int(limits.get("max_seq_length") or 0),
        bool(limits.get("do_lower_case")), str(prompt),
    )  # fmt: skip


def pooled(hidden: torch.Tensor, mask: torch.Tensor, modes: tuple[str, ...]) -> torch.Tensor:
    """Token vectors (n, tokens, width) and their mask (n, tokens) to (n, modes · width)."""
    import torch

    wide = mask.unsqueeze(-1).to(hidden.dtype)
    count = wide.sum(1).clamp(min=1)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(hidden[:, 0])
        elif mode == "max":
            parts.append(hidden.masked_fill(wide == 0, -1e9).max(1).values)
        elif mode == "mean":
            parts.append((hidden * wide).sum(1) / count)
        elif mode == "mean_sqrt_len_tokens":
            parts.append((hidden * wide).sum(1) / count.sqrt())
        elif mode == "weightedmean":
            weights = wide * torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)[:, None]
            parts.append((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))
        else:
            last = hidden.shape[1] - 1 - mask.flip(1).long().argmax(1)  # padding may lie on either side
            parts.append(hidden[torch.arange(len(hidden), device=hidden.device), last])
    return torch.cat(parts, 1)


def load_dense(layer: Dense) -> torch.nn.Module:
    """The layer with its weights."""
    import torch
    from safetensors.torch import load_file

    try:
        weights = load_file(layer.folder / "model.safetensors")
        out, width = weights["linear.weight"].shape
        linear = torch.nn.Linear(width, out, bias="linear.bias" in weights)
        linear.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise HilbertflowError(
            f"the dense layer does not load ({type(error).__name__})", where=str(layer.folder),
            remedy="it must hold model.safetensors",
        ) from error  # fmt: skip
    return torch.nn.Sequential(linear, getattr(torch.nn, layer.activation)())


def _pooling(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        modes = tuple(named) if isinstance(named, list) else (str(named),)
    else:
        modes = tuple(mode for mode in _MODES if config.get(_KEYS[mode])) or ("mean",)
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise HilbertflowError(f"its pooling {unknown[0]!r} is not known here", where=str(folder / "config.json"))
    return modes


def _dense(folder: Path) -> Dense:
    config = _json(folder / "config.json", {})
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS or not isinstance(config.get("out_features"), int):
        raise HilbertflowError(f"its activation {activation!r} is not known here", where=str(folder / "config.json"))
    return Dense(folder, config["out_features"], activation)


def _json(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        loaded = json.loads(path.read_text())
    except ValueError as error:
        raise HilbertflowError("is not JSON", where=str(path), remedy="copy the model again") from error
    return loaded if isinstance(loaded, type(otherwise)) else otherwise
