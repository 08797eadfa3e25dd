"""HTTP by fsspec, whose answers to ranges are checked."""

from __future__ import annotations

from typing import Any

from fsspec.implementations.http import HTTPFileSystem

from storage.replies import check_reply


class Http(HTTPFileSystem):  # type: ignore[misc]
    """The file system behind ``http://`` and ``https://``; options are those of fsspec."""

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if start is not None and start == end:
            return b""
        options = self.kwargs | more
        headers = dict(options.pop("headers", {})) | {"Accept-Encoding": "identity"}
        asked = None
        if start is not None or end is not None:
            headers["Range"] = asked = await self._process_limits(url, start, end)
        session = await self.set_session()
        async with session.get(self.encode_url(url), headers=headers, **options) as reply:
            self._raise_not_found_for_status(reply, url)
            check_reply(asked, reply.status, reply.headers.get("Content-Range"), reply.content_length)
            return bytes(await reply.read())
