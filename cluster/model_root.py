"""The models under a root as a collection to search: the catalog, its codes, and signatures when they are asked for."""

from __future__ import annotations

import base64
import difflib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.model_index import ModelIndex
from cluster.nearest_models import Nearest, index_of, nearest
from operators.errors import HilbertflowError
from operators.signature import Signature
from storage import archive, catalog, signatures
from storage import manifest as manifests
from storage.fs import Location
from storage.model import ModelArchive


class ModelRoot:
    """Opened by its URL; reads the catalog once, and a signature when it is first needed."""

    def __init__(self, url: str) -> None:
        self.place = Location(url)
        self._signatures: dict[str, Signature] = {}
        self._handles: dict[str, ModelArchive] = {}

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Of the catalog, by name."""
        return {row["name"]: row for row in catalog.ls(self.place.url) if row["kind"] == "model"}

    def check(self, name: str) -> str:
        """The name itself; raises when no model has it."""
        if name in self.rows:
            return name
        near = difflib.get_close_matches(name, list(self.rows), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "`hilbertflow models ls ROOT` lists them"
        raise HilbertflowError(f"no model {name[:80]!r}", where=self.place.url, remedy=remedy)

    def handle(self, name: str) -> ModelArchive:
        """The archive of a model."""
        if self.check(name) not in self._handles:
            self._handles[name] = archive.open(self.place.join("models", name).url)
        return self._handles[name]

    def signature(self, name: str) -> Signature:
        """The signature of a model."""
        if name not in self._signatures:
            self._signatures[name] = signatures.of_archive(self.handle(name))
        return self._signatures[name]

    def code(self, name: str) -> npt.NDArray[np.int8]:
        """The code of a model, from the catalog where it is there."""
        told = self.rows[name].get("code")
        return np.frombuffer(base64.b64decode(told), np.int8) if told else self.signature(name).code

    @cached_property
    def in_time(self) -> list[str]:
        """Names in the order in which the models were archived."""
        return in_time({name: self.place.join("models", name) for name in self.rows})

    @cached_property
    def index(self) -> ModelIndex:
        """Over the codes of all models."""
        return index_of({name: self.code(name) for name in self.rows})

    def nearest(self, name: str, k: int) -> list[Nearest]:
        """The models most like one, by signature."""
        return nearest(self.signature(self.check(name)), self.index, self.signature, k, without=name)


def in_time(places: Mapping[str, Location]) -> list[str]:
    """Names of archives in the order in which they were finished: a manifest is written last. One listing each."""

    def finished(name: str) -> tuple[float, str]:
        manifest = places[name].entries(manifests.NAME).get(manifests.NAME)
        return ((manifest.modified if manifest else None) or 0.0, name)

    return sorted(places, key=finished)
