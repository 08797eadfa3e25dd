"""The models of a root as a table: what the catalog tells of each, tags, notes, times; filters; what is shared."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from cluster.filters import LISTED, parse_filter
from cluster.model_root import ModelRoot
from cluster.models import ModelService
from operators.errors import HilbertflowError
from operators.signature import Signature
from storage import labels
from storage import manifest as manifests
from storage.fs import Location
from storage.model import ModelArchive

Row = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """A tensor that several models have bit for bit.

    Parameters
    ----------
    dtype, shape, nbytes: of the tensor.
    where: model and name of each.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    where: tuple[tuple[str, str], ...]

    @property
    def spare(self) -> int:
        """Bytes of the source that are there more than once."""
        return self.nbytes * (len(self.where) - 1)


def rows(root: ModelRoot, names: Iterable[str] | None = None) -> list[Row]:
    """A row a model, nested as the catalog has it, with ``bytes``, ``tags``, ``notes`` and ``archived``."""
    return [
        _labelled(root.rows[root.check(name)], root.place.join("models", name))
        for name in (root.rows if names is None else names)
    ]


def served(models: Sequence[ModelService]) -> list[Row]:
    """The same of models behind the endpoint, under their names there; tags and notes are read anew."""
    return [_labelled(model.catalogued, model.archive.place) | {"name": model.name} for model in models]


def _labelled(row: Row, place: Location) -> Row:
    """A row of the catalog with what lies beside the archive by now."""
    kept = labels.read(place)
    manifest = place.entries(manifests.NAME).get(manifests.NAME)
    return {key: value for key, value in row.items() if key not in ("code", "version")} | {
        "bytes": sum(row["levels"].values()), "tags": list(kept.tags),
        "notes": [{"written": note.written, "text": note.text} for note in kept.notes],
        "archived": manifest.modified if manifest else None,
    }  # fmt: skip


def flat(row: Row) -> dict[str, Any]:
    """One level deep, for tables: ``hidden_size``, ``kind_mlp``, ``bytes_level0``, ``sqnr_db_level0``, tags as text."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key == "levels":
            out |= {f"bytes_{name}": size for name, size in value.items()}
        elif key == "kinds":
            out |= {f"kind_{name}": size for name, size in value.items()}
        elif key in ("hyper", "quality"):
            out |= {name: number for name, number in value.items() if name not in row}
        elif key == "notes":
            out[key] = " / ".join(note["text"] for note in value)
        elif isinstance(value, list):
            out[key] = ",".join(value)
        elif key != "kind":
            out[key] = value
    return out


def where(listed: list[Row], text: str) -> list[Row]:
    """Those rows for which a filter holds; columns are those of :func:`flat`."""
    table = as_table(listed)
    kept = parse_filter(text, table.schema).rows(table, table.num_rows)
    return [listed[int(at)] for at in kept]


def as_table(listed: list[Row]) -> pa.Table:
    """The rows as Arrow, null where a model has no such column; a column of mixed types becomes text.

    Lists are text with commas, marked so that a filter takes them item by item.
    """
    lists = {name for row in listed for name, value in row.items() if isinstance(value, list) and name != "notes"}
    flattened = [flat(row) for row in listed]
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in flattened for name in row):
        values = [row.get(name) for row in flattened]
        if len({type(value) for value in values if value is not None} - {int, float}) > 1:
            values = [None if value is None else str(value) for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if value is None else str(value) for value in values])
    marked = [pa.field(n, c.type, metadata=LISTED if n in lists else None) for n, c in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(marked))


def exported(listed: list[Row], kind: Literal["csv", "json"]) -> bytes:
    """The rows as a file: CSV with the columns of :func:`flat`, or JSON, nested."""
    if kind == "json":
        return (json.dumps(listed, indent=1, ensure_ascii=False) + "\n").encode()
    sink = io.BytesIO()
    if listed:
        pyarrow.csv.write_csv(as_table(listed), sink)
    return sink.getvalue()


def statistics(listed: list[Row]) -> Row:
    """Counts and sums over the rows: by architecture, dtype and kind of tensor."""
    by: dict[str, dict[str, int]] = {name: defaultdict(int) for name in ("architectures", "dtypes", "kinds")}
    for row in listed:
        by["architectures"][row.get("architecture") or "unknown"] += 1
        for dtype in row.get("dtypes", ()):
            by["dtypes"][dtype] += 1
        for kind, count in row.get("kinds", {}).items():
            by["kinds"][kind] += count
    source, stored = sum(row["source_bytes"] for row in listed), sum(row["bytes"] for row in listed)
    return {
        "models": len(listed), "children": sum(bool(row.get("parent")) for row in listed),
        "parameters": sum(row.get("parameters", 0) for row in listed), "source_bytes": source, "bytes": stored,
        "share": stored / source if source else None,
    } | {name: dict(sorted(table.items())) for name, table in by.items()}  # fmt: skip


def shared(
    handles: Mapping[str, ModelArchive],
    signature: Callable[[str], Signature],
    tick: Callable[[int, int], None] | None = None,
) -> list[Shared]:
    """Tensors that are the same bit for bit in several models, or twice in one, largest saving first.

    Only tensors that may be the same are read: matrices whose sketches agree, others of one name, type and shape.
    Raises when a model has no exact level.
    """
    alike: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for name, handle in handles.items():
        if "exact" not in handle.levels:
            raise HilbertflowError("has no exact level to compare", where=handle.url)
        sketches = {t.name: (t.moments.tobytes(), t.linear[:8].tobytes()) for t in signature(name).tensors}
        for tensor in handle.layout.placements:
            known = sketches.get(tensor.name) or (tensor.name,)
            if tensor.words:
                alike[(tensor.dtype, tensor.shape, *known)].append((name, tensor.name))
    candidates = [(key, places) for key, places in alike.items() if len(places) > 1]
    found: list[Shared] = []
    for done, (key, places) in enumerate(candidates, 1):
        by_digest: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
        for place in places:
            by_digest[_digest(handles[place[0]], place[1])].append(place)
        for same in by_digest.values():
            if len(same) > 1:
                nbytes = handles[same[0][0]].layout.by_name[same[0][1]].nbytes
                found.append(Shared(key[0], key[1], nbytes, tuple(same)))
        if tick:
            tick(done, len(candidates))
    return sorted(found, key=lambda item: (-item.spare, item.where))


def _digest(handle: ModelArchive, tensor: str) -> bytes:
    digest = hashlib.sha256()
    for piece in handle[tensor].as_bytes("exact"):
        digest.update(piece)
    return digest.digest()
