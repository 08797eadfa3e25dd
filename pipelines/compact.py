"""The recipe of a compaction: the collection's own, over its rows as they stand."""

from __future__ import annotations

import json
from typing import Any

from pipelines.recipe import Recipe
from storage.collection import CollectionArchive
from storage.fs import Location


def compact_recipe(handle: CollectionArchive, home: Location) -> Recipe:
    """What makes the next generation of the collection at ``home``, whose archive ``handle`` is.

    Operators, unit size and indexes are those that it has; texts are not embedded again.
    """
    root, _, name = home.url.rpartition("/collections/")
    body: dict[str, Any] = {
        "name": handle.manifest.recipe.get("name", name),
        "source": {"kind": "collection", "path": home.url},
        "operators": handle.manifest.recipe["operators"],
        "sink": {"path": root, "name": name},
        "compute": {"rows_per_unit": int(handle.attributes["per_unit"]) * int(handle.attributes["block"])},
    }
    if (index := _index(handle)) is not None:
        body["index"] = index
    return Recipe.model_validate_json(json.dumps(body), strict=True)


def _index(handle: CollectionArchive) -> dict[str, Any] | None:
    """The kinds that are built over it, as they were asked for."""
    from cluster.index_store import current_builds, current_choice, indexes_of

    if (chosen := current_choice(indexes_of(handle))) is not None:
        return {"kind": "auto"} | {key: chosen[key] for key in ("shards", "target_recall", "memory")}
    builds = current_builds(indexes_of(handle))
    if not builds:
        return None
    first = next(iter(builds.values()))
    return {
        "kind": list(builds), "shards": max(len(build.shards) for build in builds.values()),
        "target_recall": first.kind.target_recall,
    }  # fmt: skip
