"""HTTP routes over archived models: descriptions, tensors streamed at any level, pictures of their planes."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster import registry
from cluster.http_edge import BODILESS
from cluster.models import MEDIA, ModelService
from cluster.problems import RESPONSES, Refused, missing
from cluster.services import Services

KEPT = {"Cache-Control": "private, max-age=3600"}
PIECE = 1 << 20  # a tensor goes out in pieces of about this many bytes, each decoded when the last one was taken

Name = Annotated[str, Path(description="Name of the model, as `GET /v1/models` lists it.", examples=["minilm"])]
TensorName = Annotated[
    str, Path(description="Name of the tensor, as the checkpoint spells it.", examples=["embeddings.LayerNorm.bias"])
]
LevelName = Annotated[
    str,
    Query(
        max_length=16,
        description="Fidelity: a level's number from 0, or `exact`, the source's own bits. Left out, the finest.",
    ),
]

Rows = Annotated[
    str,
    Query(
        max_length=64,
        examples=["0:16"],
        description="Leading-dimension rows as FIRST:LAST, the last not included; either may be left out.",
    ),
]
Filter = Annotated[
    str | None,
    Query(
        max_length=4096,
        examples=['parameters > 1000000 and "prod" in tags'],
        description="Only models for which it holds; columns as in `hilbertflow models ls`: tags, parameters, …",
    ),
]
Most = Annotated[int, Query(ge=1, le=64, description="Planes in the picture.")]
Kind = Annotated[
    Literal["safetensors", "npy"],
    Query(description="`safetensors` keeps the dtype; `npy` is float32 where NumPy lacks it, and below exact."),
]


_MODEL: dict[str, Any] = {
    "name": "minilm", "tensors": 104, "parameters": 22_713_728, "dtypes": ["F32", "I64"],
    "source_bytes": 90_864_192, "archive_bytes": 74_200_000, "fingerprint": "c2a7d41f08",
    "levels": ["0", "1", "exact"], "level_bytes": {"level0": 9_590_000, "level1": 13_000_000, "exact": 51_600_000},
    "quality": {"level0": 20.1, "level1": 45.7}, "tags": ["prod"],
    "notes": [{"written": 1_769_817_600.0, "text": "base of the search service"}],
    "architecture": "BertModel", "hyper": {"hidden_size": 384, "num_hidden_layers": 6},
    "kinds": {"attention": 3_545_856, "embedding": 11_917_824, "mlp": 7_087_104}, "parent": "",
    "archived": 1_769_814_000.0,
}  # fmt: skip
_TENSOR: dict[str, Any] = {
    "name": "encoder.layer.0.attention.self.query.weight", "kind": "attention", "dtype": "F32", "shape": [384, 384],
    "bytes": 589_824, "exact_at_every_level": False,
}  # fmt: skip


class Note(BaseModel):
    """Something written down about a model."""

    written: float = Field(description="Seconds since 1970.", examples=[1_769_817_600.0])
    text: str = Field(description="As it was written.", examples=["base of the search service"])


class ModelAbout(BaseModel):
    """An archived model."""

    model_config = ConfigDict(json_schema_extra={"example": _MODEL})

    name: str = Field(description="Its name here.", examples=["minilm"])
    tensors: int = Field(description="How many tensors it has.")
    parameters: int = Field(description="How many values they hold.")
    dtypes: list[str] = Field(description="Their types, in the spelling of safetensors.")
    source_bytes: int = Field(description="Bytes of the tensors in the source.")
    archive_bytes: int = Field(description="Bytes of the archive, all levels.")
    fingerprint: str = Field(description="Hash of the source's content and of how it was archived.")
    levels: list[str] = Field(description="Levels that can be asked for, coarse to fine.")
    level_bytes: dict[str, int] = Field(description="Bytes of every array of the archive; a level adds its own.")
    quality: dict[str, float] = Field(description="Signal-to-noise ratio in dB of the levels below exact.")
    tags: list[str] = Field(description="As `hilbertflow models tag` gave them, sorted.", examples=[["prod"]])
    notes: list[Note] = Field(description="As `hilbertflow models note` wrote them, oldest first.")
    architecture: str = Field(description="The first class that config.json names, or its model_type; may be empty.")
    hyper: dict[str, int | float | str] = Field(description="Entries of config.json that tell sizes and parts.")
    kinds: dict[str, int] = Field(description="Values by kind of tensor.")
    parent: str = Field(description="Name in its root of the model that it is archived as differences to, or empty.")
    archived: float | None = Field(description="Seconds since 1970 when the archive was finished.")


class ModelList(BaseModel):
    """All models that the caller may read."""

    models: list[ModelAbout] = Field(description="In the order of the configuration.")


class TensorAbout(BaseModel):
    """One tensor."""

    model_config = ConfigDict(json_schema_extra={"example": _TENSOR})

    name: str = Field(description="As the checkpoint spells it.")
    kind: str = Field(description="embedding, attention, mlp, norm, head or other.")
    dtype: str = Field(description="In the spelling of safetensors.")
    shape: list[int] = Field(description="Lengths of its dimensions.")
    bytes: int = Field(description="Bytes in the source.")
    exact_at_every_level: bool = Field(description="Small tensors and integers are.")


class ModelWhole(ModelAbout):
    """An archived model with its tensors."""

    model_config = ConfigDict(json_schema_extra={"example": _MODEL | {"tensor_list": [_TENSOR]}})

    tensor_list: list[TensorAbout] = Field(description="In order of position.")


_FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {kind: {"schema": {"type": "string", "format": "binary"}}
                                                  for kind in MEDIA.values()}},
    206: {"description": "The bytes of `Range` (level exact only; elsewhere it is not honoured)."},
    304: {"description": "`If-None-Match` names the file as it is."},
    416: RESPONSES[422] | {"description": "No byte lies in `Range`."},
}  # fmt: skip


def model_routes(app: FastAPI, services: Services) -> None:
    """Add `/v1/models…`."""
    few = missing("No such model.", 401, 403, 422)
    of_tensors = missing("No such model, or it has no such tensor.", 401, 403, 422)
    of_chains = missing("No such model, or it has no such tensor or no parent.", 401, 403, 422)

    def tensor_of(m: str, t: str, request: Request) -> ModelService:
        """The model, if it has this tensor."""
        chosen = services.model(request, m)
        if t not in chosen.archive.layout.by_name:
            near = difflib.get_close_matches(t[:200], chosen.archive.names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"GET /v1/models/{m} lists them"
            raise Refused(404, f"model {m!r} has no tensor {t[:200]!r}", remedy=remedy)
        return chosen

    @app.get("/v1/models", summary="List the models", tags=["models"],
             responses={status: RESPONSES[status] for status in (401, 422)})  # fmt: skip
    async def models(request: Request, filter: Filter = None) -> ModelList:
        """Those that the caller may read, and that the filter lets through."""
        found = await asyncio.to_thread(described, services.readable_models(request), filter or "")
        return ModelList(models=[ModelAbout(**about) for about in found])

    @app.get("/v1/models/{m}", summary="Describe a model", tags=["models"], responses=few)
    async def model(m: Name, request: Request) -> ModelWhole:
        """Sizes by level, and its tensors."""
        chosen = services.model(request, m)
        (about,), tensors = await asyncio.to_thread(lambda: (described([chosen]), chosen.tensors))
        return ModelWhole(**about, tensor_list=tensors)

    @app.get(
        "/v1/models/{m}/tensors/{t:path}/planes.png", summary="See a tensor", tags=["models"],
        response_class=Response,
        responses={**of_tensors, 200: {"description": "A picture.", "content": {"image/png": {}}}},
    )  # fmt: skip
    async def planes(m: Name, t: TensorName, request: Request, level: LevelName = "", most: Most = 64) -> Response:
        """The first planes side by side, each of side² consecutive values along the Hilbert curve; grey is zero."""
        chosen = tensor_of(m, t, request)
        async with services.pictures:
            data = await asyncio.to_thread(chosen.picture, t, level, most)
        return Response(data, media_type="image/png", headers=KEPT)

    @app.get(
        "/v1/models/{m}/tensors/{t:path}/chain.mp4", summary="See a tensor change", tags=["models"],
        response_class=Response,
        responses={**of_chains, 200: {"description": "H.264, two frames a second.", "content": {"video/mp4": {}}},
                   206: {"description": "The bytes of `Range`."}, 416: _FILES[416]},
    )  # fmt: skip
    async def chain(m: Name, t: TensorName, request: Request) -> Response:
        """Its first plane through the chain of checkpoints that the model ends, a frame each.

        Left the values, right how far they have gone from the chain's first. 404 for a model without a parent.
        """
        chosen = tensor_of(m, t, request)
        if chosen.archive.link is None:
            raise Refused(
                404, f"model {m!r} has no parent, so there is no chain to show",
                remedy="GET /v1/models tells which models have one; planes.png shows this tensor",
            )  # fmt: skip
        async with services.pictures:
            data = await asyncio.to_thread(chosen.chain, t)
        span = byte_range(request.headers.get("Range", ""), len(data))
        headers = {**KEPT, "Accept-Ranges": "bytes"}
        if span is None:
            return Response(data, media_type="video/mp4", headers=headers)
        headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
        return Response(data[span[0] : span[1]], 206, headers, "video/mp4")

    @app.get(
        "/v1/models/{m}/tensors/{t:path}", summary="Read a tensor", tags=["models"],
        response_class=Response, responses={**of_tensors, **_FILES},
    )  # fmt: skip
    async def tensor(
        m: Name, t: TensorName, request: Request, level: LevelName = "", rows: Rows = "", format: Kind = "safetensors"
    ) -> Response:  # fmt: skip
        """A file streamed as it is decoded. At level exact the bytes never change, and `Range` is honoured."""
        chosen = tensor_of(m, t, request)
        file = await asyncio.to_thread(chosen.file, t, level, rows, format)
        headers = {
            "Cache-Control": "private, max-age=3600", "ETag": chosen.tag(file),
            "Content-Disposition": f'attachment; filename="{_safe(t)}.{format}"',
            "Accept-Ranges": "bytes" if file.level == "exact" else "none",
        }  # fmt: skip
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        start, stop, status = 0, file.size, 200
        asked = request.headers.get("Range", "") if file.level == "exact" else ""
        if asked and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            found = byte_range(asked, file.size)
            if found is not None:
                start, stop, status = *found, 206
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        headers["Content-Length"] = str(stop - start)
        if request.scope.get(BODILESS):
            return Response(status_code=status, headers=headers, media_type=MEDIA[format])
        return StreamingResponse(
            _stream(file.read(start, stop)), status_code=status, headers=headers, media_type=MEDIA[format]
        )  # fmt: skip


def described(models: Sequence[ModelService], text: str = "") -> list[dict[str, Any]]:
    """What is told of each model that a filter lets through, with its tags and notes of now; blocking."""
    rows = registry.served(models)
    if text and rows:
        rows = registry.where(rows, text)
    by_name = {model.name: model for model in models}
    told = ("tags", "notes", "architecture", "hyper", "kinds", "parent", "archived")
    return [by_name[row["name"]].about | {name: row[name] for name in told} for row in rows]


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last + 1 of `bytes=a-b`, `a-` or `-n`; None where it says nothing we follow. Raises 416."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if match is None or match.groups() == ("", ""):
        return None  # several ranges, other units: the whole file is a right answer too
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    else:
        start, stop = max(0, size - int(last)), size
    if start >= stop:
        raise Refused(
            416, f"the file has {size} bytes", where="Range", remedy="ask for bytes below that, or leave Range out",
            headers={"Content-Range": f"bytes */{size}"},
        )  # fmt: skip
    return start, stop


async def _stream(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces of about a megabyte; each is made in a thread once the client has taken the last."""

    def some() -> bytes:
        held, size = [], 0
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= PIECE:
                break
        return b"".join(held)

    while piece := await asyncio.to_thread(some):
        yield piece


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]
