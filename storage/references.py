"""URLs that name an installed package or a Hugging Face repository, and where their files lie on this machine."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from operators.errors import HilbertflowError

_REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")


def package_path(url: str) -> str:
    """Local path of ``package://DISTRIBUTION/path/below/site-packages``.

    The package is found by its metadata and never imported, so that a checkpoint shipped as a Python package can be
    read without running its code. Raises when the distribution is not installed or has no such file.
    """
    name, _, inner = url.removeprefix("package://").partition("/")
    parts = [part for part in inner.split("/") if part]
    if not name or ".." in parts:
        raise HilbertflowError("is not of the form package://NAME/path", where=url)
    install = f"pip install --no-deps {name}"
    candidates: list[Path] = []
    # Vendored code has no metadata; the import system may know it all the same.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        candidates.append(Path(str(importlib.metadata.distribution(name).locate_file("/".join(parts)))))
    top = parts[0] if parts else name.replace("-", "_")
    if top.isidentifier() and (spec := _spec(top)) is not None:
        candidates += [Path(place, *parts[1:]) for place in spec.submodule_search_locations or ()]
        if spec.origin and not spec.submodule_search_locations:
            candidates.append(Path(spec.origin))
    if not candidates:
        raise HilbertflowError(f"the package {name} is not installed", where=url, remedy=install)
    for candidate in candidates:
        if candidate.exists():
            return str(candidate)
    raise HilbertflowError(f"the installed package {name} has no {'/'.join(parts)}", where=url, remedy=install)


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)  # of a top-level name: nothing is imported
    except (ImportError, ValueError):
        return None


def hub_snapshot(url: str) -> str | None:
    """Local directory of ``hf://ORG/NAME[@REVISION][/PATH]`` in Hugging Face's cache, or None when it is not cached.

    Nothing is downloaded.
    """
    parts = url.removeprefix("hf://").removeprefix("models/").strip("/").split("/")
    repository, _, revision = "/".join(parts[:2]).partition("@")
    if parts[0] in ("datasets", "spaces") or not _REPOSITORY.match(repository):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        root = snapshot_download(repository, revision=revision or None, local_files_only=True)
    except HFValidationError as error:
        raise HilbertflowError(f"is not a Hugging Face repository ({error})", where=url) from error
    except (LocalEntryNotFoundError, OSError):
        return None
    place = os.path.join(str(root), *parts[2:])
    return place if os.path.exists(place) else None


def local_url(url: str) -> str:
    """The local path that a ``package://`` URL or a cached ``hf://`` URL stands for; any other URL unchanged."""
    if url.startswith("package://"):
        return package_path(url)
    if url.startswith("hf://"):
        return hub_snapshot(url) or url
    return url
