"""How alike two models are by their signatures: tensor by tensor, layers aligned, in any order of their neurons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.signature import Signature, TensorSketch

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A tensor and its counterpart in the other model.

    Parameters
    ----------
    score: cosine of their products, −1 … 1.
    change: length of the difference over that of the first, by the linear sketches; None where shapes differ. Near
        1.4 for matrices of one size that have nothing to do with each other, or whose neurons come in another order.
    """

    first: TensorSketch
    second: TensorSketch
    score: float
    change: float | None


@dataclass(frozen=True)
class Relation:
    """Of two models.

    Parameters
    ----------
    score: mean score of the pairs over the tensors of the model that has fewer; about 0 for unrelated models.
    pairs: tensors that were compared.
    anchored: whether the probes that turn with the residual stream gave the higher score.
    """

    score: float
    pairs: tuple[Pair, ...]
    anchored: bool

    @property
    def distance(self) -> float:
        """Length of the difference of all paired tensors over that of the first's, as the linear sketches tell it."""
        told = [(p.change, p.first.energy) for p in self.pairs if p.change is not None]
        whole = sum(energy for _, energy in told)
        return float(np.sqrt(sum(c * c * e for c, e in told) / whole)) if whole > 0 else float("inf")

    @property
    def layers(self) -> int:
        """Layers of the first that have a counterpart of score 0.5 or more."""
        by_layer: dict[int, list[float]] = defaultdict(list)
        for pair in self.pairs:
            if pair.first.layer >= 0:
                by_layer[pair.first.layer].append(pair.score)
        return sum(float(np.mean(scores)) >= 0.5 for scores in by_layer.values())

    def by_kind(self) -> dict[str, float]:
        """Mean score of each kind of tensor."""
        scores: dict[str, list[float]] = defaultdict(list)
        for pair in self.pairs:
            scores[pair.first.kind].append(pair.score)
        return {kind: float(np.mean(values)) for kind, values in sorted(scores.items())}


def relate(first: Signature, second: Signature) -> Relation:
    """Compare two models; milliseconds. The measure is symmetric but for which tensors are called first."""
    least = max(1, min(len(first.tensors), len(second.tensors)))
    best = Relation(0.0, (), False)
    for basis in (0, 1):
        pairs = _pairs(first, second, basis)
        score = sum(pair.score for pair in pairs) / least
        if basis == 0 or score > best.score:
            best = Relation(score, tuple(pairs), basis == 1)
    return best


def difference(first: Signature, second: Signature) -> float:
    """Length of the difference over that of the first, by the linear sketches of tensors of one name and shape.

    Infinite without any. Neurons as they lie, layers as they are numbered.
    """
    twins = {tensor.name: tensor for tensor in second.tensors}
    told = [(_change(own, twins[own.name]), own.energy) for own in first.tensors if own.name in twins]
    known = [(change, energy) for change, energy in told if change is not None]
    whole = sum(energy for _, energy in known)
    return float(np.sqrt(sum(c * c * e for c, e in known) / whole)) if whole > 0 else float("inf")


def code_score(code: npt.NDArray[np.int8], others: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Cosines of codes (n, 992) to one: the higher of the fixed and the anchored half."""
    own, theirs = code.astype(np.float32).reshape(2, -1), others.astype(np.float32).reshape(len(others), 2, -1)
    dots = np.einsum("bk,nbk->nb", own, theirs)
    lengths = np.sqrt(np.square(own).sum(-1) * np.square(theirs).sum(-1))
    return np.asarray((dots / np.maximum(lengths, 1e-9)).max(axis=1), np.float32)


def _pairs(first: Signature, second: Signature, basis: int) -> list[Pair]:
    """Tensors outside layers by their role; layers aligned in order, so that their scores add up to the most."""
    ours, theirs = _by_place(first, basis), _by_place(second, basis)
    pairs: list[Pair] = []
    for role, tensor in ours.pop(-1, {}).items():
        other = theirs.get(-1, {}).get(role)
        if other is not None:
            pairs.append(_pair(tensor, other))
    theirs.pop(-1, None)
    left, right = sorted(ours), sorted(theirs)
    scores = _layer_scores([ours[i] for i in left], [theirs[i] for i in right])
    for i, j in _aligned(scores):
        mine, yours = ours[left[i]], theirs[right[j]]
        pairs += [_pair(mine[role], yours[role]) for role in mine if role in yours]
    return pairs


@dataclass(frozen=True)
class _Seen:
    """A tensor with its unit vectors by axis of its neurons."""

    tensor: TensorSketch
    units: dict[int, F64]
    lengths: dict[int, int]


def _by_place(signature: Signature, basis: int) -> dict[int, dict[str, _Seen]]:
    """By layer and role; views of one basis."""
    found: dict[int, dict[str, _Seen]] = defaultdict(dict)
    for tensor in signature.tensors:
        units = {}
        for view, products in tensor.views.items():
            if view % 2 == basis:
                units[view // 2] = products.astype(np.float64)
        if not units and basis == 1:  # no residual stream: the fixed probes speak for it
            units = {view // 2: products.astype(np.float64) for view, products in tensor.views.items()}
        role, place = tensor.role, found[tensor.layer]
        while role in place:
            role += "'"
        place[role] = _Seen(tensor, units, {0: tensor.columns, 1: tensor.rows})
    return dict(found)


def _cosine(first: _Seen, second: _Seen) -> float:
    best = None
    for axis, own in first.units.items():
        other = second.units.get(axis)
        if other is None or first.lengths[axis] != second.lengths[axis]:
            continue
        count = min(own.size, other.size)
        a, b = own[:count], other[:count]
        length = float(np.sqrt((a @ a) * (b @ b)))
        score = float(a @ b) / length if length > 0 else 0.0
        best = score if best is None or score > best else best
    return 0.0 if best is None else best


def _pair(first: _Seen, second: _Seen) -> Pair:
    a, b = first.tensor, second.tensor
    return Pair(a, b, _cosine(first, second), _change(a, b))


def _change(first: TensorSketch, second: TensorSketch) -> float | None:
    """Length of the difference over that of the first; None for other shapes."""
    if (first.rows, first.columns) != (second.rows, second.columns):
        return None
    count = min(first.linear.size, second.linear.size)
    apart = first.linear[:count].astype(np.float64) - second.linear[:count]
    return float(np.sqrt(np.square(apart).mean() / max(first.energy, 1e-300)))


def _layer_scores(left: Sequence[dict[str, _Seen]], right: Sequence[dict[str, _Seen]]) -> F64:
    scores = np.zeros((len(left), len(right)))
    for i, mine in enumerate(left):
        for j, yours in enumerate(right):
            shared = [role for role in mine if role in yours]
            scores[i, j] = sum(_cosine(mine[role], yours[role]) for role in shared)
    return scores


def _aligned(scores: F64) -> list[tuple[int, int]]:
    """Pairs of layers in ascending order on both sides with the largest sum (Needleman and Wunsch, 1970, free gaps)."""
    rows, columns = scores.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows):
        for j in range(columns):
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + scores[i, j])
    pairs, i, j = [], rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
