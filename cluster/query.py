"""What is asked: validated once, at the edge, the same for the engine in process, the shard actors and HTTP."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.index_kind import Overrides
from cluster.vectors import F32
from operators.errors import HilbertflowError

MAX_K = 10_000
LONGEST = {"l2": 1e18, "ip": 1e30}
"""Length of a query up to which scores are finite: squared distances, products with vectors of up to 1e8."""
TIERS = ("exact", "cold", "ivfpq", "hnsw")


@dataclass(frozen=True)
class Query:
    """How to search, beside the vectors themselves; equal queries can be answered together.

    k: rows wanted, 1 to 10,000; more than there are gives all there are. tier: where to look, None leaves it to the
    planner.
    filter: metadata expression, see `cluster.filters`. overrides: how hard to look.
    radius: only rows within this squared distance (`l2`) or of at least this similarity (`ip`, `cosine`); k is then the
    most that are wanted.
    """

    k: int = 10
    tier: str | None = None
    filter: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    radius: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int | np.integer) or not 1 <= self.k <= MAX_K:
            raise HilbertflowError(f"k is {self.k!r}", where="search", remedy=f"give a whole number from 1 to {MAX_K}")
        if self.tier is not None and self.tier not in TIERS:
            near = difflib.get_close_matches(str(self.tier), TIERS, 1) or TIERS
            raise HilbertflowError(f"unknown tier {self.tier!r}", where="search", remedy=f"choose {' or '.join(near)}")
        if self.filter is not None and not isinstance(self.filter, str):
            raise HilbertflowError(f"the filter is {type(self.filter).__name__}, not text", where="search")
        if self.radius is not None and not _is_number(self.radius):
            raise HilbertflowError(f"radius is {self.radius!r}", where="search", remedy="give a finite number")

    @classmethod
    def of(cls, k: int, tier: str | None, filter: str | None, overrides: dict[str, Any]) -> Query:
        """From loose arguments, `radius` among the overrides; None is not given, `auto` is no tier, an empty filter is
        none, unknown overrides are refused.
        """
        overrides = {name: value for name, value in overrides.items() if value is not None}
        radius = overrides.pop("radius", None)
        known = [item.name for item in dataclasses.fields(Overrides)]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1) or [*known, "radius"]
                raise HilbertflowError(
                    f"unknown setting {name!r}", where="search", remedy=f"there is {', '.join(near)}"
                )
        return cls(k, None if tier in (None, "auto") else tier, filter or None, Overrides(**overrides), radius)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def checked_vectors(vectors: Any, dim: int, metric: str) -> F32:
    """Query vectors as (q, dim) float32, contiguous; (dim,) is one query.

    Raises for another dimension, for NaN and Inf (also those that appear only in float32), for vectors so long that
    their scores by `metric` would be infinite, and for what is no array of numbers.
    """
    try:
        array = np.asarray(vectors)
        if array.dtype.kind not in "fiu":
            raise ValueError("not numbers")
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(array, np.float32)
    except (ValueError, TypeError):
        raise HilbertflowError("the query is not an array of numbers of equal lengths", where="search") from None
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2 or array.shape[1] != dim:
        raise HilbertflowError(f"the query has shape {array.shape}, not (q, {dim})", where="search",
                               remedy=f"give vectors of {dim} values")  # fmt: skip
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        raise HilbertflowError("the query holds NaN or infinity", where=f"search, query {bad[0]}")
    longest = LONGEST.get(metric)
    if longest is not None and float(np.abs(array).max(initial=0)) * dim**0.5 > longest:
        lengths = np.linalg.norm(array.astype(np.float64), axis=1)
        if (long := np.flatnonzero(lengths > longest)).size:
            raise HilbertflowError(
                f"the query has length {lengths[long[0]]:.3g}, and its scores by {metric} may go beyond what float32 "
                "holds", where=f"search, query {long[0]}", remedy=f"scale it to {longest:g} at most",
            )  # fmt: skip
    return array
