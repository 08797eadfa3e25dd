"""Recompute every checksum of an archive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage import manifest as manifests
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.manifest import Object

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """One object that is not what the manifest says."""

    key: str
    what: str


@dataclass(frozen=True)
class Verdict:
    """Result of a verification.

    unused: what is sound and serves nothing, as an index over other rows than these.
    """

    url: str
    objects: int
    bytes: int
    damaged: tuple[Damage, ...]
    unused: tuple[Damage, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether every object is as it was written."""
        return not self.damaged


def verify(place: Location, tick: Tick | None = None) -> Verdict:
    """Read every object of the archive at ``place``, compare size and SHA-256; ``tick(done, total)`` counts bytes."""
    objects = manifests.load_objects(place, manifests.load(place))
    before = place.traffic.bytes_read
    damaged = tuple(damages(place, objects, tick))
    return Verdict(place.url, len(objects), place.traffic.bytes_read - before, damaged)


def damages(place: Location, objects: Sequence[Object], tick: Tick | None = None) -> Iterator[Damage]:
    """Those of the objects that are not as they were written."""
    done, total = 0, sum(item.size for item in objects)
    for item, what in each(place, objects):
        if what:
            yield Damage(item.key, what)
        done += item.size
        if tick:
            tick(done, total)


def each(place: Location, objects: Sequence[Object]) -> Iterator[tuple[Object, str]]:
    """Every object, and what is wrong with it; empty for one that is as it was written."""
    for item in objects:
        try:
            data = place.read(item.key)
        except MissingFileError:
            yield item, "missing"
        else:
            if len(data) != item.size:
                yield item, f"{len(data)} bytes instead of {item.size}"
            else:
                yield item, "" if hashlib.sha256(data).hexdigest() == item.sha256 else "checksum differs"
