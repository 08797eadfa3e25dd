"""The configuration of the service: one YAML file, every key known, every limit a number with a unit."""

from __future__ import annotations

import difflib
import ipaddress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.chunk_cache import CACHE_BYTES
from cluster.device import Device
from cluster.query import MAX_K
from operators.errors import HilbertflowError
from operators.pictures import MAX_PIXELS
from storage.fs import Location

IMPORT_PATH = "cluster.serve_app:application"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderConfig(_Part):
    """The model that turns texts, and pictures if it is a CLIP, into query vectors: its directory, or a reference."""

    model: str = Field(min_length=1)
    replicas: int = Field(default=1, ge=1, le=1024)
    max_replicas: int | None = Field(default=None, ge=1, le=1024)
    threads: int = Field(default=1, ge=1, le=1024)
    max_tokens: int | None = Field(
        default=None, ge=0, le=1 << 20,
        description="longer texts are cut; 0 at the model's own limit, left out where the rows' texts were cut",
    )  # fmt: skip


class CollectionConfig(_Part):
    """A collection to serve.

    tier: used by queries that name none; auto takes the best one built. groups: shard groups, each a deployment of its
    own; default one for each shard of the largest index. replicas: of every group; with max_replicas, the least there
    are, and Serve adds more by load. placement: `ingress` searches in the process that answers HTTP, `shards` in
    deployments; auto takes ingress for one replica whose indexes fit `ingress_bytes`. device: that tier `ivfpq` is
    searched on; auto takes GPUs where the cluster has enough for all replicas, cuda fails where it has none.
    """

    name: str = Field(pattern=NAME)
    url: str = Field(min_length=1)
    tier: Literal["auto", "exact", "cold", "ivfpq", "hnsw"] = "auto"
    groups: int | None = Field(default=None, ge=1, le=4096)
    replicas: int = Field(default=1, ge=1, le=1024)
    max_replicas: int | None = Field(default=None, ge=1, le=1024)
    placement: Literal["auto", "ingress", "shards"] = "auto"
    threads: int = Field(default=1, ge=1, le=1024, description="of FAISS, in every process that searches")
    cache_bytes: int = Field(
        default=CACHE_BYTES,
        ge=0,
        le=1 << 40,
        description="kept of what tier `cold` reads, in every process that searches",
    )
    device: Device = "auto"
    gpus: float = Field(default=1.0, gt=0, le=1, description="of a replica that searches on one; fractions share it")
    encoder: EncoderConfig | None = Field(default=None, description="of its queries; default the service's")
    read_only: bool = Field(default=False, description="refuse changes of rows over HTTP")
    thumbnails: bool = Field(default=True, description="show small pictures of rows that were made of picture files")

    @model_validator(mode="after")
    def _gpu_has_one_tier(self) -> CollectionConfig:
        if self.device == "cuda" and self.tier not in ("auto", "ivfpq"):
            raise ValueError(f"tier {self.tier} has no form for a GPU: use tier ivfpq, or device auto or cpu")
        if self.device == "cuda" and self.placement == "ingress":
            raise ValueError("the ingress has no GPU: use placement shards, or device auto or cpu")
        return self

    @property
    def usual_tier(self) -> str | None:
        """Of queries that name none; None leaves it to the planner."""
        if self.device == "cuda":
            return "ivfpq"
        return None if self.tier == "auto" else self.tier


class ModelConfig(_Part):
    """An archived model to describe, and to stream tensors from."""

    name: str = Field(pattern=NAME)
    url: str = Field(min_length=1)


class Limits(_Part):
    """What one request may ask for; beyond it the answer is 413 or 422."""

    body_bytes: int = Field(default=64 << 20, ge=1024)
    queries: int = Field(default=4096, ge=1, le=1 << 20)
    k: int = Field(default=MAX_K, ge=1, le=MAX_K)
    answers: int = Field(default=1 << 20, ge=1, description="queries * k of one request")
    rows: int = Field(default=65_536, ge=1, description="rows of one change")
    text_chars: int = Field(default=100_000, ge=1, description="of one text")
    images: int = Field(default=32, ge=1, description="pictures of one request")
    image_bytes: int = Field(default=16 << 20, ge=1, description="of one picture's file")
    image_pixels: int = Field(
        default=50_000_000, ge=1, le=MAX_PIXELS, description="of one picture, judged before it is unpacked"
    )
    body_seconds: float = Field(default=30.0, gt=0, description="to receive a body")
    search_seconds: float = Field(default=60.0, gt=0, description="for a shard or an encoder to answer")
    head_seconds: float = Field(default=20.0, gt=0, description="to receive the head of a request")
    waiting: int = Field(default=1024, ge=1, description="requests at once; further ones get 503 with Retry-After")
    queued: int = Field(default=256, ge=1, description="searches that wait for a shard group; further ones get 503")
    pictures: int = Field(
        default=2, ge=1, description="pictures of tensors drawn, and models compared or checked, at once; others wait"
    )
    read_bytes: int = Field(
        default=4 << 30, ge=0, description="of models, read for one answer that compares weights or checks an archive"
    )


class ServeConfig(_Part):
    """The whole service.

    encoder: of every collection whose rows it made and that names none of its own.
    """

    collections: tuple[CollectionConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    encoder: EncoderConfig | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    keys: str | None = Field(default=None, description="file of API keys, see cluster.auth; needed beyond loopback")
    listen: bool = Field(
        default=True, description="ingress replicas listen on host:port themselves; false leaves it to Serve's proxies"
    )
    ingress_replicas: int = Field(default=1, ge=1, le=1024)
    ingress_bytes: int = Field(default=1 << 30, ge=0, description="indexes up to this size may live in the ingress")
    refresh_seconds: float = Field(
        default=2.0,
        ge=0,
        description="between looks at storage for new indexes and for rows written elsewhere; 0 never",
    )
    recall_seconds: float = Field(
        default=600.0, ge=0, description="between estimates of recall from the queries asked meanwhile; 0 makes none"
    )
    recall_rows: int = Field(
        default=1_000_000, ge=0, description="collections with more make none: all rows are compared for it"
    )
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        names = [item.name for item in self.collections] + [item.name for item in self.models]
        if not names:
            raise ValueError("there is nothing to serve: name `collections` or `models`")
        if len(set(names)) != len(names):
            raise ValueError("two collections or models have the same name")
        encoders = [self.encoder, *(item.encoder for item in self.collections)]
        bounded: list[CollectionConfig | EncoderConfig] = [*self.collections, *filter(None, encoders)]
        for part in bounded:
            if part.max_replicas is not None and part.max_replicas < part.replicas:
                raise ValueError(f"max_replicas is {part.max_replicas}, fewer than replicas, {part.replicas}")
        if self.keys is None and not _loopback(self.host):
            raise ValueError(f"{self.host} is not loopback, so `keys` must name a file of API keys")
        return self


def load_config(path: str) -> ServeConfig:
    """Read a configuration, or the arguments of our application in a file for `serve deploy`.

    Relative paths in it start at the file's own directory.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        body = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise HilbertflowError(f"cannot be read ({error.__class__.__name__})", where=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise HilbertflowError(f"is not YAML ({getattr(error, 'problem', error)})", where=path + line) from None
    if isinstance(body, dict) and "applications" in body:
        listed = body["applications"] if isinstance(body["applications"], list) else []
        ours = [app for app in listed if isinstance(app, dict) and app.get("import_path") == IMPORT_PATH]
        if len(ours) != 1:
            raise HilbertflowError(f"{len(ours)} applications have import_path {IMPORT_PATH}", where=path)
        body = ours[0].get("args") or {}
    return parse_config(body, path, Path(path).resolve().parent)


def parse_config(body: Any, where: str = "serve config", base: Path | None = None) -> ServeConfig:
    """Check a configuration; one line names the first key at fault and the nearest key there is."""
    if not isinstance(body, dict):
        raise HilbertflowError("is not a mapping of keys", where=where, remedy="begin with `collections:`")
    try:
        config = ServeConfig.model_validate(body)
    except ValidationError as error:
        raise _explained(error, where) from None
    return _placed(config, base or Path.cwd())


def _placed(config: ServeConfig, base: Path) -> ServeConfig:
    """The same with relative paths beginning at `base`."""

    def encoder(given: EncoderConfig | None) -> EncoderConfig | None:
        if given is None or "://" in given.model:
            return given
        return given.model_copy(update={"model": _absolute(given.model, base)})

    update: dict[str, Any] = {
        "collections": tuple(
            item.model_copy(update={"url": _absolute(item.url, base), "encoder": encoder(item.encoder)})
            for item in config.collections
        ),
        "models": tuple(item.model_copy(update={"url": _absolute(item.url, base)}) for item in config.models),
        "encoder": encoder(config.encoder),
        "keys": _absolute(config.keys, base) if config.keys else None,
    }
    return config.model_copy(update=update)


def _explained(error: ValidationError, where: str) -> HilbertflowError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    remedy, message = "", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"
    elif first["type"] in ("tuple_type", "model_type"):
        parts = "a list of parts" if first["type"] == "tuple_type" else "a part"
        remedy = f"give {parts} with {', '.join(_keys_at(first['loc']))}"
        message = f"is {str(first['input'])[:60]}"
    return HilbertflowError(f"{place}: {message}" if place else message, where=where, remedy=remedy)


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "collections": CollectionConfig, "models": ModelConfig, "encoder": EncoderConfig, "limits": Limits
    }  # fmt: skip
    named = [part for part in place if isinstance(part, str)]
    return sorted((parts.get(named[-1], ServeConfig) if named else ServeConfig).model_fields)


def _absolute(url: str, base: Path) -> str:
    if "://" in url or url.startswith(("/", "~")):
        return Location(url).url
    return Location(str(base / url)).url


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
