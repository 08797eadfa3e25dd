"""Which axes of which tensors belong to the same neurons: what permuting or rescaling leaves the function alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

State = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor: ``block`` values are a neuron; ``copies`` runs of neurons come in a row (gates)."""

    tensor: str
    axis: int
    block: int = 1
    copies: int = 1


@dataclass(frozen=True)
class Places:
    """Of one architecture.

    Parameters
    ----------
    groups: how many neurons, and the axes that must be permuted alike.
    residual: those of the residual stream, or none.
    scaled: pairs of (axes multiplied, axes divided) by the same positive factors.
    """

    groups: tuple[tuple[int, tuple[Axis, ...]], ...]
    scaled: tuple[tuple[int, tuple[Axis, ...], tuple[Axis, ...]], ...]
    residual: tuple[Axis, ...] = ()
    width: int = 0

    def permuted(self, state: State, seed: int, residual: bool = False) -> State:
        """Neurons of every layer in another order, with ``residual`` the dimensions of the residual stream as well."""
        random, out = np.random.default_rng(seed), dict(state)
        for count, axes in (*self.groups, *([(self.width, self.residual)] if residual else [])):
            order = random.permutation(count)
            for place in axes:
                _take(out, place, order)
        return out

    def rescaled(self, state: State, seed: int) -> State:
        """Positive factors from 1/2 to 2 that cancel between a layer and the next."""
        random, out = np.random.default_rng(seed), dict(state)
        for count, multiplied, divided in self.scaled:
            factors = np.exp2(random.uniform(-1, 1, count)).astype(np.float32)
            for axes, by in ((multiplied, factors), (divided, 1 / factors)):
                for place in axes:
                    shape = [-1 if i == place.axis else 1 for i in range(out[place.tensor].ndim)]
                    out[place.tensor] = np.asarray(out[place.tensor] * by.reshape(shape), np.float32)
        return out


def _take(state: State, place: Axis, order: npt.NDArray[np.int64]) -> None:
    length = len(order) * place.block
    inner = (order[:, None] * place.block + np.arange(place.block)).reshape(-1)
    whole = np.concatenate([inner + copy * length for copy in range(place.copies)])
    state[place.tensor] = np.ascontiguousarray(np.take(state[place.tensor], whole, place.axis))


def transformer(layers: int, width: int, heads: int, hidden: int) -> Places:
    """`zoo_train.Transformer`."""
    groups, scaled, stream = [], [], ["embed_tokens.weight|1", "embed_positions.weight|1", "norm.weight|0",
                                      "norm.bias|0", "lm_head.weight|1"]  # fmt: skip
    for i in range(layers):
        at = f"layers.{i}."
        up = axes(f"{at}up_proj.weight|0", f"{at}up_proj.bias|0")
        down = axes(f"{at}down_proj.weight|1")
        groups.append((hidden, up + down))
        scaled.append((hidden, up, down))
        inner = [f"{at}{name}_proj.{part}|0" for name in "qkv" for part in ("weight", "bias")]
        groups.append((heads, axes(*inner, f"{at}o_proj.weight|1", block=width // heads)))
        scaled.append(
            (width, axes(f"{at}v_proj.weight|0", f"{at}v_proj.bias|0"), axes(f"{at}o_proj.weight|1"))
        )  # fmt: skip
        stream += [f"{at}{name}.{part}|0" for name in ("attn_norm", "mlp_norm") for part in ("weight", "bias")]
        stream += [f"{at}{name}_proj.weight|1" for name in ("q", "k", "v", "up")]
        stream += [f"{at}{name}_proj.{part}|0" for name in ("o", "down") for part in ("weight", "bias")]
    return Places(tuple(groups), tuple(scaled), axes(*stream), width)


def minilm() -> Places:
    """BERT of 6 layers, width 384: its GELU is not homogeneous, so values and keys are what is rescaled."""
    groups, scaled, width = [], [], 384
    stream = [f"embeddings.{name}_embeddings.weight|1" for name in ("word", "position", "token_type")]
    stream += ["embeddings.LayerNorm.weight|0", "embeddings.LayerNorm.bias|0", "pooler.dense.weight|1"]
    for i in range(6):
        at = f"encoder.layer.{i}."
        own = f"{at}attention.self."
        groups.append((1536, axes(f"{at}intermediate.dense.weight|0", f"{at}intermediate.dense.bias|0",
                                     f"{at}output.dense.weight|1")))  # fmt: skip
        inner = [f"{own}{name}.{part}|0" for name in ("query", "key", "value") for part in ("weight", "bias")]
        groups.append((12, axes(*inner, f"{at}attention.output.dense.weight|1", block=32)))
        scaled.append((width, axes(f"{own}value.weight|0", f"{own}value.bias|0"),
                       axes(f"{at}attention.output.dense.weight|1")))  # fmt: skip
        scaled.append((width, axes(f"{own}query.weight|0", f"{own}query.bias|0"),
                       axes(f"{own}key.weight|0", f"{own}key.bias|0")))  # fmt: skip
        stream += [f"{own}{name}.weight|1" for name in ("query", "key", "value")]
        stream.append(f"{at}intermediate.dense.weight|1")
        for name in ("attention.output", "output"):
            stream += [f"{at}{name}.dense.weight|0", f"{at}{name}.dense.bias|0"]
            stream += [f"{at}{name}.LayerNorm.weight|0", f"{at}{name}.LayerNorm.bias|0"]
    return Places(tuple(groups), tuple(scaled), axes(*stream), width)


def smollm() -> Places:
    """Llama of 30 layers, width 576, 3 groups of 3 heads of 64, hidden 1536: a gated perceptron is linear in ``up``."""
    groups, scaled, width = [], [], 576
    stream = ["token_embd.weight|1", "output_norm.weight|0"]
    for i in range(30):
        at = f"blk.{i}."
        up, gate, down = axes(f"{at}ffn_up.weight|0"), axes(f"{at}ffn_gate.weight|0"), axes(f"{at}ffn_down.weight|1")
        groups.append((1536, up + gate + down))
        scaled.append((1536, up, down))
        groups.append((3, axes(f"{at}attn_q.weight|0", f"{at}attn_output.weight|1", block=192)
                       + axes(f"{at}attn_k.weight|0", f"{at}attn_v.weight|0", block=64)))  # fmt: skip
        scaled.append((width, axes(f"{at}attn_norm.weight|0"),
                       axes(f"{at}attn_q.weight|1", f"{at}attn_k.weight|1", f"{at}attn_v.weight|1")))  # fmt: skip
        stream += [f"{at}attn_norm.weight|0", f"{at}ffn_norm.weight|0"]
        stream += [f"{at}{name}.weight|1" for name in ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_gate")]
        stream += [f"{at}{name}.weight|0" for name in ("attn_output", "ffn_down")]
    return Places(tuple(groups), tuple(scaled), axes(*stream), width)


def crepe(channels: int) -> Places:
    """Six convolutions, each with a norm; the last one's channels are flattened into the classifier and stay."""
    counts = [channels, channels // 8, channels // 8, channels // 8, channels // 4]
    groups, scaled = [], []
    for i, count in enumerate(counts, 1):
        norm = [f"conv{i}_BN.{part}|0" for part in ("weight", "bias", "running_mean", "running_var")]
        own = [f"conv{i}.weight|0", f"conv{i}.bias|0"]
        groups.append((count, axes(*own, *norm, f"conv{i + 1}.weight|1")))
        scaled.append((count, axes(*norm[:2]), axes(f"conv{i + 1}.weight|1")))
    return Places(tuple(groups), tuple(scaled))


def convolutions() -> Places:
    """`zoo_train.Convolutional`."""
    groups, scaled = [], []
    for first, second, count in (("conv1", "conv2", 32), ("conv2", "conv3", 64), ("fc1", "fc2", 128)):
        own, after = axes(f"{first}.weight|0", f"{first}.bias|0"), axes(f"{second}.weight|1")
        groups.append((count, own + after))
        scaled.append((count, own, after))
    return Places(tuple(groups), tuple(scaled))


def lstm() -> Places:
    """Three layers of 256 cells, four gates each; nothing but the last layer's output can be rescaled."""
    groups = []
    for i in range(3):
        own = [Axis(f"lstm.{name}_{side}_l{i}", 0, copies=4) for name in ("weight", "bias") for side in ("ih", "hh")]
        after = f"lstm.weight_ih_l{i + 1}|1" if i < 2 else "linear.weight|1"
        groups.append((256, (*own, *axes(f"lstm.weight_hh_l{i}|1", after))))
    return Places(tuple(groups), ((256, axes("linear.weight|0", "linear.bias|0"), ()),))


def axes(*said: str, block: int = 1) -> tuple[Axis, ...]:
    """``NAME|AXIS`` each."""
    return tuple(Axis(text.rsplit("|", 1)[0], int(text.rsplit("|", 1)[1]), block) for text in said)
