"""Pictures as queries on the wire: base64 in JSON, a form with files, or one file as the body.

In:  application/json       {"images": ["iVBORw0…", …], "k": 10}
     multipart/form-data    every file is a picture; other fields are options, as in the URL
     image/jpeg, image/png  one picture; options in the URL
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cluster.config import Limits
from cluster.problems import Refused
from operators.errors import HilbertflowError
from operators.pictures import TooLarge, measured

FIELDS, FIELD_BYTES = 32, 1 << 16


class _InMemory(MultiPartParser):
    """The body is bounded already; no file of it goes to disk."""

    spool_max_size = 1 << 62


async def read_form(content_type: str, body: bytes, limits: Limits) -> tuple[list[bytes], dict[str, str]]:
    """Files and fields of a form; raises `HilbertflowError` for what is none, 413 for too many files."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers({"content-type": content_type})
    parser = _InMemory(headers, whole(), max_files=limits.images, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(limits) from None
        raise HilbertflowError(f"is not a form ({error.message[:100]})", where="body") from None
    files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    if not files:
        raise HilbertflowError("the form holds no file", where="body", remedy="send a file field with a JPEG or PNG")
    return files, fields


def check_pictures(files: Sequence[bytes], limits: Limits) -> None:
    """Judge pictures by their length and by their headers alone, before a pixel is unpacked.

    413 beyond the limits; `HilbertflowError` for what is neither JPEG nor PNG.
    """
    if len(files) > limits.images:
        raise _too_many(limits)
    for number, data in enumerate(files):
        where = f"images.{number}"
        if len(data) > limits.image_bytes:
            raise Refused(413, f"the picture has {len(data):,} bytes; the limit is {limits.image_bytes:,}",
                          where=where, remedy="scale it down")  # fmt: skip
        try:
            width, height = measured(data, where)
        except TooLarge as error:  # for any service
            raise _too_many_pixels(error.size, where, limits) from None
        if width * height > limits.image_pixels:
            raise _too_many_pixels(f"{width:,} × {height:,} pixels", where, limits)


def _too_many_pixels(size: str, where: str, limits: Limits) -> Refused:
    return Refused(
        413, f"the picture has {size}; the limit is {limits.image_pixels:,}", where=where, remedy="scale it down"
    )  # fmt: skip


def _too_many(limits: Limits) -> Refused:
    return Refused(413, f"more than {limits.images} pictures at once", remedy=f"send {limits.images} at most")
