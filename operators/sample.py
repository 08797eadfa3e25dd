"""Choose what of a checkpoint is archived: by name, by kind, and by a stratified number of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import HilbertflowError
from operators.operator import Operator, Over
from operators.planes import with_column

Kind = Literal["embedding", "attention", "mlp", "norm", "head", "other"]


@dataclass(frozen=True)
class Sample(Operator):
    """Keep some tensors, or evenly thinned leading rows of each.

    Works on the table of tensors (``name`` str, ``kind`` str, ``shape`` list<int64>) when a run is planned, so that
    what is not kept is never read. Adds ``keep`` int64: how many leading-dimension rows of the tensor are kept.

    Parameters
    ----------
    max_params: at most this many parameters in all. Every kind keeps its share of the whole, and inside a kind every
        tensor its share of the kind, in whole leading rows: a tensor whose share is less than a row is left out, and
        its share goes to the larger ones of its kind. 0 keeps all.
    include, exclude: shell globs on tensor names (``encoder.layer.0.*``); exclude wins.
    kinds: the kinds kept; empty keeps all.
    """

    kind: Literal["sample"] = "sample"
    max_params: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()

    over: ClassVar[Over] = "tensors"

    def __post_init__(self) -> None:
        if self.max_params < 0:
            raise HilbertflowError("max_params is negative", where="sample", remedy="use 0 to keep every parameter")

    def apply(self, batch: pa.Table) -> pa.Table:
        """Filter the table of tensors and add ``keep``; raises when nothing is left."""
        names, kinds = batch.column("name").to_pylist(), batch.column("kind").to_pylist()
        kept = [self._keeps(name, kind) for name, kind in zip(names, kinds, strict=True)]
        batch = batch.filter(pa.array(kept, pa.bool_()))
        if not batch.num_rows:
            raise HilbertflowError(
                f"the sample keeps none of {len(names)} tensors", where="sample",
                remedy=f"names look like {names[0]!r}, kinds are {', '.join(sorted(set(kinds)))}" if names else "",
            )  # fmt: skip
        shapes = batch.column("shape").to_pylist()
        rows = np.array([shape[0] if shape else 1 for shape in shapes], np.int64)
        width = np.array([int(np.prod(shape[1:], dtype=np.int64)) for shape in shapes], np.int64)
        keep = rows
        if self.max_params and int((rows * width).sum()) > self.max_params:
            keep = _stratified(rows, width, np.array(batch.column("kind").to_pylist()), self.max_params)
        left = (keep > 0) | (rows * width == 0)  # what the budget gave no row to is left out; empty tensors stay
        return with_column(batch, "keep", pa.array(keep, pa.int64())).filter(pa.array(left))

    def _keeps(self, name: str, kind: str) -> bool:
        included = not self.include or any(fnmatchcase(name, glob) for glob in self.include)
        return included and not any(fnmatchcase(name, glob) for glob in self.exclude) and (
            not self.kinds or kind in self.kinds
        )  # fmt: skip


def shares(kept: pa.Table, whole: pa.Table) -> dict[str, tuple[int, int]]:
    """Kept and available parameters of each kind, from the table with ``keep`` and the one before it was sampled."""
    result = {str(kind): (0, 0) for kind in pc.unique(whole.column("kind")).to_pylist()}
    for kind, shape in zip(*(whole.column(name).to_pylist() for name in ("kind", "shape")), strict=True):
        result[kind] = 0, result[kind][1] + prod(shape)
    for kind, shape, rows in zip(*(kept.column(name).to_pylist() for name in ("kind", "shape", "keep")), strict=True):
        result[kind] = result[kind][0] + rows * prod(shape[1:]), result[kind][1]
    return result


def _stratified(
    rows: npt.NDArray[np.int64], width: npt.NDArray[np.int64], kinds: npt.NDArray[Any], budget: int
) -> npt.NDArray[np.int64]:
    sizes = rows * width
    total = int(sizes.sum())
    keep = np.zeros_like(rows)
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        quota = int(sizes[members].sum()) * budget // total
        # Small tensors first: what their whole rows leave over goes to the large ones, which can use it finely.
        left, mass = quota, int(sizes[members].sum())
        for at in members[np.argsort(sizes[members], kind="stable")]:
            want = left * int(sizes[at]) // mass if mass else 0
            keep[at] = min(int(rows[at]), want // max(1, int(width[at])))
            left -= int(keep[at] * width[at])
            mass -= int(sizes[at])
    return keep
