"""Runs under way, told from their root: what each does now, how much of it is done, when its last unit was written.

A run leaves one small object below ``scratch/`` whenever it begins a pass; what is done of it is counted from the units
that lie there, so that it is right after a kill too. Both go when the archive is finished.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from storage.archive import FOLDERS
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.lease import last_beat
from storage.rowlog import GENERATIONS

KEY = "scratch/run.json"


@dataclass(frozen=True)
class UnderWay:
    """A run that has not finished, be it at work or stopped.

    Parameters
    ----------
    kind, name: of the archive to be.
    step: the pass it is in: ``embed``, ``sort``, ``archive`` …
    done, units: of this pass.
    began, last: seconds since 1970 when the pass began, and when its newest unit was written (None before the first).
    heard: when the run last wrote its lease anew, as it does every few seconds while it lives; None without one.
    compaction: whether it makes a new generation of a collection that is there.
    """

    kind: str
    name: str
    step: str
    done: int
    units: int
    began: float
    last: float | None
    compaction: bool = False
    heard: float | None = None


def tell(place: Location, step: str, units: int, folder: str) -> None:
    """Leave word at an archive to be: a pass of so many units begins, which are journalled below ``folder``."""
    said = {"step": step, "units": units, "folder": folder, "began": time.time()}
    place.write_atomic(KEY, json.dumps(said).encode(), durable=False)


def under_way(root: Location) -> list[UnderWay]:
    """Runs that have not finished an archive under a root, by kind and name. Costs a request an archive."""
    found = []
    for folder, kind in FOLDERS.items():
        for name in root.children(folder):
            place = root.join(folder, name)
            found.append(_read(place, kind, name, False))
            if kind == "collection":
                generations = place.join(GENERATIONS)
                found += [_read(generations.join(part), kind, name, True) for part in generations.children()]
    return [run for run in found if run is not None]


def _read(place: Location, kind: str, name: str, compaction: bool) -> UnderWay | None:
    try:
        said = json.loads(place.read(KEY))
        step, units, folder, began = str(said["step"]), int(said["units"]), str(said["folder"]), float(said["began"])
    except (MissingFileError, ValueError, KeyError, TypeError):
        return None  # not there, or gone while it was read: there is nothing to tell
    done: dict[str, float] = {}
    for key, entry in place.entries(folder).items():
        unit = key.rsplit("/", 1)[-1][:8]
        if unit.isdigit():
            done[unit] = max(done.get(unit, 0.0), entry.modified or 0.0)
    last = max(done.values(), default=0.0) or None
    return UnderWay(kind, name, step, min(len(done), units), units, began, last, compaction, last_beat(place))
