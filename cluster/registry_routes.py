"""HTTP routes over the models taken together: counts, who descends from whom, what is shared, where two differ."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from cluster import registry
from cluster.model_differences import Difference, differences, heat_map
from cluster.model_routes import KEPT, Filter, Name
from cluster.models import ModelService
from cluster.problems import RESPONSES, missing
from cluster.recorded_parents import beside, recorded_parents
from cluster.services import Services
from operators.descent import Edge, descent

Other = Annotated[str, Path(description="Name of the model that it is compared with.", examples=["minilm-ft"])]
Format = Annotated[
    Literal["csv", "json"], Query(description="`csv` for tables, `json` with everything as the catalog nests it.")
]
_MEDIA = {"csv": "text/csv", "json": "application/json"}
_EXPORTED: dict[str, Any] = {
    "text/csv": {"schema": {"type": "string"}},
    "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
}
KEPT_ANSWERS = 8
"""Answers about the same models, which never change under one object, that are kept, one a set that a key may read."""

_COUNTED: dict[str, Any] = {
    "models": 2, "children": 1, "parameters": 45_427_456, "source_bytes": 181_728_384, "bytes": 97_100_000,
    "share": 0.534, "architectures": {"BertModel": 2}, "dtypes": {"F32": 2, "I64": 2},
    "kinds": {"attention": 7_091_712, "embedding": 23_835_648},
}  # fmt: skip
_EDGE: dict[str, Any] = {
    "parent": "minilm", "child": "minilm-ft", "distance": 0.031, "why": ["layers"], "others": [], "recorded": "minilm",
    "agrees": True,
}  # fmt: skip
_SHARED: dict[str, Any] = {
    "dtype": "F32", "shape": [384], "bytes": 1536, "spare": 1536,
    "where": [{"model": name, "tensor": "embeddings.LayerNorm.bias"} for name in ("minilm", "minilm-ft")],
}  # fmt: skip
_DIFFERENT: dict[str, Any] = {
    "tensor": "encoder.layer.0.attention.self.query.weight", "layer": 0, "kind": "attention", "score": 0.993,
    "counterpart": "encoder.layer.0.attention.self.query.weight", "role": "attention.self.query", "change": 0.08,
    "what": "changed",
}  # fmt: skip


class Counted(BaseModel):
    """Counts and sums over models."""

    model_config = ConfigDict(json_schema_extra={"example": _COUNTED})

    models: int = Field(description="How many.")
    children: int = Field(description="How many of them are archived as differences to a parent.")
    parameters: int = Field(description="Values of all their tensors.")
    source_bytes: int = Field(description="Bytes of their sources.")
    bytes: int = Field(description="Bytes of their archives, all levels.")
    share: float | None = Field(description="Archives over sources; null without models.")
    architectures: dict[str, int] = Field(description="Models of each architecture, as config.json names it.")
    dtypes: dict[str, int] = Field(description="Models that have tensors of each type.")
    kinds: dict[str, int] = Field(description="Values by kind of tensor.")


class Descends(BaseModel):
    """From a parent to its child."""

    model_config = ConfigDict(json_schema_extra={"example": _EDGE})

    parent: str = Field(description="Of whom it was made.")
    child: str = Field(description="What was made of it.")
    distance: float = Field(description="Length of what was changed over that of the weights.")
    why: list[str] = Field(description="What it has that does not go away again: zeros, ties, layers; `merged`.")
    others: list[str] = Field(description="Of a merged model, its other parents.")
    recorded: str = Field(description="The parent that its archive is coded by; empty where it is coded alone.")
    agrees: bool | None = Field(
        description="Whether that is one of those told here; null without one, or where it is not among the models."
    )


class Untold(BaseModel):
    """A parent that an archive records, and the signatures do not tell."""

    parent: str = Field(description="That the archive is coded by.", examples=["minilm"])
    child: str = Field(description="Whose archive that is.", examples=["minilm-ft"])


class Tree(BaseModel):
    """Who descends from whom, told from the signatures alone, beside the parents that archives record."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"edges": [_EDGE], "recorded": 1, "agreeing": 1, "untold": []}}
    )

    edges: list[Descends] = Field(description="Models without relatives are in none.")
    recorded: int = Field(description="Recorded parents that are among the models.")
    agreeing: int = Field(description="Those of them that the signatures tell too.")
    untold: list[Untold] = Field(description="Recorded parents of models that are in no edge as a child.")


class Copy(BaseModel):
    """Where a tensor is."""

    model: str = Field(description="Name of the model.", examples=["minilm"])
    tensor: str = Field(description="As its checkpoint spells it.", examples=["embeddings.LayerNorm.bias"])


class SharedTensor(BaseModel):
    """A tensor that is the same bit for bit in several models, or more than once in one."""

    model_config = ConfigDict(json_schema_extra={"example": _SHARED})

    dtype: str = Field(description="In the spelling of safetensors.")
    shape: list[int] = Field(description="Lengths of its dimensions.")
    bytes: int = Field(description="Bytes of one copy in the source.")
    spare: int = Field(description="Bytes of the copies beyond the first.")
    where: list[Copy] = Field(description="All that are the same.")


class SharedTensors(BaseModel):
    """What several models have in common, and what storing it once would save."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"spare_bytes": 1536, "source_bytes": 181_728_384, "tensors": [_SHARED]}}
    )

    spare_bytes: int = Field(description="Bytes of the sources that are there more than once.")
    source_bytes: int = Field(description="Bytes of all sources.")
    tensors: list[SharedTensor] = Field(description="Largest saving first.")


class Different(BaseModel):
    """What became of a matrix of the first model, or that one model alone has it."""

    model_config = ConfigDict(json_schema_extra={"example": _DIFFERENT})

    tensor: str = Field(description="As the first model's checkpoint spells it; of the second where it has it alone.")
    counterpart: str = Field(description="In the second model; empty where there is none.")
    layer: int = Field(description="Number of its layer, -1 outside layers.")
    role: str = Field(description="Name without the layer.")
    kind: str = Field(description="embedding, attention, mlp, norm, head or other.")
    score: float | None = Field(description="Likeness in any order of neurons, -1 … 1; null without a counterpart.")
    change: float | None = Field(
        description="Length of the difference over that of the matrix, neurons as they lie; null where shapes differ."
    )
    what: str = Field(description="In words.")


class Differences(BaseModel):
    """In which matrices two models differ, and how."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"first": "minilm", "second": "minilm-ft", "tensors": [_DIFFERENT]}}
    )

    first: str = Field(description="The model that was asked about.")
    second: str = Field(description="The one that it is compared with.")
    tensors: list[Different] = Field(description="Most changed first.")


def registry_routes(app: FastAPI, services: Services) -> None:
    """Add `/v1/registry/…` and `/v1/models/{m}/differences/…`."""
    few = missing("No such model.", 401, 403, 422)
    listing: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (401, 422)}

    @app.get("/v1/registry/statistics", summary="Count the models", tags=["models"], responses=listing)
    async def statistics(request: Request, filter: Filter = None) -> Counted:
        """Of those that the caller may read, and that the filter lets through."""
        models = services.readable_models(request)
        return Counted(**await asyncio.to_thread(counted, models, filter or ""))

    @app.get(
        "/v1/registry/export", summary="Export the list of models", tags=["models"], response_class=Response,
        responses={**listing, 200: {"description": "The file.", "content": _EXPORTED}},
    )  # fmt: skip
    async def export(request: Request, format: Format = "csv", filter: Filter = None) -> Response:
        """Every column of those that the caller may read, and that the filter lets through; tags and notes too.

        CSV has a column a hyper-parameter, kind, level and figure of quality; JSON is nested.
        """
        models = services.readable_models(request)
        data = await asyncio.to_thread(lambda: registry.exported(chosen(models, filter or ""), format))
        headers = {"Content-Disposition": f'attachment; filename="models.{format}"', "Cache-Control": "no-store"}
        return Response(data, media_type=_MEDIA[format], headers=headers)

    @app.get("/v1/registry/tree", summary="Tell who descends from whom", tags=["models"], responses=listing)
    async def tree(request: Request) -> Tree:
        """Among those that the caller may read: by their signatures, no weights are read."""
        models = services.readable_models(request)
        edges = await services.at_work(lambda: descended(models))
        held = beside(edges, recorded_parents(models))
        known = [one.agrees for one in held.values() if one.agrees is not None]
        return Tree(
            edges=[
                Descends(**edge_row(edge), recorded=held[edge.child].recorded, agrees=held[edge.child].agrees)
                for edge in edges
            ],
            recorded=len(known), agreeing=sum(known),
            untold=[Untold(parent=one.recorded, child=one.name)
                    for one in held.values() if one.edge is None and one.agrees is False],
        )  # fmt: skip

    @app.get("/v1/registry/shared", summary="Find tensors that models share", tags=["models"], responses=listing)
    async def shared(request: Request) -> SharedTensors:
        """Of those that the caller may read. Only tensors whose signatures agree are read, and compared bit for bit."""
        models = services.readable_models(request)
        found = await services.at_work(lambda: common(models))
        return SharedTensors(
            spare_bytes=sum(item.spare for item in found), source_bytes=sum(m.about["source_bytes"] for m in models),
            tensors=[
                SharedTensor(dtype=item.dtype, shape=list(item.shape), bytes=item.nbytes, spare=item.spare,
                             where=[Copy(model=model, tensor=name) for model, name in item.where])
                for item in found
            ],
        )  # fmt: skip

    @app.get("/v1/models/{m}/differences/{n}", summary="Compare two models", tags=["models"], responses=few)
    async def different(m: Name, n: Other, request: Request) -> Differences:
        """Matrix by matrix, by their signatures: no weights are read."""
        first, second = services.model(request, m), services.model(request, n)
        rows = await services.at_work(lambda: compared(first, second))
        told = [Different(**{name: getattr(row, name) for name in Different.model_fields}) for row in rows]
        return Differences(first=m, second=n, tensors=told)

    @app.get(
        "/v1/models/{m}/differences/{n}/map.svg", summary="See where two models differ", tags=["models"],
        response_class=Response,
        responses={**few, 200: {"description": "A map of layers and kinds.", "content": {"image/svg+xml": {}}}},
    )  # fmt: skip
    async def map_of(m: Name, n: Other, request: Request) -> Response:
        """A column a layer, a row a kind of matrix, the darker the more was changed."""
        first, second = services.model(request, m), services.model(request, n)
        text = await services.at_work(lambda: heat_map(m, n, compared(first, second)))
        return Response(text, media_type="image/svg+xml", headers=KEPT)


def chosen(models: list[ModelService], text: str = "") -> list[registry.Row]:
    """Rows of those models that a filter lets through; blocking."""
    rows = registry.served(models)
    return registry.where(rows, text) if text and rows else rows


def counted(models: list[ModelService], text: str = "") -> dict[str, Any]:
    """Statistics of those models that a filter lets through; blocking."""
    return registry.statistics(chosen(models, text))


def descended(models: list[ModelService]) -> list[Edge]:
    """Who descends from whom; blocking, and remembered: all pairs are compared for it."""
    return _descended(tuple(models))


@lru_cache(maxsize=KEPT_ANSWERS)
def _descended(models: tuple[ModelService, ...]) -> list[Edge]:
    return descent({model.name: model.signature for model in models})


def edge_row(edge: Edge) -> dict[str, Any]:
    """For JSON."""
    return {
        "parent": edge.parent, "child": edge.child, "distance": edge.distance, "why": list(edge.why),
        "others": list(edge.others),
    }  # fmt: skip


def common(models: list[ModelService]) -> list[registry.Shared]:
    """What they share bit for bit; blocking, and remembered: tensors are read for it."""
    return _common(tuple(models))


@lru_cache(maxsize=KEPT_ANSWERS)
def _common(models: tuple[ModelService, ...]) -> list[registry.Shared]:
    by_name = {model.name: model for model in models}
    handles = {name: model.archive for name, model in by_name.items()}
    return registry.shared(handles, lambda name: by_name[name].signature)


def compared(first: ModelService, second: ModelService) -> list[Difference]:
    """Where two differ; blocking."""
    return differences(first.signature, second.signature)
