"""A plan: what is read, in which units, through which operators, into which arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from operators.errors import HilbertflowError
from operators.operator import Operator
from pipelines.recipe import Recipe, recipe_hash
from storage.fs import Location
from storage.spec import ArchiveSpec, ArraySpec
from storage.writer import ArchiveWriter, Receipt

_T = TypeVar("_T", bound=Operator)


class Units(Protocol):
    """A source cut into units."""

    @property
    def units(self) -> int:
        """How many there are."""

    @property
    def unit_bytes(self) -> int:
        """The most bytes one takes in the stream."""

    def read(self, unit: int) -> pa.Table:
        """The rows of one."""


class UnitWriter(Protocol):
    """What the units of a pass become."""

    @property
    def folder(self) -> str:
        """Where the units that are there are seen, relative to the archive; empty when nowhere."""

    def write(self, table: pa.Table) -> Receipt:
        """One whole unit; twice gives the same bytes under the same keys."""

    def written(self) -> set[int]:
        """Units that are there."""


@dataclass(frozen=True)
class Pass:
    """One stream: the units of a source through operators to a writer.

    Parameters
    ----------
    name: for progress.
    """

    name: str
    source: Units
    operators: tuple[Operator, ...]
    writer: UnitWriter


@dataclass(frozen=True)
class Trials:
    """Bytes of each (layout, level, coder) on the sampled planes.

    Parameters
    ----------
    planes: how many were sampled.
    values: how many values they hold.
    bytes: by ``layout/level/coder``.
    """

    planes: int = 0
    values: int = 0
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def report(self) -> dict[str, Any]:
        """As kept in the archive; empty when nothing was to be resolved."""
        return dataclasses.asdict(self) if self.planes else {}


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Parameters
    ----------
    source: the units.
    operators: those of the stream, in order, with every ``auto`` resolved.
    spec: the archive.
    extra: objects beside the arrays, such as the table of tensors.
    trials: what ``auto`` compared.
    sampled: kept and available parameters by kind, for a checkpoint.
    codebook: what is told of the codebook of ``vq``; empty without one.
    parent: what is told of the choice of a parent; empty where it was not left to us. The recipe has it as chosen.
    """

    recipe: Recipe
    source: Units
    operators: tuple[Operator, ...]
    spec: ArchiveSpec
    source_bytes: int
    extra: dict[str, bytes] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    codebook: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Pass:
        """The pass that writes the archive."""
        return Pass("archive", self.source, self.operators, ArchiveWriter(self.spec))


def archive_spec(
    recipe: Recipe, fingerprint: str, attributes: dict[str, Any], arrays: tuple[ArraySpec, ...], units: int
) -> ArchiveSpec:
    """What an archive of this recipe and source is; of another parent or codebook under the same path, another one."""
    kind = "collection" if recipe.collection else "model"
    made_by = recipe_hash(recipe)
    for content in (attributes.get("parent", {}).get("identity"), attributes.get("vector", {}).get("codebook")):
        if content is not None:
            made_by = hashlib.sha256(f"{made_by}:{content}".encode()).hexdigest()
    return ArchiveSpec(
        url=Location(recipe.sink.path).join(f"{kind}s", recipe.archive_name).url, kind=kind, name=recipe.archive_name,
        fingerprint=fingerprint, recipe_hash=made_by, recipe=_portable(recipe), attributes=attributes,
        arrays=arrays, units=units,
    )  # fmt: skip


def only(recipe: Recipe, kind: type[_T]) -> _T:
    """The operator of this kind that a recipe names once."""
    return only_of(recipe.operators, kind)


def only_of(operators: tuple[Operator, ...], kind: type[_T]) -> _T:
    """The operator of this kind that is named once."""
    found = [o for o in operators if isinstance(o, kind)]
    if len(found) != 1:
        name = kind.__dataclass_fields__["kind"].default  # type: ignore[attr-defined]
        raise HilbertflowError(f"operators name {name} {len(found)} times", remedy=f"name {name} once")
    return found[0]


def _portable(recipe: Recipe) -> dict[str, Any]:
    """What determines the bytes: not where they go, nor how many workers make them."""
    sizes = {"planes_per_unit", "rows_per_unit"}
    compute = recipe.compute.model_dump(mode="json", include=sizes)
    return recipe.model_dump(mode="json", exclude={"compute", "sink"}) | {"compute": compute}
