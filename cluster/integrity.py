"""Whether an archived model is as it was written: every object's checksum, step by step, and its parent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from operators.errors import HilbertflowError
from storage import manifest as manifests
from storage.lineage import resolve
from storage.model import ModelArchive
from storage.verify import each


@dataclass(frozen=True)
class Check:
    """How far a check has come.

    Parameters
    ----------
    done, total: bytes of the archive's objects.
    objects: so many were read.
    damaged: what was found so far, a line each.
    sound: the verdict; None before the end.
    """

    done: int
    total: int
    objects: int
    damaged: tuple[str, ...] = ()
    sound: bool | None = None


def checks(handle: ModelArchive) -> Iterator[Check]:
    """A step an object, and the verdict as the last; what cannot be read is told as damage, never raised.

    The parent of a child is looked for, not read through.
    """
    now = Check(0, 0, 0)
    try:
        listed = manifests.load_objects(handle.place, manifests.load(handle.place))
        total = sum(item.size for item in listed)
        for item, what in each(handle.place, listed):
            damaged = (*now.damaged, f"{item.key}: {what}") if what else now.damaged
            now = Check(now.done + item.size, total, now.objects + 1, damaged)
            yield now
        if not now.damaged and handle.link is not None:
            resolve(handle, handle.link)
    except HilbertflowError as error:
        now = Check(now.done, now.total, now.objects, (*now.damaged, str(error)))
    yield Check(now.done, now.total, now.objects, now.damaged, not now.damaged)
