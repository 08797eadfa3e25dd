"""All ways to compare models side by side: what each tells of one model, and how far it agrees with the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from time import perf_counter

from cluster.model_methods import (
    METHODS,
    Models,
    Scores,
    agreement,
    average_precision,
    known_relatives,
    known_strangers,
    missing,
    scored,
)


@dataclass(frozen=True)
class Comparison:
    """What the methods tell of one model.

    Parameters
    ----------
    model: that was asked about.
    scores: by method, of every other model.
    seconds: that each took.
    relatives, strangers: the truth, as far as recorded parents tell it.
    left_out: why, by method.
    """

    model: str
    scores: dict[str, Scores]
    seconds: dict[str, float]
    relatives: frozenset[str]
    strangers: frozenset[str]
    left_out: dict[str, str]

    @property
    def known(self) -> frozenset[str]:
        """Models of which the truth is known; none unless there are relatives and strangers both."""
        return self.relatives | self.strangers if self.relatives and self.strangers else frozenset()

    def precision(self, method: str) -> float | None:
        """Average precision among the models of which the truth is known; None where it is not."""
        told = {other: score for other, score in self.scores[method].items() if other in self.known}
        return average_precision(told, self.relatives) if told else None

    def agreement(self, method: str) -> float | None:
        """Rank correlation with ``exact``; None without it, or where all models are the same to one of them."""
        if "exact" not in self.scores:
            return None
        told = agreement(self.scores[method], self.scores["exact"])
        return None if isnan(told) else told

    def best(self, k: int) -> list[str]:
        """The ``k`` models that ``exact``, or the signature without it, finds most like the one asked about."""
        first = self.scores.get("exact", self.scores["signature"])
        return sorted(first, key=lambda name: (-first[name], -self.scores["signature"][name], name))[:k]

    @property
    def truth(self) -> str:
        """One sentence on what average precision was judged by, and where it was not."""
        if not self.known:
            what = "to be a stranger" if self.relatives else "as its relative"
            return f"No model here is known {what} by recorded parents, so there is no truth to judge by."
        left = len(self.scores["signature"]) - len(self.known)
        told = ", ".join(sorted(self.relatives)[:5])
        return (
            f"Average precision: its {_count(len(self.relatives), 'relative')} by parent ({told}) among "
            f"{_count(len(self.strangers), 'model')} of other parents; {left} of unknown descent left out."
        )


def compare(models: Models, name: str, refusal: Callable[[str], str] = lambda method: "") -> Comparison:
    """Score by every method that is installed and not refused; ``refusal`` says why one is, or nothing."""
    scores, seconds, left_out = dict[str, Scores](), dict[str, float](), dict[str, str]()
    for method in METHODS:
        if why := missing(method) or refusal(method):
            left_out[method] = why
            continue
        began = perf_counter()
        scores[method] = scored(method, models, name)
        seconds[method] = perf_counter() - began
    relatives, strangers = known_relatives(models, name), known_strangers(models, name)
    return Comparison(name, scores, seconds, frozenset(relatives), frozenset(strangers), left_out)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
