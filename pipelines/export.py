"""Look at a tensor: its planes as a picture or as a video, one plane a frame."""

from __future__ import annotations

from pathlib import Path

from operators.errors import HilbertflowError
from operators.vector_code import VectorLadder
from storage import archive, picture, tree_picture
from storage.fs import Location
from storage.handle import Level
from storage.model import ModelArchive


def export(url: str, name: str, out: str, level: Level = "exact", fps: float = 8.0, chain: bool = False) -> int:
    """Write planes of a tensor to ``out``; returns how many pictures there are in it.

    ``.png`` tiles the first 64 planes, ``.mp4`` (H.264, played by browsers) shows one plane a frame, at most 2,048;
    with ``chain`` its first plane in every checkpoint of the archive's chain. Each plane holds side² consecutive values
    along the Hilbert curve, so that what is near in the tensor is near in the picture; grey is zero. ``.svg`` with the
    name ``codebook`` draws the tree of an archive that a vector codebook made.
    """
    handle = archive.open(url)
    if not isinstance(handle, ModelArchive):
        raise HilbertflowError("is a collection; it has no tensors to look at", where=handle.url)
    handle.check_level(level)
    suffix = Path(out).suffix
    if suffix not in (".png", ".mp4", ".svg"):
        raise HilbertflowError(f"no picture has the suffix {suffix!r}", where=out, remedy="use OUT.png or OUT.mp4")
    if suffix == ".svg":
        data, pictures = _codebook(handle, name), 1
    elif chain:
        if suffix != ".mp4":
            raise HilbertflowError("a chain is shown as a video", where=out, remedy="use OUT.mp4")
        data, pictures = picture.chain_mp4(handle[name])
    elif suffix == ".png":
        data, pictures = picture.png(handle[name], level)
    else:
        data, pictures = picture.mp4(handle[name], level, fps)
    Location(out).write_atomic("", data)
    return pictures


def _codebook(handle: ModelArchive, name: str) -> bytes:
    if name != "codebook" or not isinstance(handle.ladder, VectorLadder):
        raise HilbertflowError("only the codebook of an archive made with vq is drawn as SVG", where=handle.url,
                               remedy="use OUT.png or OUT.mp4 for tensors")  # fmt: skip
    return tree_picture.svg(handle.ladder.tree, f"Codebook of {handle.name}")
