"""The closed registry of index kinds; adding one is a file and a line here."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from cluster.hnsw import Hnsw
from cluster.index_kind import IndexKind
from cluster.ivfpq import IvfPq
from operators.errors import HilbertflowError

INDEXES: dict[str, type[IvfPq | Hnsw]] = {"ivfpq": IvfPq, "hnsw": Hnsw}


def index_kind(options: dict[str, Any]) -> IndexKind:
    """The kind that a mapping of options (`kind` among them) describes, with unknown kinds and options refused."""
    options = dict(options)
    name = options.pop("kind", None)
    if name not in INDEXES:
        near = difflib.get_close_matches(str(name), INDEXES, 1) or sorted(INDEXES)
        raise HilbertflowError(f"unknown index kind {name!r}", where="index", remedy=f"choose {' or '.join(near)}")
    known = [item.name for item in dataclasses.fields(INDEXES[name])]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1) or known
            raise HilbertflowError(f"unknown option {key!r}", where=f"index {name}", remedy=f"it has {', '.join(near)}")
    return INDEXES[name](**options)
