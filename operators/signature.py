"""The signature of a model: at most 64 KB, from which relatives of a checkpoint are told without reading it again.

Of every matrix it keeps the products of its probes (:mod:`operators.sketch`) as unit vectors of int8, a linear sketch
and the moments of its values. Two independent matrices have products whose cosine is noise about zero, of a deviation
of one over the root of their number; those of a fine-tuned, pruned, quantized or merged copy have nearly the parent's,
in whatever order its neurons come. The code is all products in one, for a first look at many thousand models.

What is compared and why: weights stay close to where they began, through fine-tuning and beyond (Zeng et al., "HuRef",
2024), and orthogonal maps are taken out as in centred kernel alignment (Zeng et al., "AWM", 2026); here by sketches of
fixed size, so that neither model is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from operators.sketch import ANCHORED, FIXED, Sums, centred, column_products, linear_sketch, row_products
from operators.sketch_sums import PROBES

I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]
Views = dict[int, npt.NDArray[np.float64]]
LARGEST = 64_000
"""Bytes of a stored signature."""
VIEWS = ("rows", "rows, anchored", "columns", "columns, anchored")
"""Along which axis neurons lie, and which probes look along the other."""
CODE = 2 * (PROBES * (PROBES - 1) // 2)
# Probes and numbers of the linear sketch, from what small models get to what deep ones do.
_SIZES = ((32, 512), (32, 256), (28, 256), (24, 256), (24, 128), (24, 64), (20, 64), (20, 32), (16, 32), (16, 16),
          (12, 16), (10, 16), (8, 8))  # fmt: skip
_FIXED_BYTES = 48  # of a tensor, about: name, shape, moments, compressed

# The last word of a tensor's name by what it does, as transformers, Llama's release, GPT-2, timm and GGUF spell it.
_ROLES: tuple[tuple[str, str], ...] = (
    ("query", r"query|q_proj|attn_q|wq|q_lin|self_attn\.q"), ("key", r"key|k_proj|attn_k|wk|k_lin"),
    ("value", r"value|v_proj|attn_v|wv|v_lin"), ("qkv", r"qkv|c_attn|query_key_value|in_proj_weight|attn_qkv"),
    ("attention out", r"attention\.output\.dense|o_proj|attn_output|wo|out_lin|out_proj|attn\.c_proj|attn\.proj"),
    ("gate", r"gate_proj|ffn_gate|w1"),
    ("up", r"intermediate\.dense|up_proj|ffn_up|w3|lin1|mlp\.c_fc|mlp\.fc1|fc1|linear1"),
    ("down", r"output\.dense|down_proj|ffn_down|w2|lin2|mlp\.c_proj|mlp\.fc2|fc2|linear2"),
    ("tokens", r"word_embeddings|embed_tokens|token_embd|wte|shared|tok_embeddings"),
    ("positions", r"position_embeddings|wpe|embed_positions|position_embd"),
    ("head", r"lm_head|output"),
)  # fmt: skip
_ROLE = tuple((role, re.compile(rf"(^|\.)({words})(\.weight)?$")) for role, words in _ROLES)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blk|blocks?|resblocks)\.(\d+)\.|(\d+)")


@dataclass(frozen=True)
class TensorSketch:
    """What is kept of one tensor.

    Parameters
    ----------
    name, kind: as archived.
    rows, columns: of the tensor as a matrix.
    moments: (7,) float32: mean, deviation, skewness, excess kurtosis, share of zeros, share of ties (values of the
        magnitude of the one before: quantized weights have them), largest magnitude.
    linear: (8 to 512,) float32; the mean square of the difference of two is that of the matrices, summed over values.
    views: by number of :data:`VIEWS`, products of the probes above the diagonal as int8, row after row.
    """

    name: str
    kind: str
    rows: int
    columns: int
    moments: F32
    linear: F32
    views: dict[int, I8]

    @cached_property
    def layer(self) -> int:
        """Number of its layer, −1 where its name tells none."""
        found = _LAYER.search(self.name)
        return -1 if found is None else int(found.group(1) or found.group(2))

    @cached_property
    def role(self) -> str:
        """What it does in its layer, however its checkpoint spells that."""
        return role_of(self.name)

    @property
    def size(self) -> int:
        """Number of its values."""
        return self.rows * self.columns

    @property
    def energy(self) -> float:
        """Sum of the squares of its values."""
        mean, deviation = float(self.moments[0]), float(self.moments[1])
        return self.size * (mean * mean + deviation * deviation)


@dataclass(frozen=True)
class Signature:
    """Of one model.

    Parameters
    ----------
    tensors: its matrices.
    code: (992,) int8: products of all matrices at once, by fixed probes and by anchored ones.
    parameters: values of all its tensors, also of those that have no sketch.
    """

    tensors: tuple[TensorSketch, ...]
    code: I8
    parameters: int = 0

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Numbers of its layers, ascending."""
        return tuple(sorted({tensor.layer for tensor in self.tensors} - {-1}))


@dataclass
class Collector:
    """Gathers the sums of a model's tensors, in any order, into its signature.

    A tensor whose values are all there is reduced to its products at once: the sums of its columns are a hundred times
    as large, and memory would grow with the model.
    """

    parameters: int = 0
    _found: dict[str, tuple[str, Sums]] = field(default_factory=dict)
    _whole: dict[str, tuple[TensorSketch, Views] | None] = field(default_factory=dict)

    def add(self, name: str, kind: str, part: Sums) -> None:
        """Sums over some of a tensor's values, each value once."""
        if not part.moments[0]:
            return
        if name in self._found:
            self._found[name][1].add(part)
        else:
            self._found[name] = kind, part
        kind, found = self._found[name]
        if found.moments[0] >= found.matrix.seen * found.matrix.columns:
            self._whole[name] = _reduced(name, kind, found)
            del self._found[name]

    def finish(self) -> Signature:
        """The signature; of very deep models only every second, fourth, … layer is kept."""
        left = {name: _reduced(name, kind, found) for name, (kind, found) in self._found.items()}
        whole = [reduced for _, reduced in sorted((self._whole | left).items()) if reduced is not None]
        code = np.zeros((2, CODE // 2))
        for tensor, views in whole:
            for view, products in views.items():
                if products.shape[0] == PROBES:
                    code[view % 2] += _unit(_above(products)) * _mask(f"{tensor.role} {view // 2}")
        chosen, probes, numbers = _budget([(t, len(v)) for t, v in whole])
        kept = tuple(
            TensorSketch(
                t.name, t.kind, t.rows, t.columns, t.moments, t.linear[:numbers],
                {view: small(_above(products[:probes, :probes])) for view, products in views.items()},
            )
            for (t, views), keep in zip(whole, chosen, strict=True) if keep
        )  # fmt: skip
        return Signature(kept, np.concatenate([small(half) for half in code]), self.parameters)


def _reduced(name: str, kind: str, found: Sums) -> tuple[TensorSketch, Views] | None:
    """What the signature takes of a tensor, its products not yet rounded; None where all values are zero."""
    found.close()
    if not found.moments[2] > 0:
        return None
    matrix = found.matrix
    linear = (linear_sketch(found) * np.sqrt(matrix.rows / matrix.seen)).astype(np.float32)
    return TensorSketch(name, kind, matrix.rows, matrix.columns, _moments(found), linear, {}), _views(found)


def role_of(name: str) -> str:
    """What a tensor does in its layer: ``query``, ``up``, …, or its name without numbers where that is not known."""
    stem = next((role for role, pattern in _ROLE if pattern.search(name)), "")
    side = "decoder " if "decoder" in name and "encoder" in name else ""
    return side + stem if stem else re.sub(r"\d+", "#", name)


def small(vector: npt.NDArray[np.float64]) -> I8:
    """A vector's direction as int8."""
    top = float(np.abs(vector).max(initial=0.0))
    return np.rint(vector * (127 / top)).astype(np.int8) if top > 0 else np.zeros(vector.shape, np.int8)


def _views(found: Sums) -> Views:
    """Centred products of the probes by view."""
    matrix, out = found.matrix, {}
    whole = float(matrix.seen)
    if matrix.along_rows:
        out[FIXED] = centred(row_products(found, FIXED), whole, matrix.columns, FIXED)
        if matrix.anchored_rows:
            out[ANCHORED] = row_products(found, ANCHORED)
    if matrix.along_columns:
        products, count = column_products(found, FIXED)
        out[2 + FIXED] = centred(products, count, matrix.rows, FIXED)
        if matrix.anchored_columns:
            out[2 + ANCHORED] = column_products(found, ANCHORED)[0]
    return {view: products for view, products in out.items() if _above(products).any()}


def _above(products: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entries above the diagonal; those of fewer probes are a prefix of those of more."""
    rows, columns = np.tril_indices(products.shape[0], -1)
    return np.asarray(products[rows, columns], np.float64)


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vector / max(float(np.sqrt(np.square(vector).sum())), 1e-300), np.float64)


def _mask(role: str) -> npt.NDArray[np.float64]:
    """Signs for what is summed into the code, so that tensors of different roles do not add up."""
    seed = np.frombuffer(role.encode().ljust(4, b"\0"), np.uint8).astype(np.uint32)
    return np.asarray(np.random.default_rng(seed).integers(0, 2, CODE // 2) * 2.0 - 1.0, np.float64)


def _moments(found: Sums) -> F32:
    count, s1, s2, s3, s4, zeros, ties, largest = found.moments
    mean = s1 / count
    variance = max(s2 / count - mean * mean, 1e-300)
    third = s3 / count - 3 * mean * s2 / count + 2 * mean**3
    fourth = s4 / count - 4 * mean * s3 / count + 6 * mean * mean * s2 / count - 3 * mean**4
    shape = third / variance**1.5, fourth / variance**2 - 3
    return np.array([mean, variance**0.5, *shape, zeros / count, ties / count, largest], np.float32)


def _budget(tensors: Iterable[tuple[TensorSketch, int]]) -> tuple[list[bool], int, int]:
    """Which tensors are kept, with how many probes and numbers of the linear sketch, so that all fit."""
    listed = list(tensors)
    deepest = max((tensor.layer for tensor, _ in listed), default=-1)
    stride = 1
    while True:
        chosen = [t.layer < 0 or t.layer % stride == 0 or t.layer == deepest for t, _ in listed]
        views = [count for (_, count), keep in zip(listed, chosen, strict=True) if keep]
        for probes, linear in _SIZES:
            entries = probes * (probes - 1) // 2
            if sum(_FIXED_BYTES + 4 * linear + entries * count for count in views) <= LARGEST - CODE - 4000:
                return chosen, probes, linear
        if stride > deepest:
            return chosen, 8, 8
        stride *= 2
