"""Look at a tensor: its planes as a picture or as a video, one plane a frame."""

from __future__ import annotations

from pathlib import Path

from operators.errors import HilbertflowError
from storage import archive, picture
from storage.archive import Level
from storage.fs import Location
from storage.model import ModelArchive


def export(url: str, name: str, out: str, level: Level = "exact", fps: float = 8.0) -> int:
    """Write planes of a tensor to ``out``; returns how many.

    ``.png`` tiles the first 64 planes, ``.mp4`` (H.264, played by browsers) shows one plane a frame, at most 2,048.
    Each plane holds side² consecutive values along the Hilbert curve, so that what is near in the tensor is near in
    the picture; grey is zero.
    """
    handle = archive.open(url)
    if not isinstance(handle, ModelArchive):
        raise HilbertflowError("is a collection; it has no tensors to look at", where=handle.url)
    handle.check_level(level)
    suffix = Path(out).suffix
    if suffix not in (".png", ".mp4"):
        raise HilbertflowError(f"no picture has the suffix {suffix!r}", where=out, remedy="use OUT.png or OUT.mp4")
    tensor = handle[name]
    data, planes = picture.png(tensor, level) if suffix == ".png" else picture.mp4(tensor, level, fps)
    Location(out).write_atomic("", data)
    return planes
