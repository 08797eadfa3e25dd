"""Versions of a collection on storage: the archive as it is, and the indexes that are published over it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.build import open_collection
from cluster.index_store import Build, current_builds, current_names, indexes_of
from cluster.planner import fresh
from storage.collection import CollectionArchive


@dataclass(frozen=True)
class Version:
    """A collection with the builds that index it as it is.

    name: the same wherever and whenever this version is opened.
    """

    name: str
    collection: CollectionArchive
    builds: dict[str, Build]

    @property
    def index_bytes(self) -> int:
        """Bytes of all index files."""
        return sum(build.bytes for build in self.builds.values())


def open_version(url: str) -> Version:
    """What lies at `url` now."""
    collection = open_collection(url)
    return Version(
        _name(collection), collection, fresh(collection, current_builds(indexes_of(collection)))
    )  # fmt: skip


def newest(url: str) -> str:
    """Name of the version that `open_version` would open: a few small reads."""
    return _name(open_collection(url))


def _name(collection: CollectionArchive) -> str:
    names = current_names(indexes_of(collection))
    return "+".join((collection.fingerprint[:12], *(names[kind] for kind in sorted(names))))
