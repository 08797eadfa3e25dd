"""What a collection's rows are coded with, as small Zarr arrays below ``code/``, each one chunk in one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from operators.errors import HilbertflowError
from operators.raw import KINDS
from storage.codecs import RansCodec
from storage.zarr_documents import contents

FOLDER = "code"


def documents(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    """Objects by key that hold the arrays: integers through rANS, a column after the other, floats as they are.

    Low bits that are zero in all of an array's integers are left out; its attribute ``zeros`` says how many.
    """
    store = MemoryStore()
    group = zarr.create_group(store).create_group(FOLDER)
    for name, array in sorted(arrays.items()):
        zeros = _zeros(array)
        codec: ArrayBytesCodec = RansCodec() if array.dtype in KINDS else BytesCodec()
        filters: list[ArrayArrayCodec] = [TransposeCodec(order=(1, 0))] if array.ndim == 2 else []
        made = group.create_array(
            name, shape=array.shape, dtype=array.dtype, chunks=tuple(max(1, n) for n in array.shape), fill_value=0,
            serializer=codec, compressors=[Crc32cCodec()], filters=filters,
            attributes={"zeros": zeros} if zeros else {},
        )  # fmt: skip
        made[...] = array >> zeros if zeros else array
    return {key: data for key, data in sorted(contents(store).items()) if key != "zarr.json"}


def load(held: Mapping[str, bytes], where: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name, from all their objects; ``where`` is how an error calls the archive."""
    mine = {key: data for key, data in held.items() if key.startswith(f"{FOLDER}/")}
    store = MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in mine.items()}, read_only=True)
    names = [key.split("/")[1] for key in mine if key.endswith("/zarr.json") and key.count("/") == 2]
    try:
        return {name: _whole(zarr.open_array(store, path=f"{FOLDER}/{name}", mode="r")) for name in names}
    except ValueError as error:
        raise HilbertflowError(
            "damaged", where=f"{where}/{FOLDER}", remedy="`hilbertflow verify` names the object"
        ) from error  # fmt: skip


def _zeros(array: npt.NDArray[Any]) -> int:
    if array.dtype.kind not in "iu":
        return 0
    every = int(np.bitwise_or.reduce(np.abs(array.astype(np.int64)), axis=None)) if array.size else 0
    return (every & -every).bit_length() - 1 if every else 0


def _whole(array: zarr.Array[Any]) -> npt.NDArray[Any]:
    zeros = array.attrs.get("zeros", 0)
    if not isinstance(zeros, int) or not 0 <= zeros < 8 * array.dtype.itemsize:
        raise ValueError("zeros")
    values = np.asarray(array[...])
    return values << zeros if zeros else values
