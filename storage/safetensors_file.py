"""The safetensors header, read strictly: where every tensor's bytes lie in the file, and nothing that does not add up.

Format: https://huggingface.co/docs/safetensors, "Format". Parsed here, not by the library, because the library keeps
the byte offsets to itself and reads from a local path only.
"""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.tensors import DTYPE_BYTES, TensorSpec, is_unicode

_MAX_HEADER = 100_000_000  # the limit of the reference implementation
_MAX_TENSORS = 100_000  # of one file; DeepSeek-V3 has 92,000 in 163 files
_MAX_RANK = 64
_FIELDS = {"dtype", "shape", "data_offsets"}


def safetensors_specs(location: Location) -> tuple[TensorSpec, ...]:
    """Tensors of one safetensors file in file order.

    Reads the header alone. Raises `HilbertflowError` naming the file and the byte or the tensor at fault: a header
    longer than the file or than 100 MB, invalid or ambiguous JSON, an unknown dtype, a shape that does not give the
    byte range, ranges that overlap, leave a hole or leave bytes over. A pickle or another format under this name is
    refused by its first bytes; nothing in it runs.
    """
    url, size = location.url, location.size()
    if size < 8:
        raise HilbertflowError("ends here, no safetensors file is that short", where=f"{url}: byte {size}")
    head = location.read("", 0, min(size, 16))
    _refuse_other_formats(head, url)
    length = int.from_bytes(head[:8], "little")
    if length > _MAX_HEADER or length > size - 8:
        what = f"the header claims {length:,} bytes, the file has {size:,}"
        raise HilbertflowError(
            what, where=f"{url}: byte 0", remedy="it is truncated or not a safetensors file: copy it again"
        )
    header = _parse(location.read("", 8, 8 + length), url)
    data, limit = 8 + length, size - 8 - length
    ranges = sorted((*_entry(name, entry, limit, url), name) for name, entry in header.items())
    at, previous, specs = 0, "", []
    for begin, end, dtype, shape, name in ranges:
        if begin != at:
            fault = "overlaps" if begin < at else f"leaves {begin - at} bytes unused after"
            before = f"tensor {_short(previous)}" if previous else "the header"
            raise HilbertflowError(
                f"tensor {_short(name)} {fault} {before}", where=f"{url}: byte {data + begin}",
                remedy="the file was written wrongly: save the model again",
            )  # fmt: skip
        specs.append(TensorSpec(name, dtype, shape, "other", url, data + begin, end - begin))
        at, previous = end, name
    if at != limit:
        raise HilbertflowError(
            f"{limit - at} bytes after the last tensor belong to none", where=f"{url}: byte {data + at}",
            remedy="the file was written wrongly: save the model again",
        )  # fmt: skip
    return tuple(specs)


def safetensors_metadata(location: Location) -> dict[str, str]:
    """The ``__metadata__`` of a file that :func:`safetensors_specs` has accepted: text by text."""
    length = int.from_bytes(location.read("", 0, 8), "little")
    metadata: dict[str, str] = json.loads(location.read("", 8, 8 + length)).get("__metadata__", {})
    return metadata


def _refuse_other_formats(head: bytes, url: str) -> None:
    names = {b"PK\x03\x04": "a zip archive (PyTorch's .pt or .npz)", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file",
             b"\x93NUMPY": "a NumPy file", b"version https:": "a Git LFS pointer"}  # fmt: skip
    for magic, name in names.items():
        if head.startswith(magic):
            raise HilbertflowError(f"is {name}, not safetensors", where=f"{url}: byte 0")
    # Protocols 2 to 5 begin with 0x80 and their number, and a header of a file that exists begins with "{" at byte 8.
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5 and head[8:9] != b"{":
        raise HilbertflowError(
            "is a Python pickle, not safetensors; it was not executed", where=f"{url}: byte 0",
            remedy="convert it with safetensors.torch.save_file on a machine that trusts it",
        )  # fmt: skip


def _parse(raw: bytes, url: str) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise HilbertflowError("the header is not a JSON object", where=f"{url}: byte 8")
    # Each bracket or comma becomes a Python object of some 60 bytes: count them before they are made.
    if raw.count(b"{") > _MAX_TENSORS or raw.count(b"[") > 2 * _MAX_TENSORS or raw.count(b",") > 8 * _MAX_TENSORS:
        raise HilbertflowError(f"the header lists more than {_MAX_TENSORS:,} tensors", where=f"{url}: byte 8")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise HilbertflowError(
                f"the header names {_short(twice)} twice", where=f"{url}: byte {_second(raw, twice)}"
            )
        return result

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise HilbertflowError("the header is not UTF-8", where=f"{url}: byte {8 + error.start}") from error
    except json.JSONDecodeError as error:
        at = 8 + len(error.doc[: error.pos].encode())
        raise HilbertflowError(f"the header is not JSON: {error.msg}", where=f"{url}: byte {at}") from error
    except HilbertflowError:
        raise
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets 10,000 deep
        raise HilbertflowError(f"the header is not JSON: {str(error)[:80]}", where=f"{url}: byte 8") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HilbertflowError("is not a map of strings", where=f"{url}: __metadata__ of the header")
    return dict(header)


def _entry(name: str, entry: Any, limit: int, url: str) -> tuple[int, int, str, tuple[int, ...]]:
    """Begin, end, dtype and shape of one tensor, checked against each other."""
    try:
        return _checked(entry, limit, name)
    except HilbertflowError as error:
        raise HilbertflowError(error.what, where=f"{url}: tensor {_short(name)}", remedy=error.remedy) from error


def _checked(entry: Any, limit: int, name: str) -> tuple[int, int, str, tuple[int, ...]]:
    if not is_unicode(name):
        raise HilbertflowError("the name is not valid Unicode")
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise HilbertflowError("its header entry needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise HilbertflowError(f"unknown dtype {_short(dtype)}", remedy=f"known: {', '.join(DTYPE_BYTES)}")
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise HilbertflowError(f"shape {_short(shape)} is not a short list of natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise HilbertflowError(f"data_offsets {_short(offsets)} is not a pair of natural numbers")
    begin, end = offsets
    if not begin <= end <= limit:
        what = f"data_offsets {_short(offsets)} point outside the {limit:,} bytes of data"
        raise HilbertflowError(what, remedy="the file is truncated or lies: copy it again")
    if prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        what = f"shape {_short(shape)} of {dtype} does not give the {end - begin:,} bytes that data_offsets cover"
        raise HilbertflowError(what)
    return begin, end, dtype, tuple(shape)


def _second(raw: bytes, name: str) -> int:
    """The byte at which a name comes the second time, in quotes and as most writers spell it; else the header's."""
    quoted = json.dumps(name, ensure_ascii=False).encode(errors="replace")
    return 8 + max(0, raw.find(quoted, raw.find(quoted) + 1))


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
