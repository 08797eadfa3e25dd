"""The log of a collection's changes: one object a batch, each created under the next number or not at all.

::

    ROOT/collections/NAME/log/format.json
    ROOT/collections/NAME/log/00000017.arrow        a batch; its number is the collection's version from then on
    ROOT/collections/NAME/log/base-00000001.json    a compaction: which archive holds all up to which version

Nothing is ever replaced. A writer creates the next number with a conditional put (a hard link on disk); when another
writer was faster it looks at what is new and takes the number after that, so that no batch is lost and all readers see
one order. Every batch names the hash of the one before it.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from operators.errors import HilbertflowError
from storage.batches import FORMAT, TAIL, Batch, Head, damaged, read_batch, read_head
from storage.fs import Location
from storage.fs_errors import MissingFileError

FOLDER = "log"
TRIES = 200  # of writing one batch against other writers
KEPT_KEYS = 10_000  # idempotency keys that outlive a compaction
_TOGETHER = 64
_SLOW = 1.0  # seconds from listing to written in which no two compactions can pass


@dataclass(frozen=True)
class Receipt:
    """An accepted batch: the version it made, its ids, and whether it had been accepted before under its key."""

    version: int
    rows: int
    repeated: bool = False


@dataclass(frozen=True)
class Base:
    """The archive on which the batches after version ``covers`` stand.

    Parameters
    ----------
    number: of the compaction, 0 for the archive as it was first written.
    place: its path below the collection's; empty for the collection's own.
    covers: the version that it holds.
    head: hash of that version's head.
    keys: idempotency keys of the batches in it: key to version, rows, hash of the content.
    nonces: of the batches that it covers and the base before did not, by version.
    """

    number: int = 0
    place: str = ""
    covers: int = 0
    head: str = ""
    keys: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    nonces: dict[int, str] = field(default_factory=dict)
    format: int = FORMAT


class BatchLog:
    """The log of the collection at ``home`` (ROOT/collections/NAME). Remembers heads and the base; safe to share."""

    def __init__(self, home: Location) -> None:
        self.home, self.place = home, home.join(FOLDER)
        self._bases: dict[str, Base] = {"": Base()}
        self._heads: dict[int, Head] = {}
        self._ready = False
        self._lock = threading.RLock()

    def look(self) -> tuple[Base, dict[int, int]]:
        """The newest base and the sizes of the batches after the version it covers, from one listing."""
        for _ in range(3):
            sizes = self._files()
            names = sorted(name for name in sizes if name.startswith("base-"))
            try:
                base = self.base(names[-1] if names else "")
                break
            except MissingFileError:  # between the listing and now another compaction took its place
                continue
        else:
            raise HilbertflowError("its log changes faster than it can be read", where=self.place.url)
        numbers = {int(name[:8]): size for name, size in sizes.items() if name[8:] == ".arrow" and name[:8].isdigit()}
        after = {number: size for number, size in sorted(numbers.items()) if number > base.covers}
        for expected, number in enumerate(after, base.covers + 1):
            if number != expected:
                raise HilbertflowError(
                    "a batch of the log is missing", where=self.place.join(_name(expected)).url,
                    remedy="restore this object from a copy",
                )  # fmt: skip
        return base, after

    def base(self, name: str) -> Base:
        """The base of this name, ``base-00000001.json``; the empty name is the archive as it was first written."""
        if name not in self._bases:
            where = self.place.join(name).url
            try:
                whole = json.loads(self.place.read(name))
                body = whole["body"]
                # Once it was taken over versions in order of number: of 10 and more the file has another order.
                by_number = body | {"nonces": {int(version): nonce for version, nonce in body["nonces"].items()}}
                if whole["sha256"] not in (_sha256(body), _sha256(by_number)):
                    raise ValueError("checksum")
                keys = {key: (int(v), int(n), str(c)) for key, (v, n, c) in body.pop("keys").items()}
                nonces = {int(version): str(nonce) for version, nonce in body.pop("nonces").items()}
                base = Base(**body, keys=keys, nonces=nonces)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, HilbertflowError):
                    raise
                raise damaged(where) from None
            if base.format != FORMAT:
                raise HilbertflowError(f"log format {base.format} is not {FORMAT}", where=where,
                                       remedy="upgrade hilbertflow")  # fmt: skip
            self._bases[name] = base
        return self._bases[name]

    def heads(self, sizes: dict[int, int]) -> dict[int, Head]:
        """The heads of some batches, by version; only those not seen yet are read, each by its last bytes."""
        with self._lock:
            new = [version for version in sizes if version not in self._heads]
            for at in range(0, len(new), _TOGETHER):
                some = new[at : at + _TOGETHER]
                spans = [(_name(v), max(0, sizes[v] - TAIL), sizes[v]) for v in some]
                for version, tail in zip(some, self.place.read_ranges(spans), strict=True):
                    self._remember(read_head(tail, self.place.join(_name(version)).url), version)
            return {version: self._heads[version] for version in sizes}

    def read(self, version: int, dim: int, schema: pa.Schema) -> Batch:
        """A batch with its rows, checked."""
        head, batch = read_batch(
            self.place.read(_name(version)), dim, schema, self.place.join(_name(version)).url
        )  # fmt: skip
        with self._lock:
            self._remember(head, version)
        return batch

    def damaged(self, dim: int, schema: pa.Schema) -> Iterator[HilbertflowError]:
        """Read the whole log again; yields an error for each object that is not what was written."""
        try:
            _, sizes = self.look()
        except HilbertflowError as error:  # a base, or a batch that is missing
            yield error
            return
        for version in sizes:
            try:
                self.read(version, dim, schema)
            except HilbertflowError as error:
                yield error

    def write(self, batch: Batch, key: str, allowed: Callable[[int], None]) -> Receipt:
        """Add a batch as the next version; durable when it returns.

        allowed: called with the version that the batch would follow, before each try; raises to refuse. The same key
        and content again change nothing; the same key with other content is refused.
        """
        stream = batch.stream()
        content, nonce = hashlib.sha256(stream).hexdigest(), secrets.token_hex(8)
        self._open_for_writing()
        for attempt in range(TRIES):
            began = time.time()
            try:
                base, sizes = self.look()
                last = max(sizes, default=base.covers)
                if key and (done := self._accepted(base, self.heads(sizes), key, content)) is not None:
                    return done
                allowed(last)
                before = self.heads({last: sizes[last]})[last].sha256 if sizes else base.head
                head = Head(last + 1, batch.op, len(batch.ids), key, content, len(stream), before, nonce)
                made = self.place.create_new(_name(last + 1), stream + head.dump()) or self._is_mine(last + 1, nonce)
            except MissingFileError:  # a compaction took old batches away meanwhile
                continue
            if made and (0 <= time.time() - began < _SLOW or self._counts(last + 1, nonce)):
                return Receipt(last + 1, len(batch.ids))
            time.sleep(random.uniform(0, min(0.002 * 1.2**attempt, 0.25)))
        raise HilbertflowError("other writers were always faster", where=self.place.url, remedy="send it again")

    def rebase(self, base: Base) -> bool:
        """Make ``base`` the newest, in one step; False when another compaction did so first."""
        self._open_for_writing()
        body = json.loads(json.dumps(asdict(base)))  # as it will be read: keys are texts, and sorted as such
        data = json.dumps({"sha256": _sha256(body), "body": body}, indent=1).encode()
        return self.place.create_new(f"base-{base.number:08d}.json", data)

    def next_base(self, place: str, covers: int) -> Base:
        """What `rebase` publishes for an archive at ``place`` that holds the batches up to ``covers``."""
        base, sizes = self.look()
        heads = self.heads({version: size for version, size in sizes.items() if version <= covers})
        keys = base.keys | {h.key: (h.version, h.rows, h.content) for h in heads.values() if h.key}
        kept = dict(list(keys.items())[-KEPT_KEYS:])
        nonces = {version: head.nonce for version, head in heads.items()}
        last = heads[covers].sha256 if covers in heads else base.head
        return Base(base.number + 1, place, covers, last, kept, nonces)

    def forget(self, covers: int, base: int) -> None:
        """Delete batches up to version ``covers`` and bases before number ``base``, which nobody begins to read now."""
        for name in self._files():
            if name[8:] == ".arrow" and name[:8].isdigit() and int(name[:8]) <= covers:
                self.place.delete(name)
            if name.startswith("base-") and name[5:13].isdigit() and int(name[5:13]) < base:
                self.place.delete(name)

    def _files(self) -> dict[str, int]:
        """Bytes by name of what lies in the log."""
        try:
            return {path.rsplit("/", 1)[-1]: size for path, size in self.home.sizes(FOLDER).items()}
        except MissingFileError:  # a web server that lists nothing
            return {}

    def _accepted(self, base: Base, heads: dict[int, Head], key: str, content: str) -> Receipt | None:
        found = next((h for h in heads.values() if h.key == key), None)
        version, rows, known = (found.version, found.rows, found.content) if found else base.keys.get(key, (0, 0, ""))
        if not version:
            return None
        if known != content:
            raise HilbertflowError(
                f"key {key[:80]!r} came with other rows before", where="key", remedy="give every batch its own key"
            )
        return Receipt(version, rows, True)

    def _is_mine(self, version: int, nonce: str) -> bool:
        """Whether the batch that has the number is the one just sent, its answer having been lost."""
        data = self.place.read(_name(version))
        return read_head(data, self.place.join(_name(version)).url).nonce == nonce

    def _counts(self, version: int, nonce: str) -> bool:
        """Whether the batch is part of the log: one held up for two compactions takes a number that was in use."""
        base, _ = self.look()
        return version > base.covers or base.nonces.get(version) == nonce

    def _remember(self, head: Head, version: int) -> None:
        before = self._heads.get(version - 1)
        if head.version != version or (before is not None and head.before != before.sha256):
            raise HilbertflowError(
                "is not the batch that was written after the one before it", where=self.place.join(_name(version)).url,
                remedy="restore the log from a copy",
            )  # fmt: skip
        self._heads[version] = head

    def _open_for_writing(self) -> None:
        """Begin the log, once, and see that the store honours conditional puts: it would lose batches without."""
        if self._ready:
            return
        data = json.dumps({"format": FORMAT}).encode()
        if self.place.create_new("format.json", data) and self.place.create_new("format.json", data):
            raise HilbertflowError(
                "this store replaces an object although asked to create it only where none is", where=self.place.url,
                remedy="keep collections that change on a disk, or on a store with conditional puts",
            )  # fmt: skip
        self._ready = True


def _name(version: int) -> str:
    return f"{version:08d}.arrow"


def _sha256(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
