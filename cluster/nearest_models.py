"""The models most like one: found by their codes, ordered by their signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.model_index import ModelIndex
from cluster.models import ModelService
from operators.relation import relate
from operators.signature import Signature

CANDIDATES = 32
"""So many are compared by their whole signatures, or twice as many as are asked for."""


@dataclass(frozen=True)
class Nearest:
    """One of the nearest.

    Parameters
    ----------
    name: of the model.
    score: by the signatures, about 0 for an unrelated one, 1 for the same weights in whatever order of neurons; or that
        of another method.
    distance: length of the difference over that of the model asked about, neurons as they lie; None without tensors of
        one shape.
    layers: of the model asked about, how many have a counterpart there.
    parameters: values of all its tensors.
    by_kind: score of each kind of tensor.
    """

    name: str
    score: float
    distance: float | None
    layers: int
    parameters: int
    by_kind: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def index_of(codes: Mapping[str, Any]) -> ModelIndex:
    """An index over codes (992,) int8 by name."""
    index = ModelIndex()
    if codes:
        index.add(list(codes), np.stack(list(codes.values())))
    return index


def nearest(
    own: Signature, index: ModelIndex, signature: Callable[[str], Signature], k: int, without: str = ""
) -> list[Nearest]:
    """The ``k`` models most like one of signature ``own``, best first; ``signature`` reads those of the candidates."""
    found = index.search(own.code, max(CANDIDATES, 2 * k) + 1)
    listed = []
    for name, _ in found:
        if name != without:
            listed.append(described(name, own, signature(name)))
    return sorted(listed, key=lambda item: (-item.score, item.name))[:k]


def neighbours(chosen: ModelService, others: Iterable[ModelService], k: int) -> list[Nearest]:
    """The ``k`` of the others most like a served model. Blocking: signatures may have to be taken first."""
    known = {other.name: other for other in others}
    index = index_of({name: other.signature.code for name, other in known.items()})
    return nearest(chosen.signature, index, lambda name: known[name].signature, k, without=chosen.name)


def described(name: str, own: Signature, other: Signature, score: float | None = None) -> Nearest:
    """How a model relates to the one asked about; by a score of another method, where one is given."""
    found = relate(own, other)
    distance = found.distance
    return Nearest(
        name, found.score if score is None else score, distance if np.isfinite(distance) else None, found.layers,
        other.parameters, found.by_kind(),
    )  # fmt: skip
