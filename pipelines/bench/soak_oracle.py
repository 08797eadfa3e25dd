"""What the answers of a soak are checked against: the rows of every version, compared one by one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
K = 10
TOLERANCE = 0.002  # of a score: indexes keep float16
ROUNDING = 1e-5  # of a score between two ways of adding it up in float32; rows within it are as good as one another
KEPT_VERSIONS = 8


@dataclass(frozen=True)
class Checked:
    """One answer to be checked. hit: as the service gave it; exact: by the tier that misses nothing."""

    query: F32
    hit: dict[str, Any]
    exact: bool

    @property
    def version(self) -> int:
        """Of the rows, as the answer says."""
        return int(self.hit["explain"]["version"])


@dataclass(frozen=True)
class _Rows:
    """Rows of one version: ids, their places, vectors (n, dim)."""

    names: npt.NDArray[np.object_]
    place: dict[str, int]
    vectors: F32


class Oracle:
    """Vectors by id at every version of the rows; scores are inner products."""

    def __init__(self, ids: list[str], vectors: F32) -> None:
        self.ids, self.vectors = np.array(ids, object), vectors
        self._changes: list[dict[str, F32 | None]] = []
        self._known: dict[int, _Rows] = {}
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """The newest that is known."""
        return len(self._changes)

    def changed(self, version: int, rows: dict[str, F32 | None]) -> None:
        """A change made this version; None deletes."""
        assert version == len(self._changes) + 1, "somebody else wrote"
        self._changes.append(rows)

    def at(self, version: int) -> _Rows:
        """The rows of a version; those of the last few are kept."""
        with self._lock:
            if version not in self._known:
                if len(self._known) > KEPT_VERSIONS:
                    self._known.pop(min(self._known))
                self._known[version] = self._made(version)
            return self._known[version]

    def _made(self, version: int) -> _Rows:
        latest: dict[str, F32 | None] = {}
        for rows in self._changes[:version]:
            latest |= rows
        keep = np.array([name not in latest for name in self.ids])
        late = {name: vector for name, vector in latest.items() if vector is not None}
        names = np.concatenate([self.ids[keep], np.array(list(late), object)])
        parts = [self.vectors[keep], *([np.stack(list(late.values()))] if late else [])]
        return _Rows(names, {name: i for i, name in enumerate(names.tolist())}, np.concatenate(parts))

    def faults(self, version: int, answers: Sequence[Checked]) -> list[tuple[str, float]]:
        """What is wrong with answers about one version ("" for nothing), and the recall of each."""
        rows = self.at(version)
        scores = np.stack([answer.query for answer in answers]) @ rows.vectors.T
        least = np.partition(scores, -K, axis=1)[:, -K]
        return [_fault(answer, rows, own, float(low)) for answer, own, low in zip(answers, scores, least, strict=True)]


def _fault(answer: Checked, rows: _Rows, scores: F32, least: float) -> tuple[str, float]:
    """least: the score of the k-th best row. A row of equal score is as right as another."""
    found, told, whole = answer.hit["ids"], answer.hit["scores"], not answer.hit["partial"]
    if len(found) < K and whole:
        return "short and not partial", 0.0
    if len(set(found)) < len(found):
        return "a row twice", 0.0
    if any(name not in rows.place for name in found):
        return "a row that does not exist at its version", 0.0
    true = scores[[rows.place[name] for name in found]]
    if np.abs(true - np.array(told, np.float32)).max(initial=0) > (1e-4 if answer.exact else TOLERANCE):
        return "a wrong score", 0.0
    if any(low > high for high, low in pairwise(told)):
        return "not the best first", 0.0
    share = float((true >= least - ROUNDING).sum()) / K
    return "the exact tier misses a row" if answer.exact and whole and share < 1 else "", share
