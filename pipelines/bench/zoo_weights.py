"""What the test bed's weights say themselves, every byte read: products of pairs of one architecture, and moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.bench.zoo import Member
from storage.checkpoint import Checkpoint, open_checkpoint
from storage.signatures import shape_of, values_of

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Of all members.

    Parameters
    ----------
    cosine, distance: (n, n); 0 and infinite where shapes differ.
    kurtosis: (n,) sum over matrices of the excess kurtosis.
    """

    cosine: F64
    distance: F64
    kurtosis: F64


def read_weights(members: Sequence[Member]) -> Weights:
    """Tensor by tensor over the members that have the same shapes; memory is that of one tensor of each."""
    sources = [open_checkpoint(str(member.path)) for member in members]
    alike: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = defaultdict(list)
    for at, source in enumerate(sources):
        alike[_shapes(source)].append(at)
    count = len(members)
    cosine, distance, kurtosis = np.zeros((count, count)), np.full((count, count), np.inf), np.zeros(count)
    for shapes, group in alike.items():
        products = np.zeros((len(group), len(group)))
        for name, _ in shapes:
            held = np.stack([values_of(sources[i][name], sources[i].read(sources[i][name])) for i in group])
            for start in range(0, held.shape[1], 1 << 18):
                part = held[:, start : start + (1 << 18)].astype(np.float64)
                products += part @ part.T
            centred = held - held.mean(1, keepdims=True)
            square = np.square(centred)
            kurtosis[group] += np.square(square).mean(1, dtype=np.float64) / square.mean(1, dtype=np.float64) ** 2 - 3
        lengths = np.sqrt(np.diag(products))
        cosine[np.ix_(group, group)] = products / np.outer(lengths, lengths)
        squares = np.maximum(0, np.diag(products)[:, None] + np.diag(products)[None] - 2 * products)
        distance[np.ix_(group, group)] = np.sqrt(squares) / lengths[:, None]
    return Weights(cosine, distance, kurtosis)


def _shapes(source: Checkpoint) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((spec.name, shape) for spec in source.tensors if (shape := shape_of(spec)) is not None)
