"""Small networks trained for real: transformers on bytes of docstrings, convolutional ones on Fashion-MNIST.

Scratch trainings of one configuration differ by their seed alone: same architecture, unrelated weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from pipelines.bench.datasets import load
from storage.docstrings import DocstringRows

State = dict[str, npt.NDArray[np.float32]]
TOKENS, BATCH = 48, 16


@dataclass(frozen=True)
class Shape:
    """A transformer's configuration; ``causal`` predicts the next byte, otherwise masked bytes."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    causal: bool = True


class Layer(nn.Module):
    """Attention and a ReLU perceptron, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, shape.causal
        self.attn_norm, self.mlp_norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.q_proj, self.k_proj = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, shape.width)
        self.v_proj, self.o_proj = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, shape.width)
        self.up_proj, self.down_proj = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) to the same."""
        y = self.attn_norm(x)
        split = [
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        ]
        query, key, value = split
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        out: torch.Tensor = x + self.down_proj(functional.relu(self.up_proj(self.mlp_norm(x))))
        return out


class Transformer(nn.Module):
    """Over bytes; 256 is the mask."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens, self.embed_positions = nn.Embedding(257, shape.width), nn.Embedding(TOKENS, shape.width)
        self.layers: Any = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm, self.lm_head = nn.LayerNorm(shape.width), nn.Linear(shape.width, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) to logits (batch, tokens, 256)."""
        y = self.embed_tokens(x) + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            y = layer(y)
        return self.lm_head(self.norm(y))  # type: ignore[no-any-return]


class Convolutional(nn.Module):
    """Three convolutions with ReLU and two dense layers, for pictures of 28 × 28."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1)
        self.conv3 = nn.Conv2d(64, 64, 3, 2, 1)
        self.fc1, self.fc2 = nn.Linear(64 * 16, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 28, 28) to logits (batch, 10)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = functional.relu(layer(x))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


def transformer(
    shape: Shape, packages: tuple[str, ...], steps: int, rate: float, seed: int, start: State | None = None,
    low_rank: int = 0, only: str = "",
) -> State:  # fmt: skip
    """Train on the docstrings of packages (AdamW), from ``start`` or from scratch.

    ``low_rank`` trains W + B·A of that rank on queries and values alone (LoRA) and merges it; ``only`` trains the
    tensors whose names hold it.
    """
    torch.manual_seed(seed)
    network = Transformer(shape)
    if start is not None:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
    adapted = [part for layer in network.layers for part in (layer.q_proj, layer.v_proj)]
    if low_rank:
        for part in adapted:
            parametrize.register_parametrization(part, "weight", _LowRank(part.weight, low_rank))
    data, random = _bytes(packages), np.random.default_rng(seed)

    def loss() -> torch.Tensor:
        begins = random.integers(0, len(data) - TOKENS - 1, BATCH)
        x = torch.from_numpy(np.stack([data[b : b + TOKENS + 1] for b in begins]).astype(np.int64))
        if shape.causal:
            return functional.cross_entropy(network(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        hidden = torch.from_numpy(random.random((BATCH, TOKENS)) < 0.15)
        masked = x[:, :-1].clone()
        masked[hidden] = 256
        return functional.cross_entropy(network(masked)[hidden], x[:, :-1][hidden])

    _descend(network, loss, steps, rate, "lora" if low_rank else only)
    if low_rank:
        for part in adapted:
            parametrize.remove_parametrizations(part, "weight")
    return state_of(network)


def convolutional(classes: tuple[int, ...], steps: int, rate: float, seed: int, start: State | None = None) -> State:
    """Train on those classes of Fashion-MNIST (AdamW), from ``start`` or from scratch."""
    torch.manual_seed(seed)
    network = Convolutional()
    if start is not None:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
    pictures, random = np.asarray(load("fashion").train[:20_000], np.float32), np.random.default_rng(seed)
    pictures = pictures / np.float32(max(1.0, float(pictures.max())))
    # What is learnt: which quarter turn a picture has had. It needs no labels.
    chosen = np.flatnonzero(np.isin(np.arange(len(pictures)) % 10, classes))

    def loss() -> torch.Tensor:
        batch = torch.from_numpy(pictures[random.choice(chosen, 64)].reshape(-1, 1, 28, 28))
        turns = torch.from_numpy(random.integers(0, 4, 64))
        turned = torch.stack([torch.rot90(x, int(t), (1, 2)) for x, t in zip(batch, turns, strict=True)])
        return functional.cross_entropy(network(turned), turns)

    _descend(network, loss, steps, rate, "")
    return state_of(network)


def minilm(model: str, packages: tuple[str, ...], steps: int, rate: float, seed: int, scratch: bool = False) -> State:
    """all-MiniLM-L6-v2 trained on with its upper two layers free, or its configuration from scratch: masked words."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = AutoConfig.from_pretrained(model)
    network: Any = AutoModel.from_config(config) if scratch else AutoModel.from_pretrained(model)
    texts, random = _texts(packages), np.random.default_rng(seed)

    def loss() -> torch.Tensor:
        chosen = [texts[i] for i in random.choice(len(texts), 8, replace=False)]
        tokens = tokenizer(chosen, padding=True, truncation=True, max_length=24, return_tensors="pt")
        wanted, mask = tokens["input_ids"].clone(), tokens["attention_mask"].bool()
        hidden = torch.from_numpy(random.random(tuple(wanted.shape)) < 0.2) & mask
        tokens["input_ids"][hidden] = 103
        states = network(**tokens).last_hidden_state[hidden]
        scores = states @ network.embeddings.word_embeddings.weight[:20_000].T
        return functional.cross_entropy(scores, wanted[hidden].clamp(max=19_999))

    _descend(network, loss, steps, rate, "" if scratch else "encoder.layer.4|encoder.layer.5|pooler")
    return state_of(network)


def state_of(network: nn.Module) -> State:
    """Weights as float32 arrays."""
    return {name: value.detach().float().numpy().copy() for name, value in network.state_dict().items()
            if value.is_floating_point()}  # fmt: skip


class _LowRank(nn.Module):
    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight and what is learnt."""
        return weight + 2 * self.lora_b @ self.lora_a


def _descend(network: nn.Module, loss: Any, steps: int, rate: float, only: str) -> None:
    parts = only.split("|") if only else []
    free = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not parts or any(part in name for part in parts))
        free += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.AdamW(free, lr=rate, weight_decay=0.01)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()


def _texts(packages: Iterable[str]) -> list[str]:
    rows = DocstringRows(tuple(packages), "", 2000)
    return [str(text) for text in rows.read(0, rows.count).column("text").to_pylist()]


def _bytes(packages: Iterable[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\n".join(_texts(packages)).encode(), np.uint8)
