"""Decode pictures that came from anywhere: JPEG and PNG, their size known before a pixel is."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from operators.errors import HilbertflowError, at

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG")

T = TypeVar("T")


class TooLarge(HilbertflowError):
    """A picture of more pixels than `MAX_PIXELS`; size: in words."""

    def __init__(self, where: str, size: str) -> None:
        super().__init__(f"has {size}; {MAX_PIXELS:,} are the most", where=where, remedy="scale it down")
        self.size = size


def need_pillow() -> None:
    """Raise when Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401 - to see that it is there
    except ImportError as error:
        raise HilbertflowError("pictures need Pillow", remedy="pip install 'hilbertflow[formats]'") from error


def decode(data: bytes, where: str = "picture") -> Image:
    """The picture as RGB, turned as its EXIF says; transparency is laid on white.

    Raises `HilbertflowError` for anything but a whole JPEG or PNG of at most 100 million pixels. The size is judged
    from the header: a small file that would unfold to gigabytes is refused before it does. The error names the byte at
    which reading stopped.
    """
    from PIL import ImageOps

    return _opened(data, where, lambda image: _flat(ImageOps.exif_transpose(image)))


def measured(data: bytes, where: str = "picture") -> tuple[int, int]:
    """Width and height as the header tells them; no pixel is unpacked. Raises as `decode` does for what it can tell."""
    return _opened(data, where, lambda image: image.size)


def check(data: bytes, where: str = "picture") -> None:
    """Raise as `decode` would; a JPEG is decoded small, which is enough to see that it is whole."""

    def load(image: Image) -> Image:
        image.draft("RGB", (64, 64))
        image.load()
        return image

    _opened(data, where, load)


def _opened(data: bytes, where: str, use: Callable[[Image], T]) -> T:
    need_pillow()
    import PIL.Image as pillow

    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # the limit here is ours
            with pillow.open(stream, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise TooLarge(at(where, stream.tell()), f"{width:,} × {height:,} pixels")
                return use(image)
    except HilbertflowError:
        raise
    except pillow.DecompressionBombError as error:
        raise TooLarge(at(where, stream.tell()), "far too many pixels") from error
    except Exception as error:  # a broken picture surfaces under many names, in a library that is not ours
        reason = re.sub(r"\s*<_io\.BytesIO[^>]*>", "", " ".join(str(error).split()))[:100]
        raise HilbertflowError(f"is no picture that can be read: {reason}", where=at(where, stream.tell())) from error


def _flat(image: Image) -> Image:
    import PIL.Image as pillow

    if not image.has_transparency_data:
        return image.convert("RGB")
    full = image.convert("RGBA")
    white = pillow.new("RGBA", full.size, "white")
    return pillow.alpha_composite(white, full).convert("RGB")
