"""The catalog of a root: one small row an archive, so that listing thousands reads no archive.

A row of a model holds the code of its signature too, so that searching thousands reads no archive either. All of it
derives from the archives: a row that is missing, or of an earlier version, is made again.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from operators.errors import HilbertflowError
from storage import manifest as manifests
from storage.archive import finished
from storage.fs import Location
from storage.fs_errors import MissingFileError
from storage.manifest import Manifest
from storage.model import ModelArchive
from storage.model_row import VERSION, model_row

_COLUMNS = ("kind", "name", "path", "units", "source_bytes", "levels", "quality", "fingerprint")


def add(root: Location, manifest: Manifest) -> None:
    """Add or replace an archive's row; called when its manifest is written."""
    _put(root, row(root.join(f"{manifest.kind}s", manifest.name), manifest))


def _put(root: Location, told: dict[str, Any]) -> None:
    key = f"catalog/{told['kind']}-{told['name']}.json"
    data = json.dumps(told, sort_keys=True).encode()
    if not root.exists(key) or root.read(key) != data:
        root.write_atomic(key, data)


def row(place: Location, manifest: Manifest) -> dict[str, Any]:
    """What a listing tells of an archive: kind, name, bytes by level, source bytes, quality; of a model more."""
    told = {
        "kind": manifest.kind, "name": manifest.name, "path": f"{manifest.kind}s/{manifest.name}",
        "units": manifest.units, "source_bytes": manifest.source_bytes, "levels": manifest.levels,
        "quality": manifest.quality, "fingerprint": manifest.fingerprint,
    }  # fmt: skip
    if manifest.kind == "model":
        with contextlib.suppress(HilbertflowError):  # damaged: whoever opens it is told
            told |= model_row(ModelArchive(place, manifest))
    return told


def ls(url: str) -> list[dict[str, Any]]:
    """Rows of the finished archives under a root, sorted by kind and name.

    Rows whose archive has gone are left out; archives without a row (copied here by hand), or with a damaged one, are
    read, and their rows written, where the root lets us: a root that may only be read is listed all the same.
    """
    root = Location(url)
    if not root.exists():
        raise HilbertflowError("no such root", where=root.url, remedy="`hilbertflow run RECIPE` makes one")
    rows = {}
    for name in root.children("catalog"):
        if name.endswith(".json"):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged row: the archive itself will tell
                entry = json.loads(root.read(f"catalog/{name}"))
                if all(key in entry for key in _COLUMNS):
                    rows[entry["path"]] = entry
    found = {place.url.removeprefix(root.url).strip("/"): place for place in finished(root)}
    writable = True
    for path, place in found.items():
        known = rows.get(path)
        if known is None or (known["kind"] == "model" and known.get("version") != VERSION):
            rows[path] = told = row(place, manifests.load(place))
            # Not of a damaged model, nor of an archive that was moved to another name: its row is not this one's.
            if writable and told["path"] == path and (told["kind"] != "model" or "version" in told):
                writable = _kept(root, place, told)
    return [rows[path] for path in sorted(found)]


def _kept(root: Location, place: Location, told: dict[str, Any]) -> bool:
    """Write a row that was made of the archive at ``place``; False where the root may only be read.

    A run may have put another archive there meanwhile, and its row: then this one, written later, would be the wrong
    one. Whoever writes an archive writes its manifest first, so looking at it once more tells.
    """
    try:
        _put(root, told)
        while (now := manifests.load(place)).fingerprint != told["fingerprint"] or now.levels != told["levels"]:
            told = row(place, now)
            _put(root, told)
    except MissingFileError:  # the archive has gone: a row without one is left out
        return True
    except HilbertflowError:
        return False
    return True
