"""API keys: bearer tokens whose SHA-256 stands in a file, with scopes a collection, reread when the file changes.

    keys:
      - {name: ingest, sha256: 9f86d0…, scopes: ["write:docs", "read:docs"]}
      - {name: app, sha256: 60303a…, scopes: ["read:*"]}

`admin:*` includes write, write includes read, and `read:*` includes `metrics:*`, which opens `/metrics` alone.
Keys are long random strings, so a plain hash cannot be searched;
`new_key` makes one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from operators.errors import HilbertflowError

_log = logging.getLogger("hilbertflow.serve")

COOKIE = "hilbertflow_key"
"""Where a browser keeps the key that a person gave the page."""
_RANK = {"metrics": 0, "read": 1, "write": 2, "admin": 3}


class Key(BaseModel):
    """One key: its name for the log, the SHA-256 of the token, what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[str, ...]

    def allows(self, action: str, collection: str) -> bool:
        """Whether `action` (metrics, read, write, admin) on `collection` is within its scopes."""
        for scope in self.scopes:
            granted, _, name = scope.partition(":")
            if name in ("*", collection) and _RANK.get(granted, -1) >= _RANK[action]:
                return True
        return False


class Keys:
    """The keys of a file; a changed file is read again, a broken one leaves the last good keys in force."""

    def __init__(self, path: str) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._keys, self._stamp = self._read(), self._changed()

    def find(self, token: str) -> Key | None:
        """The key with this token; every key is compared, in constant time."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _refresh(self) -> None:
        with self._lock:
            stamp = self._changed()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._keys = self._read()
                except HilbertflowError as error:
                    _log.warning("the keys stay what they were: %s", error)

    def _changed(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return status.st_mtime_ns, status.st_size

    def _read(self) -> tuple[Key, ...]:
        where = str(self._path)
        try:
            body = yaml.safe_load(self._path.read_text(encoding="utf-8"))
            keys = tuple(Key.model_validate(item) for item in body["keys"])
        except OSError as error:
            raise HilbertflowError(f"the key file cannot be read ({type(error).__name__})", where=where) from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValidationError):
            raise HilbertflowError(
                "is not a file of keys", where=where, remedy='write keys: [{name: app, sha256: …, scopes: ["read:*"]}]'
            ) from None
        for key in keys:
            for scope in key.scopes:
                if scope.partition(":")[0] not in _RANK or not scope.partition(":")[2]:
                    raise HilbertflowError(
                        f"unknown scope {scope!r} of key {key.name!r}", where=where,
                        remedy="write read:, write: or admin:NAME (* for all), or metrics:*",
                    )  # fmt: skip
        return keys


def new_key() -> tuple[str, str]:
    """A fresh token to hand out once, and the SHA-256 to keep."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()
