"""The one error that bad input raises: a single line that names what, where and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class HilbertflowError(ValueError):
    """Input, archive or request that cannot be used.

    Parameters
    ----------
    what: what is wrong, in a few words, without a trailing full stop.
    where: the file, object, key or line at fault; empty when the command line itself is at fault.
    remedy: what the user can do about it; empty when there is nothing to do.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return " ".join((f"{line}; {self.remedy}" if self.remedy else line).split())

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments: Ray carries errors between processes
        return _rebuild, (self.what, self.where, self.remedy)


def at(file: str, *place: str | int) -> str:
    """``FILE: part, part``: how every reader names a file and the place in it, the larger part first.

    A number is a byte, counted from 0: of the file, or of the part of it that is named before.
    """
    return f"{file}: {', '.join(part if isinstance(part, str) else f'byte {part}' for part in place)}"


@contextlib.contextmanager
def placed(file: str, *place: str | int) -> Iterator[None]:
    """Give the errors of a block that name no place in ``file`` this one."""
    try:
        yield
    except HilbertflowError as error:
        if error.where.startswith(f"{file}: "):
            raise
        raise HilbertflowError(error.what, where=at(file, *place), remedy=error.remedy) from error


def _rebuild(what: str, where: str, remedy: str) -> HilbertflowError:
    return HilbertflowError(what, where=where, remedy=remedy)
