"""Damaged files surface in other people's parsers under every name there is; here they get one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

from operators.errors import HilbertflowError


def json_byte(error: Exception) -> int:
    """The byte at which a text that `json.loads` refused goes wrong; 0 where it does not tell."""
    if isinstance(error, UnicodeDecodeError):
        return error.start
    if isinstance(error, json.JSONDecodeError):
        return len(error.doc[: error.pos].encode(errors="surrogatepass"))
    return 0


@contextlib.contextmanager
def damage(what: str, where: str | Callable[[], str], remedy: str = "copy it again") -> Iterator[None]:
    """Turn any exception of a block that parses a file by a library into a `HilbertflowError`.

    The block should do nothing else: every exception is taken for damage, mistakes of our own too.

    Parameters
    ----------
    what: what the failure means, as "is not a Parquet file"; the reason follows it.
    where: the file, and the place in it; a function where the place has to be looked for.
    remedy: what the user can do.
    """
    try:
        yield
    except HilbertflowError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        place = where if isinstance(where, str) else where()
        raise HilbertflowError(f"{what}: {reason}", where=place, remedy=remedy) from error
