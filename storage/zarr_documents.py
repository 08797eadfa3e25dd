"""The ``zarr.json`` documents of an archive, as stock zarr writes them."""

from __future__ import annotations

import zarr
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from storage.codecs import CODECS, RansCodec
from storage.spec import TOGETHER, ArchiveSpec


def documents(spec: ArchiveSpec) -> dict[str, bytes]:
    """By key, of the group and of its arrays."""
    store = MemoryStore()
    attributes = {"hilbertflow": {**spec.attributes, "kind": spec.kind, "identity": spec.identity}}
    group = zarr.create_group(store, attributes=attributes)
    for array in spec.arrays:
        codec: ArrayBytesCodec = RansCodec(array.tables) if array.tables else CODECS[array.coder]()
        outer = (array.chunk[0] * array.shard, *array.chunk[1:])
        sharded = array.name not in TOGETHER
        group.create_array(
            array.name, shape=array.shape, dtype=array.dtype, fill_value=0,
            chunks=array.chunk if sharded else outer, shards=outer if sharded else None,
            serializer=codec, compressors=[Crc32cCodec()], filters=[],
        )  # fmt: skip
    return {key: data for key, data in sorted(contents(store).items()) if key.endswith("zarr.json")}


def contents(store: MemoryStore) -> dict[str, bytes]:
    """Every object of a store by key."""

    async def collect() -> dict[str, bytes]:
        found = {}
        async for key in store.list():
            value = await store.get(key, zarr.core.buffer.default_buffer_prototype())
            if value is not None:
                found[key] = value.to_bytes()
        return found

    return sync(collect())
