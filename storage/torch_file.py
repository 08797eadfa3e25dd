"""PyTorch checkpoints (``.bin``, ``.pt``, ``.pth``): where every tensor's bytes lie in the zip archive that they are.

The archive stores each tensor's bytes uncompressed and a pickle of names, shapes and strides. The pickle is worked out
by `storage.pickle_program`, never run; Torch is not needed. Format: torch/serialization.py, ``_save`` and
``_rebuild_tensor_v2``.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.pickle_program import Call, Global, PickleError, evaluate
from storage.tensors import DTYPE_BYTES, TensorSpec, is_unicode
from storage.vectors_npy import zip_archive

_MAX_PICKLE = 256 << 20
_MAX_DEPTH, _MAX_VISITS, _MAX_TENSORS, _MAX_NAME = 32, 1_000_000, 100_000, 512
_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
             "CharStorage": "I8", "ByteStorage": "U8", "ShortStorage": "I16", "IntStorage": "I32",
             "LongStorage": "I64", "BoolStorage": "BOOL", "UntypedStorage": "U8"}  # fmt: skip
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8", "uint8": "U8",
           "int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
           "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64"}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    """A stored run of values: its record in the archive, type and number of values."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage, all in values."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def torch_specs(location: Location) -> tuple[TensorSpec, ...]:
    """Tensors of one PyTorch file in the order of their bytes.

    Dictionaries inside dictionaries give names with dots (``state_dict.layer.weight``); what is not a tensor is left
    out. Two names of one storage (tied weights) are two tensors over the same bytes. Raises `HilbertflowError` for
    another or an older format, compressed or missing records, tensors that reach past their record or whose values do
    not lie in C order.
    """
    _refuse_pickle(location)
    archive = zip_archive(location)
    infos = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(infos) != len(archive.infolist()):
        raise HilbertflowError(
            "is a zip archive, but not one of PyTorch's", where=f"{location.url}: directory of the zip"
        )
    root = pickles[0].removesuffix("data.pkl")
    order = _record(location, infos, f"{root}byteorder") if f"{root}byteorder" in infos else b"little"
    if order != b"little":
        raise HilbertflowError(
            "was saved on a big-endian machine",
            where=f"{location.url}: {root}byteorder",
            remedy="save it again on another",
        )
    try:
        value = evaluate(_record(location, infos, pickles[0]), _storage, _REDUCTIONS)
    except PickleError as error:
        raise HilbertflowError(
            f"its pickle cannot be read: {error}; it was not executed",
            where=f"{location.url}: {pickles[0]}, byte {error.at}",
        ) from error
    visits = iter(range(_MAX_VISITS))
    where = f"{location.url}: {pickles[0]}"
    records = _Records(location, root, infos)
    found = list(islice(_tensors(value, "", 0, visits, where), _MAX_TENSORS + 1))
    if len(found) > _MAX_TENSORS:
        raise HilbertflowError(f"its pickle names more than {_MAX_TENSORS:,} tensors", where=where)
    specs = [records.spec(name, tensor) for name, tensor in found]
    if twice := next((name for name, count in Counter(spec.name for spec in specs).items() if count > 1), None):
        raise HilbertflowError(f"two tensors are called {twice[:80]!r}", where=where)
    return tuple(sorted(specs, key=lambda spec: (spec.offset, spec.name)))


def _refuse_pickle(location: Location) -> None:
    head = location.read("", 0, min(4, location.size()))
    if head[:1] == b"\x80":
        raise HilbertflowError(
            "is a plain pickle (PyTorch before 1.6), which is not read and was not executed",
            where=f"{location.url}: byte 0",
            remedy="convert it with torch.save or safetensors on a machine that trusts it",
        )  # fmt: skip
    if head != b"PK\x03\x04":
        raise HilbertflowError(
            "is not a PyTorch checkpoint", where=f"{location.url}: byte 0", remedy="expected a zip archive"
        )


def _tensors(value: Any, name: str, depth: int, visits: Iterator[int], where: str) -> Iterator[tuple[str, _Tensor]]:
    if next(visits, None) is None:  # lists that hold one another many times over
        raise HilbertflowError(f"its pickle holds more than {_MAX_VISITS:,} values", where=where)
    if isinstance(value, _Tensor):
        if len(name) > _MAX_NAME:
            what = f"the name of a tensor is longer than {_MAX_NAME} characters: {name[:40]!r}..."
            raise HilbertflowError(what, where=where)
        yield name or "tensor", value
        return
    items: Any = ()
    if isinstance(value, Call) and isinstance(value.function, Global) and "_rebuild_" in value.function.name:
        what = f"is built by {value.function.module}.{value.function.name}, which is not known"[:160]
        remedy = "only dense tensors are read: save it dense, or as safetensors"
        raise HilbertflowError(what, where=f"{where}: tensor {name[:80]!r}", remedy=remedy)
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, Call):
        items = value.items.items()
    if depth < _MAX_DEPTH:
        for key, item in items:
            yield from _tensors(item, _joined(name, key), depth + 1, visits, where)


def _joined(name: str, key: Any) -> str:
    """A name with one more part, cut where it is too long: each of many tensors would repeat a long key."""
    if isinstance(key, int) and key.bit_length() > 64:  # as text it would take long, or not be made
        key = "<number>"
    text = key if isinstance(key, str) else str(key[:_MAX_NAME] if isinstance(key, bytes) else key)
    return (f"{name}.{text[:_MAX_NAME]}" if name else text)[: _MAX_NAME + 1]


def _storage(identity: Any) -> _Storage:
    tag, kind, key, _, numel = identity
    if tag != "storage" or not isinstance(kind, Global) or kind.name not in _STORAGES:
        raise PickleError(f"an unknown storage {_called(kind)}")
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
        raise PickleError("a storage without key or length")
    return _Storage(key, _STORAGES[kind.name], numel)


def _called(value: Any) -> str:
    """What a message calls a value: lists inside lists, as text, would fill the memory."""
    return f"{value.module}.{value.name}"[:120] if isinstance(value, Global) else f"of type {type(value).__name__}"


def _rebuild(arguments: Any, dtype: str | None = None) -> _Tensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 64:
        raise PickleError("a tensor without storage or shape")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise PickleError("a tensor whose shape or strides are no natural numbers")
    return _Tensor(storage, dtype or storage.dtype, offset, tuple(shape), tuple(strides))


def _rebuild_v3(arguments: Any) -> _Tensor:
    dtype = arguments[6]
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        raise PickleError(f"an unknown dtype {_called(dtype)}")
    return _rebuild(arguments, _DTYPES[dtype.name])


def _rebuild_subclass(arguments: Any) -> Any:
    function, _, inner, _ = arguments
    known = _REDUCTIONS.get(function) if isinstance(function, Global) else None
    return known(inner) if known else Call(function, inner)


_REDUCTIONS: dict[Global, Callable[[Any], Any]] = {
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    Global("torch._utils", "_rebuild_parameter"): lambda arguments: arguments[0],
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda arguments: arguments[0],
    Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
    Global("collections", "OrderedDict"): lambda arguments: {},
}


class _Records:
    """The stored bytes of a file's tensors; those of a tensor of many names (tied weights) are looked at once."""

    def __init__(self, location: Location, root: str, infos: dict[str, zipfile.ZipInfo]) -> None:
        self._location, self._root, self._infos = location, root, infos
        self._begins: dict[str, int] = {}
        self._places: dict[_Tensor, tuple[int, int]] = {}

    def spec(self, name: str, tensor: _Tensor) -> TensorSpec:
        place = self._places.get(tensor)
        if place is None or not is_unicode(name):
            where = f"{self._location.url}: tensor {name[:80]!r}"
            if not is_unicode(name):
                raise HilbertflowError("the name is not valid Unicode", where=where)
            place = self._places[tensor] = self._place(tensor, where)
        return TensorSpec(name, tensor.dtype, tensor.shape, "other", self._location.url, *place)

    def _place(self, tensor: _Tensor, where: str) -> tuple[int, int]:
        """Byte of the file at which a tensor begins, and its bytes."""
        info = self._infos.get(f"{self._root}data/{tensor.storage.key}")
        if info is None:
            raise HilbertflowError(
                f"its record {tensor.storage.key[:80]!r} is missing", where=where, remedy="copy it again"
            )
        if tensor.shape and 0 not in tensor.shape:
            run = 1
            for side, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
                if side != 1 and stride != run:
                    raise HilbertflowError(
                        f"its values do not lie in C order (shape {tensor.shape}, strides {tensor.strides})",
                        where=where, remedy="save tensor.contiguous() of it",
                    )  # fmt: skip
                run *= side
        width = DTYPE_BYTES[tensor.dtype]
        begin, nbytes = tensor.offset * DTYPE_BYTES[tensor.storage.dtype], prod(tensor.shape) * width
        if tensor.storage.dtype == "U8" and tensor.dtype != "U8":
            begin = tensor.offset * width  # offsets into an untyped storage count values of the tensor
        if begin + nbytes > info.file_size:
            what = f"bytes {begin:,} to {begin + nbytes:,} reach past its record of {info.file_size:,}"
            raise HilbertflowError(what, where=where, remedy="it is truncated or lies: copy it again")
        if info.filename not in self._begins:
            self._begins[info.filename] = _record_offset(self._location, info, where)
        return self._begins[info.filename] + begin, nbytes


def _record_offset(location: Location, info: zipfile.ZipInfo, where: str) -> int:
    """Byte of the file at which an uncompressed record begins: past its local header, whose length varies."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise HilbertflowError(f"its record {info.filename[:80]!r} is compressed or encrypted", where=where)
    size = location.size()
    inside = 0 <= info.header_offset <= size - 30  # a directory that lies may well put it before the file
    local = location.read("", info.header_offset, info.header_offset + 30) if inside else b""
    if local[:4] != b"PK\x03\x04":
        raise HilbertflowError(f"no record begins at byte {info.header_offset:,}", where=where, remedy="copy it again")
    begin = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if begin + info.file_size > size:
        what = f"its record reaches to byte {begin + info.file_size:,}, the file ends at {size:,}"
        raise HilbertflowError(what, where=where, remedy="it is truncated: copy it again")
    return begin


def _record(location: Location, infos: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    info = infos[name]
    if info.file_size > _MAX_PICKLE:
        raise HilbertflowError(f"has {info.file_size:,} bytes", where=f"{location.url}: {name[:80]}")
    begin = _record_offset(location, info, f"{location.url}: {name[:80]}")
    return location.read("", begin, begin + info.file_size)
