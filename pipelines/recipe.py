"""The recipe: what a pipeline YAML may say, checked in full before anything starts.

A recipe reads like the flow: source, operators, sink, index, compute. Every part is chosen by its ``kind`` from a
closed registry, every key is known, and what is wrong is named by file, line and key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from operators.errors import HilbertflowError
from operators.operator import Operator
from operators.registry import OPERATORS
from pipelines import yaml_lines
from pipelines.recipe_errors import Settings, first_error, is_text_error, part
from storage.manifest import FORMAT
from storage.references import package_path

SCHEMA_VERSION = 1
RECIPES = Path(__file__).parent / "recipes"

if TYPE_CHECKING:
    AnyOperator = Operator
else:
    AnyOperator = Annotated[Union[tuple(OPERATORS.values())], Field(discriminator="kind")]  # noqa: UP007

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def parse_bytes(value: Any) -> Any:
    """``2GB`` (powers of 1000) or ``2GiB`` (powers of 1024) as a number of bytes; anything but text passes through."""
    if not isinstance(value, str):
        return value
    if (found := _SIZE.fullmatch(value)) is None:
        raise ValueError(f"'{value}' is not a size such as 500MB, 2GB or 1GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=Union[int, str]), Field(ge=1_000_000)]  # noqa: UP007


class Part(BaseModel):
    """Base of every part of a recipe: frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CheckpointSource(Part):
    """Tensors of a checkpoint: a safetensors, GGUF or PyTorch file, or a directory with one or with shards."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: Text = Field(description="file or directory, local or a URL; package://NAME/inside, hf://ORG/NAME")


class VectorsSource(Part):
    """Rows of vectors: one file of npy, npz, Parquet, Arrow, HDF5, Zarr, JSONL, fvecs, safetensors, or a folder."""

    kind: Literal["vectors"] = "vectors"
    path: Text = Field(description="file or directory, local or a URL")
    column: Text = Field("vector", description="column, array, dataset or tensor of the vectors")
    id_column: Text | None = Field(None, description="column or dataset of ids; left out, 'id' if there is one")
    metric: Literal["ip", "l2", "cosine"] = Field("ip", description="how rows are compared when searched")


class DocstringsSource(Part):
    """Docstrings of public functions and classes, read from source files; nothing is imported."""

    kind: Literal["docstrings"] = "docstrings"
    path: Text = Field(description="installed packages, 'numpy,pyarrow', or a directory of Python files")
    limit: PositiveInt | None = Field(None, description="at most this many, evenly spread; left out, all of them")
    metric: Literal["ip", "l2", "cosine"] = "ip"

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of the packages; empty when ``path`` is a directory."""
        if "/" in self.path or os.path.isdir(self.path):
            return ()
        return tuple(name.strip() for name in self.path.split(",") if name.strip())


class DocumentsSource(Part):
    """Texts of a folder of documents, at any depth, cut in chunks; a file that cannot be read is named and left out."""

    kind: Literal["documents"] = "documents"
    path: Text = Field(description="folder of txt, md, html, pdf and docx files, local or a URL")
    words: PositiveInt = Field(160, description="of a chunk")
    overlap: int = Field(24, ge=0, description="words that a chunk repeats of the one before it")
    metric: Literal["ip", "l2", "cosine"] = "ip"


class ImagesSource(Part):
    """Pictures of a folder, at any depth; a file that cannot be read is named and left out."""

    kind: Literal["images"] = "images"
    path: Text = Field(description="folder of jpg and png files, local or a URL")
    metric: Literal["ip", "l2", "cosine"] = "ip"


class CollectionSource(Part):
    """Rows of a collection as they stand: its archive, and what was put in and deleted since.

    With the sink at the same collection it is a compaction: the new archive takes the old one's place when it and its
    indexes are whole.
    """

    kind: Literal["collection"] = "collection"
    path: Text = Field(description="of the collection, a directory or a URL")
    version: int | None = Field(None, ge=0, description="of its rows; left out, the newest")
    metric: Literal["ip", "l2", "cosine"] | None = Field(None, description="left out, the collection's own")


SOURCES: dict[str, type[Part]] = {
    "checkpoint": CheckpointSource,
    "vectors": VectorsSource,
    "docstrings": DocstringsSource,
    "documents": DocumentsSource,
    "images": ImagesSource,
    "collection": CollectionSource,
}
Source = Annotated[
    CheckpointSource | VectorsSource | DocstringsSource | DocumentsSource | ImagesSource | CollectionSource,
    Field(discriminator="kind"),
]


class ArchiveSink(Part):
    """Where the archive goes: a root, and the archive's name under it."""

    kind: Literal["archive"] = "archive"
    path: Text = Field(description="root of archives, a directory or a URL")
    name: Name | None = Field(None, description="name of the archive; left out, the recipe's name")


IndexKind = Literal["ivfpq", "hnsw"]


class Index(Part):
    """In-memory indexes built over the collection once it is written.

    `auto` takes the fastest that fits the memory and reaches the recall, or none where the archive itself must do.
    """

    kind: Literal["auto", "ivfpq", "hnsw"] | Annotated[tuple[IndexKind, ...], Field(min_length=1)] = "auto"
    shards: PositiveInt = 1
    target_recall: float | None = Field(
        None, gt=0, lt=1, description="recall@10 that the settings are tuned to; of auto 0.95 if left out"
    )
    memory: Bytes | None = Field(None, description="of the index in memory, all shards together; for auto only")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where ivfpq is trained, and what it is laid out to be searched on"
    )

    @property
    def kinds(self) -> tuple[IndexKind, ...]:
        """The kinds, one or several, in the order given; none where they are to be chosen."""
        if isinstance(self.kind, tuple):
            return tuple(dict.fromkeys(self.kind))
        return () if self.kind == "auto" else (self.kind,)

    @model_validator(mode="after")
    def _memory_is_for_auto(self) -> Index:
        if self.memory is not None and self.kind != "auto":
            raise HilbertflowError(
                "a kind that is named takes what memory it takes", where="index.memory", remedy="remove memory or kind"
            )
        return self

    @model_validator(mode="after")
    def _hnsw_has_no_gpu(self) -> Index:
        if self.device == "cuda" and "hnsw" in self.kinds:
            raise HilbertflowError(
                "hnsw has no form for a GPU", where="index.device", remedy="use kind ivfpq, or device auto or cpu"
            )
        return self


class Compute(Part):
    """How much of the cluster a run takes; changes no byte of the archive but for the two sizes of a unit."""

    actors: PositiveInt | None = Field(None, description="workers of a stage; left out, one a core")
    memory: Bytes = Field(1_000_000_000, description="of one worker: bytes, or text such as 2GB")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    planes_per_unit: PositiveInt = Field(32, description="planes written, journalled and resumed together")
    rows_per_unit: PositiveInt | None = Field(
        None, description="the same for rows; left out, what makes 32 MB, 16,384 at most"
    )


PLANE_FLOW = ("sample", "hilbert_map", "quantize", "layerize", "frame_encode")
VECTOR_FLOW = ("sample", "hilbert_map", "vq", "tree", "frame_encode")
ROW_FLOW = ("embed", "row_blocks", "row_code", "frame_encode")
"""Operators of a model and of a collection in the order of the flow; the first of each may be left out."""


class Parent(Part):
    """The archive of a checkpoint that this one comes from; only what differs from it is stored."""

    path: Text = Field(
        description="archive of the parent, a directory or a URL; auto takes the nearest of the sink's root, if any is"
    )
    max_chain: int = Field(10, ge=1, le=64, description="archives to read back to one that stands alone, at most")

    @property
    def automatic(self) -> bool:
        """Whether it is to be chosen; a folder of this name is ``./auto``."""
        return self.path == "auto"


def _parent(value: Any) -> Any:
    if isinstance(value, str) and value != "auto" and "/" not in value and difflib.get_close_matches(value, ["auto"]):
        raise HilbertflowError(f"is {value}", where="parent", remedy=f"did you mean 'auto'? else write ./{value}")
    return {"path": value} if isinstance(value, str) else value


class Recipe(Part):
    """A whole pipeline."""

    name: Name
    source: Source
    parent: Annotated[Parent | None, BeforeValidator(_parent, json_schema_input_type=Union[str, Parent, None])] = None  # noqa: UP007
    operators: tuple[AnyOperator, ...] = Field(min_length=1)
    sink: ArchiveSink
    index: Index | None = None
    compute: Compute = Compute()

    @property
    def archive_name(self) -> str:
        """Name of the archive under the sink's root."""
        return self.sink.name or self.name

    @property
    def collection(self) -> bool:
        """Whether the archive holds rows to search rather than tensors."""
        return not isinstance(self.source, CheckpointSource)

    @model_validator(mode="after")
    def _operators_in_order(self) -> Recipe:
        kinds = [operator.kind for operator in self.operators]  # type: ignore[attr-defined]
        flow = ROW_FLOW if self.collection else VECTOR_FLOW if {"vq", "tree"} & {*kinds} else PLANE_FLOW
        needed = flow[1:]
        if kinds != [kind for kind in flow if kind in kinds]:
            raise HilbertflowError(
                f"{', '.join(kinds)} is no order for a {'collection' if self.collection else 'model'}",
                where="operators", remedy=f"use {', '.join(flow)}, each once",
            )  # fmt: skip
        if missing := [kind for kind in needed if kind not in kinds]:
            raise HilbertflowError(f"{missing[0]} is missing", where="operators", remedy=f"use {', '.join(flow)}")
        return self

    @model_validator(mode="after")
    def _index_needs_rows(self) -> Recipe:
        if self.index is not None and not self.collection:
            raise HilbertflowError("a checkpoint has no rows to index", where="index", remedy="remove index")
        if self.parent is not None and self.collection:
            raise HilbertflowError("a collection has no parent", where="parent", remedy="remove parent")
        return self


def load(path: str | os.PathLike[str], sets: list[str] | tuple[str, ...] = (), *, inputs: bool = True) -> Recipe:
    """Read a recipe file, or one of those that come along by name, and apply ``key.path=value`` settings.

    Raises :class:`HilbertflowError`, one line that names file, line and key, for anything that cannot be run as it
    stands: unknown keys and kinds, wrong types, missing values, a source that is not there (unless ``inputs`` is False:
    a recipe for another machine).
    """
    file = find(str(path))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HilbertflowError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(file)
        ) from None
    return parse(text, name=str(file), sets=sets, inputs=inputs)


def parse(text: str, *, name: str = "recipe", sets: list[str] | tuple[str, ...] = (), inputs: bool = True) -> Recipe:
    """The same from text; ``name`` is how errors call it."""
    document = yaml_lines.parse(text, name)
    if not isinstance(document.data, dict):
        raise HilbertflowError("not a recipe: the file must hold keys such as name, source, operators", where=name)
    settings = Settings(document)
    for setting in sets:
        settings.apply(setting)
    while True:
        try:
            # As JSON and strict: a list may stand for a tuple, but "256" is no number and 1 is no text.
            recipe = Recipe.model_validate_json(json.dumps(settings.data), strict=True)
            break
        except ValidationError as error:
            if settings.reread_as_text(is_text_error(error, settings.data)):
                continue  # --set source.path=2024: text after all
            raise first_error(error, settings, _part_keys) from None
    if inputs:
        _check_inputs(recipe, settings)
    return recipe


def find(path: str) -> Path:
    """The recipe file at ``path``, or the bundled one of that name (``quickstart-model``)."""
    if (file := Path(path)).is_file():
        return file
    bundled = {recipe.stem: recipe for recipe in sorted(RECIPES.glob("*.yaml"))}
    if os.sep not in path and (found := bundled.get(path.removesuffix(".yaml"))) is not None:
        return found
    parent = file.parent if file.parent.is_dir() else Path()
    choices = {str(other): None for other in sorted(parent.glob("*.y*ml"))} | dict.fromkeys(bundled)
    near = difflib.get_close_matches(path, choices, n=1) or difflib.get_close_matches(file.stem, bundled, n=1)
    what = "is a directory, not a recipe" if file.is_dir() else "no such recipe"
    remedy = f"did you mean '{near[0]}'?" if near else f"those that come along: {', '.join(bundled)}"
    raise HilbertflowError(what, where=path, remedy=remedy)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256, as hex, of what in a recipe determines the archive's bytes.

    That is the operators, how the source is read (not where it lies), the size of a unit, and the archive's format, so
    that no run goes on with what an older version wrote; names, the sink, the
    index and the rest of ``compute`` are not in it. The source's content has a fingerprint of its own, and so has
    that of a codebook of one's own.
    """
    source = recipe.source.model_dump(mode="json", exclude={"path", "version"})
    sizes = recipe.compute.rows_per_unit if recipe.collection else recipe.compute.planes_per_unit
    said = {
        "schema": SCHEMA_VERSION,
        "format": FORMAT,
        "source": source,
        "operators": [operator.determines() for operator in recipe.operators],
        "unit": sizes,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _part_keys(path: yaml_lines.Path, data: Any) -> list[str]:
    """Keys that may stand at ``path`` in a recipe, or kinds when it ends in ``kind``; empty when not known."""
    here = part(data, path)
    kind = here.get("kind") if isinstance(here, dict) else None
    cls: Any = None
    match path:
        case ():
            cls = Recipe
        case ("source", "kind"):
            return list(SOURCES)
        case ("operators", int(), "kind"):
            return list(OPERATORS)
        case ("source",):
            cls = SOURCES.get(kind) if isinstance(kind, str) else None
        case ("operators", int()):
            cls = OPERATORS.get(kind) if isinstance(kind, str) else None
        case (str() as key,):
            cls = {"sink": ArchiveSink, "index": Index, "compute": Compute}.get(key)
    if cls is None:
        return []
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else list(cls.model_fields)


def _check_inputs(recipe: Recipe, settings: Settings) -> None:
    """See that local inputs are there; what lies behind a URL is met when it is opened."""
    inputs: dict[yaml_lines.Path, str] = {("source", "path"): recipe.source.path}
    if isinstance(recipe.source, DocstringsSource) and recipe.source.packages:
        inputs.clear()  # names of packages; the source says which are not installed
    for i, operator in enumerate(recipe.operators):
        for key in ("model", "codebook"):
            if given := getattr(operator, key, ""):
                inputs["operators", i, key] = given
    for path, url in inputs.items():
        key, where = ".".join(map(str, path)), settings.where(path)
        try:
            found = package_path(url) if url.startswith("package://") else os.path.expanduser(url)
        except HilbertflowError as error:
            raise HilbertflowError(f"{key}: {error.what}", where=where, remedy=error.remedy) from None
        if "://" not in found and not os.path.exists(found):
            raise HilbertflowError(f"{key}: no such file or directory: {url}", where=where)
