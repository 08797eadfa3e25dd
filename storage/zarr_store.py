"""Zarr stores over the places that archives lie in, counting what is read through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

import storage.codecs as _codecs  # registers the codecs
from storage.fs import Location, Traffic

assert _codecs


class CountingStore(WrapperStore[Store]):
    """A read-only store that adds what it fetches to a :class:`Traffic`."""

    def __init__(self, store: Store, traffic: Traffic) -> None:
        super().__init__(store)
        self.traffic = traffic

    def _with_store(self, store: Store) -> CountingStore:
        return CountingStore(store, self.traffic)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Fetch one object or range."""
        value = await self._store.get(key, prototype, byte_range)
        self.traffic.add(1, read=len(value) if value is not None else 0)
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Fetch many ranges."""
        values = await self._store.get_partial_values(prototype, key_ranges)
        self.traffic.add(len(values), read=sum(len(v) for v in values if v is not None))
        return values


def read_store(place: Location) -> CountingStore:
    """A read-only store of the archive at ``place``.

    Object stores get an asynchronous file system of their own, apart from the synchronous one that the rest of
    storage uses: s3fs sessions belong to one event loop.
    """
    local = place.local_path
    inner: Store
    if local is not None:
        inner = LocalStore(local, read_only=True)
    else:
        options: dict[str, Any] = {} if place.url.startswith("memory://") else {"skip_instance_cache": True}
        inner = FsspecStore.from_url(place.url, storage_options=options, read_only=True)
    return CountingStore(inner, place.traffic)
