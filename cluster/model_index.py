"""Codes of many models in memory: the nearest few of a hundred thousand in milliseconds, one more at any time.

A first look compares signs, 992 bits a model (Charikar, 2002: the share of equal signs tells the angle); the best of it
are compared by their int8 codes. Nothing is trained, so adding a model changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

from operators.relation import code_score
from operators.signature import CODE

I8 = npt.NDArray[np.int8]
SHORTLIST = 512


class ModelIndex:
    """Names and codes; grows by doubling."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: I8 = np.empty((0, CODE), np.int8)
        self._signs = faiss.IndexBinaryFlat(CODE)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, names: Sequence[str], codes: I8) -> None:
        """Some models more; codes (n, 992)."""
        count = len(self.names)
        if count + len(names) > len(self._codes):
            grown = np.empty((max(64, 2 * len(self._codes), count + len(names)), CODE), np.int8)
            grown[:count] = self._codes[:count]
            self._codes = grown
        self._codes[count : count + len(names)] = codes
        self._signs.add(np.packbits(codes > 0, axis=1))
        self.names += names

    def search(self, code: I8, k: int) -> list[tuple[str, float]]:
        """The ``k`` models of highest cosine to a code (992,), best first."""
        if not self.names:
            return []
        wanted = min(len(self.names), max(SHORTLIST, k))
        _, found = self._signs.search(np.packbits(code[None] > 0, axis=1), wanted)
        rows = np.sort(found[0])
        scores = code_score(code, self._codes[rows])
        best = np.argsort(-scores, kind="stable")[:k]
        return [(self.names[rows[i]], float(scores[i])) for i in best]
