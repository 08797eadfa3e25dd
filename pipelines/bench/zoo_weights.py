"""What the test bed's weights say themselves, every byte read: products of pairs of one architecture, and moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.bench.zoo import Member
from storage.checkpoint import open_checkpoint
from storage.signatures import shape_of, values_of

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Of all members.

    Parameters
    ----------
    cosine, distance: (n, n), tensors of one name and shape; what one of two lacks is lost; 0 and infinite without any.
    kurtosis: (n,) sum over matrices of the excess kurtosis.
    """

    cosine: F64
    distance: F64
    kurtosis: F64


def read_weights(members: Sequence[Member]) -> Weights:
    """Tensor by tensor over the members that have it in one shape; memory is that of one tensor of each."""
    sources = [open_checkpoint(str(member.path)) for member in members]
    alike: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for at, source in enumerate(sources):
        for spec in source.tensors:
            if (shape := shape_of(spec)) is not None:
                alike[spec.name, shape].append(at)
    count = len(members)
    products, met, kurtosis = np.zeros((count, count)), np.eye(count, dtype=bool), np.zeros(count)
    for (name, _), group in alike.items():
        held = np.stack([values_of(sources[i][name], sources[i].read(sources[i][name])) for i in group])
        for start in range(0, held.shape[1], 1 << 18):
            part = held[:, start : start + (1 << 18)].astype(np.float64)
            products[np.ix_(group, group)] += part @ part.T
        met[np.ix_(group, group)] = True
        square = np.square(held - held.mean(1, keepdims=True))
        kurtosis[group] += np.square(square).mean(1, dtype=np.float64) / square.mean(1, dtype=np.float64) ** 2 - 3
    own = np.diag(products)
    lengths = np.sqrt(np.maximum(own, 1e-300))
    distance = np.sqrt(np.maximum(0, own[:, None] + own[None] - 2 * products)) / lengths[:, None]
    return Weights(products / np.outer(lengths, lengths), np.where(met, distance, np.inf), kurtosis)
