"""Index builds on storage: shard files with checksums, one manifest a build, one small file that names the current
builds.

    indexes/CURRENT.json                  {"builds": {"ivfpq": "ivfpq-1f0c…", "hnsw": "hnsw-77ab…"}}, and what was
                                          `chosen` and tried, where that was left open; replaced in one write
    indexes/BUILD/manifest.json           options, fingerprint of the collection, artefact hash, shards; written last
    indexes/BUILD/artefact.faiss          the trained, empty index
    indexes/BUILD/shard-K.KIND.faiss      rows start … stop - 1 under local numbers
    indexes/BUILD/{artefact,shard-K}.json  journal: the file is whole; a resumed build skips it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import faiss

from cluster.artefact import check_shard, read_index
from cluster.index_kind import IndexKind, Overrides
from cluster.indexes import index_kind
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive
from storage.fs import Location

FORMAT = 1
CURRENT = "CURRENT.json"
_PIECE = 16 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file of a build with what it must turn out to be."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """The index of rows start … stop - 1."""

    start: int
    stop: int


@dataclass(frozen=True)
class Build:
    """One index over one version of a collection.

    tuned: search settings that reached the target recall when the build was tuned, empty otherwise; trials: what tuning
    measured.
    """

    build: str
    kind: IndexKind
    fingerprint: str
    count: int
    dim: int
    metric: str
    artefact: str
    artefact_file: StoredFile
    shards: tuple[ShardFile, ...]
    tuned: Overrides = field(default_factory=Overrides)
    trials: tuple[dict[str, Any], ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return self.artefact_file.bytes + sum(shard.bytes for shard in self.shards)

    @property
    def reached(self) -> float | None:
        """Recall@10 of the settings that tuning chose; None where nothing was tuned."""
        return next((float(trial["recall"]) for trial in self.trials if trial.get("chosen")), None)


class HashingWriter:
    """A file that hashes and counts what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write, hash, count."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    @property
    def sha256(self) -> str:
        """Hash of everything written so far."""
        return self._digest.hexdigest()


def indexes_of(collection: CollectionArchive) -> Location:
    """Where the indexes of a collection lie."""
    place: Location = collection.place.join("indexes")
    return place


def save_index(place: Location, path: str, index: Any) -> StoredFile:
    """Stream a FAISS index into a file that appears when it is whole."""
    with place.create(path) as file:
        out = HashingWriter(file)
        faiss.write_index(index, faiss.PyCallbackIOWriter(out.write, 1 << 20))
    return StoredFile(path, out.bytes, out.sha256)


def load_index(place: Location, stored: StoredFile) -> Any:
    """Read an index file whose size and checksum are as recorded; nothing else is given to FAISS."""
    where = place.join(stored.file).url
    with _checked_file(place, stored) as file:
        return read_index(file, stored.bytes, where)


def load_shard(place: Location, build: Build, number: int) -> Any:
    """The FAISS index of one shard, proven to belong to this build and to point nowhere outside its rows."""
    stored = build.shards[number]
    index = load_index(place, stored)
    where = place.join(stored.file).url
    check_shard(index, build.artefact, stored.stop - stored.start, build.dim, build.metric, where)
    return index


def save_build(place: Location, build: Build) -> None:
    """Write a build's manifest: from now on it is complete, though not yet current."""
    body = dataclasses.asdict(build) | {"format": FORMAT}
    body["tuned"] = build.tuned.given()
    place.write_atomic(f"{build.build}/manifest.json", _sealed(body))


def load_build(place: Location, name: str) -> Build:
    """Read a build's manifest."""
    where = place.join(name, "manifest.json")
    body = _unsealed(where)
    try:
        shards = tuple(ShardFile(**item) for item in body.pop("shards"))
        artefact_file = StoredFile(**body.pop("artefact_file"))
        kind, tuned, trials = index_kind(body.pop("kind")), Overrides(**body.pop("tuned")), tuple(body.pop("trials"))
        build = Build(**body, kind=kind, shards=shards, artefact_file=artefact_file, tuned=tuned, trials=trials)
    except (TypeError, KeyError) as error:
        raise HilbertflowError(f"damaged manifest ({error})", where=where.url, remedy="build the index again") from None
    borders = [0, *(shard.stop for shard in build.shards)]
    if borders[-1] != build.count or any(shard.start != at for shard, at in zip(build.shards, borders, strict=False)):
        raise HilbertflowError(
            "its shards do not cover the collection", where=where.url, remedy="build the index again"
        )
    return build


def forget_journal(place: Location, build: Build) -> None:
    """Remove the journal of a complete build; its manifest says all of it."""
    for what in ("artefact", *(f"shard-{number}" for number in range(len(build.shards)))):
        place.delete(f"{build.build}/{what}.json")


def damaged_files(place: Location, build: Build) -> Iterator[HilbertflowError]:
    """Read every file of a build again; yields an error for each that is not what was written."""
    for stored in (build.artefact_file, *build.shards):
        try:
            _checked_file(place, stored).close()
        except HilbertflowError as error:
            yield error


def has_build(place: Location, name: str) -> bool:
    """Whether the build is complete."""
    return place.exists(f"{name}/manifest.json")


def current_builds(place: Location) -> dict[str, Build]:
    """The published build of each kind; empty when nothing was built."""
    return {kind: load_build(place, name) for kind, name in current_names(place).items()}


def current_names(place: Location) -> dict[str, str]:
    """Names of the published builds by kind."""
    if not place.exists(CURRENT):
        return {}
    names = _unsealed(place.join(CURRENT))["builds"]
    return {str(kind): str(name) for kind, name in names.items()}


def files_in_use(place: Location) -> set[str]:
    """Paths of what the published builds consist of, relative to the collection's indexes."""
    used = {CURRENT} if place.exists(CURRENT) else set()
    for build in current_builds(place).values():
        used |= {f"{build.build}/manifest.json", build.artefact_file.file, *(shard.file for shard in build.shards)}
    return used


def publish(place: Location, builds: dict[str, str], chosen: dict[str, Any] | None = None) -> None:
    """Make builds (kind to name) current in one swap; kinds not named stay as they are.

    chosen: what `cluster.autotune` decided; with it only the builds named are current.
    """
    body: dict[str, Any] = {"format": FORMAT, "builds": builds if chosen else current_names(place) | builds}
    if (kept := chosen or current_choice(place)) is not None:
        body["chosen"] = kept
    place.write_atomic(CURRENT, _sealed(body))


def current_choice(place: Location) -> dict[str, Any] | None:
    """What `cluster.autotune` decided; None where it was not asked."""
    if not place.exists(CURRENT):
        return None
    chosen: dict[str, Any] | None = _unsealed(place.join(CURRENT)).get("chosen")
    return chosen


def cold_settings(collection: CollectionArchive) -> Overrides:
    """What the tier `cold` was tuned to, where it was chosen for these very rows."""
    chosen = current_choice(indexes_of(collection))
    if chosen is None or chosen["tier"] != "cold" or chosen["fingerprint"] != collection.fingerprint:
        return Overrides()
    return Overrides(**chosen["settings"])


def remember(place: Location, build: str, what: str, artefact: str, stored: StoredFile) -> None:
    """Journal a finished file of an unfinished build (`what`: artefact or shard-K)."""
    body = {"format": FORMAT, "artefact": artefact, "stored": dataclasses.asdict(stored)}
    place.write_atomic(f"{build}/{what}.json", _sealed(body))


def remembered(place: Location, build: str, what: str) -> tuple[str, dict[str, Any]] | None:
    """The journalled artefact hash and file, if the file is there in full."""
    path = f"{build}/{what}.json"
    try:
        body = _unsealed(place.join(path)) if place.exists(path) else None
        if body is None or place.size(body["stored"]["file"]) != body["stored"]["bytes"]:
            return None
        return str(body["artefact"]), dict(body["stored"])
    except (HilbertflowError, TypeError, KeyError):
        return None  # a damaged entry only costs making the file again


def _checked_file(place: Location, stored: StoredFile) -> BinaryIO:
    """A local, read-only file with the recorded content; remote ones are spooled to a temporary file first."""
    where = place.join(stored.file)
    size = where.size()
    if size != stored.bytes:
        raise _damaged(where, f"has {size} bytes, {stored.bytes} were written")
    local = where.local_path
    digest = hashlib.sha256()
    file: Any = open(local, "rb") if local else tempfile.TemporaryFile()  # noqa: SIM115 - handed to the caller
    try:
        for start in range(0, size, _PIECE):
            piece = file.read(_PIECE) if local else where.read("", start, min(size, start + _PIECE))
            digest.update(piece)
            if not local:
                file.write(piece)
        if digest.hexdigest() != stored.sha256:
            raise _damaged(where, "does not have the checksum that was recorded")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    checked: BinaryIO = file
    return checked


def _damaged(where: Location, what: str) -> HilbertflowError:
    return HilbertflowError(what, where=where.url, remedy="the file is damaged: build the index again")


def _sealed(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, indent=1)
    return json.dumps(
        {"checksum": hashlib.sha256(text.encode()).hexdigest(), "body": json.loads(text)}, indent=1
    ).encode()


def _unsealed(where: Location) -> dict[str, Any]:
    again = "restore it from a copy, or build the index again"
    try:
        whole = json.loads(where.read())
        body: dict[str, Any] = whole["body"]
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True, indent=1).encode()).hexdigest()
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HilbertflowError):
            raise
        raise HilbertflowError("is not a manifest", where=where.url, remedy=again) from None
    if checksum != whole.get("checksum"):
        raise HilbertflowError("its checksum is wrong", where=where.url, remedy=again)
    version = body.pop("format", None)
    if version != FORMAT:
        raise HilbertflowError(
            f"index format {version} is not {FORMAT}", where=where.url, remedy="upgrade hilbertflow, or build again"
        )
    return body
