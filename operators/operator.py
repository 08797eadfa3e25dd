"""What every operator is: a frozen dataclass whose fields are its YAML options, and one method from Arrow to Arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

Over = Literal["tensors", "planes", "texts", "rows"]


@dataclass(frozen=True)
class Resources:
    """What one worker of an operator needs; neighbouring operators of equal resources share a process.

    Parameters
    ----------
    cpus: logical cores, fractions allowed.
    gpus: devices, fractions allowed.
    """

    cpus: float = 1.0
    gpus: float = 0.0


class Operator(ABC):
    """Base of all operators.

    A subclass is a frozen dataclass with a field ``kind: Literal["name"] = "name"``; pydantic checks the other
    fields when a recipe is read. ``over`` says what a row of its batch is: a tensor of the table (applied once, when
    the run is planned), a plane, a text or a vector (applied in the stream).
    """

    over: ClassVar[Over]
    resources: ClassVar[Resources] = Resources()

    @abstractmethod
    def apply(self, batch: pa.Table) -> pa.Table:
        """Map a batch to a batch; rows keep their unit, and a batch holds whole units only."""

    def parallel(self) -> Resources:
        """Resources of one worker with these options."""
        return self.resources

    def determines(self) -> dict[str, Any]:
        """The options that an archive's bytes depend on, by name."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]
