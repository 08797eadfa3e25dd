"""HTTP routes to models like one: by a method of one's choice, and all methods side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from cluster.method_comparison import Comparison
from cluster.model_routes import Name
from cluster.problems import missing
from cluster.served_models import compared_methods, nearest_by
from cluster.services import Services

Count = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Method = Annotated[
    Literal["signature", "exact", "features", "temporal", "hybrid"],
    Query(
        description="`signature` reads no weights; `exact` is the cosine of all weights; `features` compares planes as "
        "pictures; `temporal` lends scores of the models archived just before and after; `hybrid` blends signature and "
        "features."
    ),
]

_NEAR: dict[str, Any] = {
    "name": "minilm-ft", "score": 0.993, "distance": 0.08, "layers": 6, "parameters": 22_713_728,
    "by_kind": {"attention": 0.991, "mlp": 0.98},
}  # fmt: skip
_COMPARED: dict[str, Any] = {
    "model": "minilm", "relatives": ["minilm-ft"], "strangers": ["smollm2"],
    "methods": [
        {"method": "signature", "precision": 1.0, "agreement": 1.0, "seconds": 0.01},
        {"method": "exact", "precision": 1.0, "agreement": 1.0, "seconds": 3.2},
    ],
    "models": [{"name": "minilm-ft", "scores": {"signature": 0.993, "exact": 0.997}}],
    "left_out": {"hybrid": "hybrid needs scikit-image: pip install 'hilbertflow[models]'"},
}  # fmt: skip


class NearModel(BaseModel):
    """A model and how like the asked one it is."""

    model_config = ConfigDict(json_schema_extra={"example": _NEAR})

    name: str = Field(description="Its name here.")
    score: float = Field(
        description="By the method; by signatures 0 or so for an unrelated model, 1 for the same weights in any order "
        "of neurons."
    )
    distance: float | None = Field(
        description="Length of the difference over that of the asked model's weights; null if no shape is shared."
    )
    layers: int = Field(description="Layers of the asked model that have a counterpart there.")
    parameters: int = Field(description="Values of all its tensors.")
    by_kind: dict[str, float] = Field(description="Score of each kind of tensor, by signatures.")


class NearModels(BaseModel):
    """Other models that the caller may read, most like one first."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "minilm", "method": "signature", "models": [_NEAR]}}
    )

    model: str = Field(description="The one that was asked about.")
    method: str = Field(description="By which they were scored.")
    models: list[NearModel] = Field(description="Best first.")


class MethodTold(BaseModel):
    """How a method did."""

    method: str = Field(description="Its name.", examples=["signature"])
    precision: float | None = Field(
        description="Average precision against recorded parents; null where they tell no truth.", examples=[1.0]
    )
    agreement: float | None = Field(
        description="Rank correlation with `exact`; null without it, or where all scores are the same.", examples=[0.9]
    )
    seconds: float = Field(description="That it took when it was asked.", examples=[0.01])


class Scored(BaseModel):
    """A model and its score by each method."""

    name: str = Field(description="Its name here.", examples=["minilm-ft"])
    scores: dict[str, float] = Field(description="By method.", examples=[{"signature": 0.993, "exact": 0.997}])


class MethodsCompared(BaseModel):
    """What every method tells of one model, and how far each agrees with the truth and with `exact`."""

    model_config = ConfigDict(json_schema_extra={"example": _COMPARED})

    model: str = Field(description="The one that was asked about.")
    relatives: list[str] = Field(description="Models that hang together with it by recorded parents.")
    strangers: list[str] = Field(description="Models of other recorded parents.")
    methods: list[MethodTold] = Field(description="Those that were used.")
    models: list[Scored] = Field(description="Best first, by `exact`, or by signature without it.")
    left_out: dict[str, str] = Field(description="Methods that were not used, and why.")


def similar_routes(app: FastAPI, services: Services) -> None:
    """Add `/v1/models/{m}/similar` and `/v1/models/{m}/compare`."""
    few = missing("No such model.", 401, 403, 422)

    @app.get("/v1/models/{m}/similar", summary="Find models like one", tags=["models"], responses=few)
    async def similar(m: Name, request: Request, k: Count = 10, method: Method = "signature") -> NearModels:
        """Scored by the method; all else is told from signatures.

        422 where the method would read more than `limits.read_bytes` of the service, or is not installed.
        """
        chosen, models = services.model(request, m), services.readable_models(request)
        most = services.limits.read_bytes
        found = await services.at_work(lambda: nearest_by(method, chosen, models, k, most))
        return NearModels(model=m, method=method, models=[NearModel(**item.as_dict()) for item in found])

    @app.get("/v1/models/{m}/compare", summary="Compare the methods", tags=["models"], responses=few)
    async def compare(m: Name, request: Request, k: Count = 10) -> MethodsCompared:
        """Every method about one model, beside the truth that recorded parents tell, and beside `exact`.

        Methods that would read more than `limits.read_bytes` of the service, or are not installed, are left out.
        """
        chosen, models = services.model(request, m), services.readable_models(request)
        most = services.limits.read_bytes
        return told(await services.at_work(lambda: compared_methods(chosen, models, most)), k)


def told(found: Comparison, k: int) -> MethodsCompared:
    """A comparison as an answer, with the scores of the ``k`` best."""
    return MethodsCompared(
        model=found.model, relatives=sorted(found.relatives), strangers=sorted(found.strangers),
        methods=[
            MethodTold(method=method, precision=found.precision(method), agreement=found.agreement(method),
                       seconds=round(seconds, 4))
            for method, seconds in found.seconds.items()
        ],
        models=[
            Scored(name=name, scores={method: scores[name] for method, scores in found.scores.items()})
            for name in found.best(k)
        ],
        left_out=found.left_out,
    )  # fmt: skip
