"""S3 by s3fs, with three differences: answers are checked, one request is one request, and what is sent is counted.

s3fs repeats a request up to five times, botocore within it five times more, and whoever reads repeats again: a server
that is down would be asked a hundred times. Here only the storage edge repeats (:mod:`storage.fs`).
"""

from __future__ import annotations

import errno
from typing import Any

from s3fs import S3FileSystem

from storage import s3_meter
from storage.replies import READ_TIMEOUT_S, check_reply

CONFIG = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
_BUSY = frozenset({"InternalError", "ServiceUnavailable", "SlowDown"})


class S3(S3FileSystem):  # type: ignore[misc]
    """The file system behind ``s3://``; options are those of s3fs."""

    retries = 1
    read_timeout = READ_TIMEOUT_S

    def __init__(self, *args: Any, config_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, config_kwargs=CONFIG | (config_kwargs or {}), **options)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        """Bytes of an object. The whole is asked for as a range too: only then an answer tells how much that is."""
        if start is not None or end is not None:
            return bytes(await super()._cat_file(path, start=start, end=end, **more))
        try:
            return bytes(await super()._cat_file(path, start=0, **more))
        except OSError as error:
            if "satisfiable" in str(error) and (await self._info(path, refresh=True))["size"] == 0:
                return b""  # an empty object has no range
            raise

    async def _call_s3(self, method: str, *more: Any, **options: Any) -> Any:
        asked: dict[str, Any] = {}
        for part in (*more, options):
            asked |= part
        s3_meter.sent(method, asked)
        reply = await super()._call_s3(method, *more, **options)
        if method == "get_object":
            status = reply["ResponseMetadata"]["HTTPStatusCode"]
            try:
                check_reply(asked.get("Range"), status, reply.get("ContentRange"), reply.get("ContentLength"))
            except OSError:
                reply["Body"].close()  # what follows on this connection is not wanted
                raise
            s3_meter.received(asked, int(reply.get("ContentLength") or 0))
        elif method == "delete_objects" and reply.get("Errors"):  # s3fs lets them pass in silence
            _refused(reply["Errors"][0])
        return reply


def _refused(what: dict[str, str]) -> None:
    text = f"{what.get('Key')}: {what.get('Message') or what.get('Code')}"
    raise OSError(errno.EBUSY, text) if what.get("Code") in _BUSY else PermissionError(text)
