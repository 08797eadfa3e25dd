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
from storage.manifest import Manifest
from storage.model import ModelArchive
from storage.model_row import VERSION, model_row

_COLUMNS = ("kind", "name", "path", "units", "source_bytes", "levels", "quality", "fingerprint")


def add(root: Location, manifest: Manifest) -> None:
    """Add or replace an archive's row; called when its manifest is written."""
    key = f"catalog/{manifest.kind}-{manifest.name}.json"
    data = json.dumps(row(root.join(f"{manifest.kind}s", manifest.name), manifest), sort_keys=True).encode()
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
    read and added.
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
    for path, place in found.items():
        known = rows.get(path)
        if known is None or (known["kind"] == "model" and known.get("version") != VERSION):
            rows[path] = row(place, manifests.load(place))
    return [rows[path] for path in sorted(found)]
