"""Zarr stores over the places that archives lie in, counting what is read through them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

import storage.codecs as _codecs  # registers the codecs
from operators.errors import HilbertflowError
from storage.fs import Location, file_system, tries
from storage.fs_errors import explained, is_storage_fault

assert _codecs
_T = TypeVar("_T")


class CheckingStore(WrapperStore[Store]):
    """A read-only store that counts what it fetches and lets nothing missing pass for fill values.

    Parameters
    ----------
    place: of the group; its traffic counts what is fetched.
    heads: SHA-256 of whole objects by key: they must be as written.
    may_lack: of any other key, whether no such object means that there is nothing to tell.
    """

    def __init__(
        self, store: Store, place: Location, heads: Mapping[str, str], may_lack: Callable[[str], bool]
    ) -> None:
        super().__init__(store)
        self.place, self.heads, self.may_lack = place, heads, may_lack

    def _with_store(self, store: Store) -> CheckingStore:
        return CheckingStore(store, self.place, self.heads, self.may_lack)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Fetch one object or range; HilbertflowError when it is missing or not what was written."""
        value = await self._asked(key, lambda: self._store.get(key, prototype, byte_range))
        self.place.traffic.add(1, read=len(value) if value is not None else 0)
        if value is None and (key in self.heads or not self.may_lack(key)):
            raise HilbertflowError("is missing", where=key)
        head = byte_range is None and key in self.heads
        if value is not None and head and hashlib.sha256(value.to_bytes()).hexdigest() != self.heads[key]:
            raise HilbertflowError("its checksum differs", where=key)
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Fetch many ranges."""
        wanted = list(key_ranges)
        where = wanted[0][0] if wanted else ""
        values = await self._asked(where, lambda: self._store.get_partial_values(prototype, wanted))
        self.place.traffic.add(len(values), read=sum(len(v) for v in values if v is not None))
        return values

    async def _asked(self, key: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask within the budget of the storage edge; its faults are explained, with the key's URL."""
        try:
            async for retry in tries():
                with retry:
                    return await ask()
        except Exception as error:
            if isinstance(error, HilbertflowError) or not is_storage_fault(error):
                raise
            raise explained(error, f"{self.place.url}/{key}", "read") from error
        raise AssertionError("a retry context ends by a result or by an error")


def read_store(
    place: Location, heads: Mapping[str, str] = MappingProxyType({}), may_lack: Callable[[str], bool] = lambda _: True
) -> CheckingStore:
    """A read-only store of the group at ``place``, checked as :class:`CheckingStore` says.

    Object stores get an asynchronous file system of their own, apart from the synchronous one that the rest of
    storage uses: s3fs sessions belong to one event loop.
    """
    local = place.local_path
    inner: Store
    if local is not None:
        inner = LocalStore(local, read_only=True)
    else:
        options: dict[str, Any] = {} if place.url.startswith("memory://") else {"skip_instance_cache": True}
        system, path = file_system(place.url, asynchronous=True, **options)
        system = system if system.async_impl else AsyncFileSystemWrapper(system, asynchronous=True)
        inner = FsspecStore(system, read_only=True, path=path)
    return CheckingStore(inner, place, heads, may_lack)
