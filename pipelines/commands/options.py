"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

import typer

GRACE_HOURS = 1.0
"""So long `gc` leaves what nothing owns where it is, unless it is told otherwise: somebody may be at work."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Url = Annotated[str, typer.Argument(help="An archive, or a root that holds just one: a directory or a URL.")]
Root = Annotated[str, typer.Argument(help="A root of archives, or one archive: a directory or a URL.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, such as operators.2.sqnr_db=24. Repeatable."),
]


class Tier(str, Enum):  # noqa: UP042 - typer shows a str enum by value
    """Where a search looks."""

    auto = "auto"
    exact = "exact"
    cold = "cold"
    ivfpq = "ivfpq"
    hnsw = "hnsw"


def level(text: str) -> int | Literal["exact"]:
    """``exact`` or the number of a level."""
    if text == "exact":
        return "exact"
    if text.isascii() and text.isdigit() and len(text) < 4:
        return int(text)
    raise typer.BadParameter(f"'{text}' is no level; write a number from 0, or exact")
