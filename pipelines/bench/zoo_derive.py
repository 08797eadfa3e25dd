"""What is done to a checkpoint without training it: derivations of a state dict, name to float32 array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
State = dict[str, F32]

# The 16 levels of NormalFloat4 (Dettmers et al., "QLoRA", 2023).
_NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32,
)  # fmt: skip
_MIDDLES = (_NF4[1:] + _NF4[:-1]) / 2


def pruned(state: State, share: float) -> State:
    """The smallest ``share`` of every matrix's values set to zero."""

    def one(value: F32) -> F32:
        border = np.quantile(np.abs(value).reshape(-1)[:: max(1, value.size // 200_000)], share)
        return np.where(np.abs(value) < border, np.float32(0), value)

    return _matrices(state, one)


def int8(state: State) -> State:
    """Rounded to 8 bits a value, one scale a row, and back."""

    def one(value: F32) -> F32:
        flat = value.reshape(len(value), -1)
        scale = np.maximum(np.abs(flat).max(1, keepdims=True), 1e-12) / 127
        return np.asarray(np.rint(flat / scale) * scale, np.float32).reshape(value.shape)

    return _matrices(state, one)


def nf4(state: State) -> State:
    """NormalFloat4 in blocks of 64, and back."""

    def one(block: F32) -> F32:
        top = np.maximum(np.abs(block).max(1, keepdims=True), 1e-12)
        return np.asarray(_NF4[np.searchsorted(_MIDDLES, block / top)] * top, np.float32)

    return _matrices(state, lambda value: _blocks(value, 64, one))


def q4_0(state: State) -> State:
    """GGUF's Q4_0, blocks of 32, and back."""

    def one(block: F32) -> F32:
        at = np.abs(block).argmax(1, keepdims=True)
        scale = (np.take_along_axis(block, at, 1) / -8).astype(np.float16).astype(np.float32)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        return np.asarray((np.clip(np.floor(block * inverse + 8.5), 0, 15) - 8) * scale, np.float32)

    return _matrices(state, lambda value: _blocks(value, 32, one))


def noised(state: State, share: float, seed: int = 0) -> State:
    """Gaussian noise of ``share`` of each matrix's deviation."""
    random = np.random.default_rng(seed)
    return _matrices(
        state, lambda v: v + random.standard_normal(v.shape, np.float32) * np.float32(share * float(v.std()))
    )


def mean_of(states: Iterable[State], weights: Iterable[float] | None = None) -> State:
    """Weighted mean of checkpoints of one architecture."""
    listed = list(states)
    shares = [1 / len(listed)] * len(listed) if weights is None else list(weights)
    return {
        name: np.asarray(sum(w * s[name] for w, s in zip(shares, listed, strict=True)), np.float32)
        for name in listed[0]
    }


def task_arithmetic(base: State, tuned: Iterable[State], scale: float) -> State:
    """The base and the sum of what each fine-tune added, scaled (Ilharco et al., 2023)."""
    listed = list(tuned)
    return {name: np.asarray(v + scale * sum(s[name] - v for s in listed), np.float32) for name, v in base.items()}


def without_layers(state: State, pattern: str, dropped: Iterable[int]) -> State:
    """Some layers left out and the others numbered anew; ``pattern`` has one group, the number."""
    gone = set(dropped)
    count = 1 + max(int(m.group(1)) for name in state if (m := re.search(pattern, name)))
    new = {old: at for at, old in enumerate(i for i in range(count) if i not in gone)}
    out: State = {}
    for name, value in state.items():
        found = re.search(pattern, name)
        if found is None:
            out[name] = value
        elif int(found.group(1)) in new:
            out[name[: found.start(1)] + str(new[int(found.group(1))]) + name[found.end(1) :]] = value
    return out


def _matrices(state: State, change: Callable[[F32], F32]) -> State:
    return {name: np.asarray(change(v), np.float32) if v.ndim > 1 else v for name, v in state.items()}


def _blocks(value: F32, size: int, change: Callable[[F32], F32]) -> F32:
    flat = value.reshape(-1)
    whole = flat.size // size * size
    out = flat.copy()
    out[:whole] = change(flat[:whole].reshape(-1, size)).reshape(-1)
    return out.reshape(value.shape)
