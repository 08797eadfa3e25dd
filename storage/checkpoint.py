"""A model checkpoint as a table of tensors that can be read by byte range, whatever files it is made of."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.gguf import gguf_specs
from storage.kinds import tensor_kinds
from storage.references import hub_snapshot
from storage.safetensors_file import safetensors_specs
from storage.tensors import TensorSpec
from storage.torch_file import torch_specs

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_MAX_JSON = 64 << 20
_BLOCK, _SPREAD, _MAX_TENSOR_BLOCKS = 4096, 64, 4096
READERS: dict[str, Callable[[Location], tuple[TensorSpec, ...]]] = {
    ".safetensors": safetensors_specs,
    ".gguf": gguf_specs,
    ".bin": torch_specs,
    ".pt": torch_specs,
    ".pth": torch_specs,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read; no tensor is held.

    Parameters
    ----------
    url: as the user gave it.
    tensors: in file order, files in the order of their names.
    config: ``config.json`` beside the tensors, empty when there is none.
    fingerprint: SHA-256 (hex) of the names, types, shapes, file sizes and a fixed sample of the bytes (the middle
        4 KiB of every tensor and 64 blocks more spread over the files), so that a copy elsewhere has the same one.
    """

    url: str
    tensors: tuple[TensorSpec, ...]
    config: Mapping[str, Any] = field(compare=False)
    fingerprint: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors)

    def __getitem__(self, name: str) -> TensorSpec:
        for spec in self.tensors:
            if spec.name == name:
                return spec
        raise HilbertflowError(f"has no tensor {name!r}", where=self.url)

    def read(self, spec: TensorSpec, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of one tensor (default all of it)."""
        return read_tensor(spec, start, stop)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self.url, self.tensors, dict(self.config), self.fingerprint)


def _restored(url: str, tensors: tuple[TensorSpec, ...], config: dict[str, Any], fingerprint: str) -> Checkpoint:
    return Checkpoint(url, tensors, MappingProxyType(config), fingerprint)


def read_tensor(spec: TensorSpec, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes ``start`` to ``stop`` of a tensor, from its file; raises when they lie outside the tensor."""
    stop = spec.nbytes if stop is None else stop
    if not 0 <= start <= stop <= spec.nbytes:
        what = f"bytes {start} to {stop} lie outside tensor {spec.name!r} of {spec.nbytes} bytes"
        raise HilbertflowError(what, where=spec.file)
    return Location(spec.file).read("", spec.offset + start, spec.offset + stop)


def open_checkpoint(url: str) -> Checkpoint:
    """Open a checkpoint by reading its headers.

    Parameters
    ----------
    url: a ``.safetensors``, ``.gguf`` or PyTorch file (``.bin``, ``.pt``, ``.pth``: read, never unpickled); a directory
        with one, or with shards and ``model.safetensors.index.json``; that index;
        ``package://NAME/path`` for a checkpoint that an installed Python package carries (nothing is imported);
        ``hf://ORG/NAME`` for a Hugging Face repository, from the local cache where it is there.

    Raises `HilbertflowError` naming the file and the place in it.
    """
    try:
        place = Location(hub_snapshot(url) or url if url.startswith("hf://") else url)
        files, listed = _files(place)
    except HilbertflowError as error:
        if url.startswith("hf://") and hub_snapshot(url) is None:
            raise HilbertflowError(
                f"is not in the local Hugging Face cache and the hub does not give it ({error.what})", where=url,
                remedy="check the name and the network, or download it with `hf download` on a machine that is online",
            ) from error  # fmt: skip
        raise
    config = _config(place if place.is_dir() else _parent(place))
    specs: list[TensorSpec] = []
    with _no_search_for_cycles():
        for file in files:
            specs += _reader(file)(file)
    sizes = [file.size() for file in files]
    kinds = tensor_kinds((spec.name for spec in specs), config)
    specs = [spec if kind == spec.kind else spec.of_kind(kind) for spec, kind in zip(specs, kinds, strict=True)]
    _check_names(specs, listed, url)
    if not specs:
        raise HilbertflowError("has no tensors", where=f"{url}: header")
    return _restored(url, tuple(specs), config, _fingerprint(specs, files, sizes))


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """A header becomes many objects and no cycle, and looking for one again and again takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _files(place: Location) -> tuple[list[Location], dict[str, str] | None]:
    """The files that hold the tensors, and which of them the index says holds what (None without an index)."""
    if place.name.endswith(".index.json"):
        return _indexed(place)
    if not place.is_dir():
        _reader(place)
        if not place.exists():
            place.size()  # says that it is missing
        return [place], None
    for whole, index in zip(_WHOLE, _INDEXES, strict=True):
        if place.exists(whole):
            return [place.join(whole)], None
        if place.exists(index):
            return _indexed(place.join(index))
    for suffix in READERS:
        found = [name for name in place.list() if name.endswith(suffix) and "/" not in name]
        if len(found) == 1:
            return [place.join(found[0])], None
        if found:
            what = f"holds {len(found)} {suffix} files and no index that says how they belong together"
            raise HilbertflowError(what, where=place.url, remedy=f"name one of them, as {place.url}/{found[0]}")
    raise HilbertflowError(
        "holds no checkpoint",
        where=place.url,
        remedy=f"expected model.safetensors, {_INDEXES[0]} or *{', *'.join(READERS)}",
    )


def _indexed(index: Location) -> tuple[list[Location], dict[str, str]]:
    content = _json(index)
    listed = content.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise HilbertflowError("has no weight_map", where=index.url, remedy="save the model again")
    for tensor, name in listed.items():
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith((".safetensors", ".bin")):
            raise HilbertflowError(f"names no checkpoint file beside it for tensor {tensor!r}", where=index.url)
    folder = _parent(index)
    files = [folder.join(name) for name in sorted(set(listed.values()))]
    for file in files:
        if not file.exists():
            raise HilbertflowError(f"names {file.name}, which is missing", where=index.url, remedy="copy all shards")
    return files, {tensor: folder.join(name).url for tensor, name in listed.items()}


def _check_names(specs: list[TensorSpec], listed: dict[str, str] | None, url: str) -> None:
    found: dict[str, str] = {}
    for spec in specs:
        if spec.name in found:
            raise HilbertflowError(
                f"tensor {spec.name!r} is in two files: {found[spec.name]} and {spec.file}", where=url
            )
        found[spec.name] = spec.file
    if listed is not None and found != listed:
        name = min(tensor for tensor in {*found, *listed} if found.get(tensor) != listed.get(tensor))
        what = f"the index puts tensor {name!r} in {listed.get(name, 'no file')}, it is in {found.get(name, 'none')}"
        raise HilbertflowError(what, where=url, remedy="the index is of another save: save the model again")


def _reader(file: Location) -> Callable[[Location], tuple[TensorSpec, ...]]:
    for suffix, reader in READERS.items():
        if file.name.endswith(suffix):
            return reader
    if not file.exists():
        file.size()
    raise HilbertflowError(
        "is not a checkpoint", where=file.url, remedy=f"expected a name that ends in {', '.join(READERS)}"
    )


def _parent(place: Location) -> Location:
    return Location(place.url.rpartition("/")[0] or "/")


def _config(folder: Location) -> dict[str, Any]:
    return _json(folder.join("config.json")) if folder.exists("config.json") else {}


def _json(file: Location) -> dict[str, Any]:
    if file.size() > _MAX_JSON:
        raise HilbertflowError(f"is larger than {_MAX_JSON >> 20} MiB", where=file.url)
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise HilbertflowError(f"is not JSON: {error}", where=file.url) from error
    if not isinstance(content, dict):
        raise HilbertflowError("is not a JSON object", where=file.url)
    return content


def _fingerprint(specs: list[TensorSpec], files: list[Location], sizes: list[int]) -> str:
    digest = hashlib.sha256(b"hilbertflow checkpoint 1\n")
    for spec in specs:
        digest.update(f"{spec.name!r} {spec.dtype} {spec.shape} {spec.nbytes}\n".encode())
    digest.update(f"{sizes}\n".encode())
    number = {file.url: at for at, file in enumerate(files)}
    blocks = {(number[spec.file], *_block(spec)) for spec in _thinned(specs)}
    for at, size in enumerate(sizes):
        count = max(1, _SPREAD * size // max(1, sum(sizes)))
        starts = (min(size * step // count, max(0, size - _BLOCK)) for step in range(count))
        blocks |= {(at, start, min(size, start + _BLOCK)) for start in starts}
    for at, file in enumerate(files):
        asked = [("", start, stop) for which, start, stop in sorted(blocks) if which == at]
        for part in file.read_ranges(asked):
            digest.update(part)
    return digest.hexdigest()


def _thinned(specs: list[TensorSpec]) -> list[TensorSpec]:
    filled = [spec for spec in specs if spec.nbytes]
    step = -(-len(filled) // _MAX_TENSOR_BLOCKS)
    return filled[:: max(1, step)]


def _block(spec: TensorSpec) -> tuple[int, int]:
    """Byte range of the block in the middle of a tensor."""
    start = spec.offset + max(0, (spec.nbytes - _BLOCK) // 2)
    return start, min(start + _BLOCK, spec.offset + spec.nbytes)
