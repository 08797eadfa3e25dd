"""Who descends from whom as signatures tell it, beside the parents that the archives were coded by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.models import ModelService
from operators.descent import Edge


@dataclass(frozen=True)
class Descent:
    """Of one model.

    Parameters
    ----------
    name: of the model.
    edge: to the parent that the signatures tell; None for a root.
    recorded: name of the parent that its archive is coded by; empty without one.
    there: whether that parent is among the models whose signatures were compared.
    """

    name: str
    edge: Edge | None
    recorded: str
    there: bool

    @property
    def agrees(self) -> bool | None:
        """Whether the recorded parent is one that is told; None where none is recorded, or it is not there."""
        if not self.recorded or not self.there:
            return None
        return self.edge is not None and self.recorded in (self.edge.parent, *self.edge.others)


def beside(edges: Iterable[Edge], recorded: Mapping[str, str]) -> dict[str, Descent]:
    """By name; ``recorded`` has every model that was compared, with its parent's name or nothing."""
    told = {edge.child: edge for edge in edges}
    return {name: Descent(name, told.get(name), parent, parent in recorded) for name, parent in recorded.items()}


def recorded_parents(models: Sequence[ModelService]) -> dict[str, str]:
    """Of served models: their parents' names here, or as they were called in their roots where they are not served."""
    names = {model.archive.fingerprint: model.name for model in reversed(models)}
    found = {}
    for model in models:
        link = model.archive.link
        found[model.name] = "" if link is None else names.get(link.identity, link.url.rsplit("/", 1)[-1])
    return found


def verdict(all_of_them: Iterable[Descent]) -> str:
    """One sentence on how the recorded parents and the tree compare; empty where there is nothing to compare."""
    known = [one.agrees for one in all_of_them if one.agrees is not None]
    if not known:
        return ""
    return f"Of {len(known)} recorded {'parent' if len(known) == 1 else 'parents'} the tree names {sum(known)}."
