"""Damaged files surface in other people's parsers under every name there is; here they get one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from operators.errors import HilbertflowError


@contextlib.contextmanager
def damage(what: str, where: str, remedy: str = "copy it again") -> Iterator[None]:
    """Turn any exception of a block that parses a file by a library into a `HilbertflowError`.

    The block should do nothing else: every exception is taken for damage, mistakes of our own too.

    Parameters
    ----------
    what: what the failure means, as "is not a Parquet file"; the reason follows it.
    where: the file, and the place in it.
    remedy: what the user can do.
    """
    try:
        yield
    except HilbertflowError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise HilbertflowError(f"{what}: {reason}", where=where, remedy=remedy) from error
