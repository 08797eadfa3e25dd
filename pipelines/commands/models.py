"""Commands on the models under a root: similar."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import console
from pipelines.commands.options import Json

RootUrl = Annotated[str, typer.Argument(metavar="URL", help="A root of archives: a directory or a URL.")]


def similar(
    url: RootUrl,
    model: Annotated[str, typer.Argument(help="Name of an archived model.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many.")] = 10,
    as_json: Json = False,
) -> None:
    """Find the models most like one, by their signatures: no weights are read.

    The score is about 0 for an unrelated model, and 1 for the same weights in whatever order of neurons. The difference
    is the length of what was changed over the length of the weights, neurons as they lie.
    """
    from cluster.model_root import ModelRoot

    root = ModelRoot(url)
    found = root.nearest(model, k)
    if as_json:
        console.print_json({"model": model, "method": "signature", "models": [item.as_dict() for item in found]})
        return
    if not found:
        console.say(f"{model} is the only model here")
        return
    kinds = list(dict.fromkeys(kind for item in found for kind in item.by_kind))
    console.table(
        ("rank", "score", "model", "difference", "layers", *kinds),
        [
            (rank, f"{item.score:.4f}", item.name, "" if item.distance is None else f"{item.distance:.4f}",
             item.layers or "", *(f"{item.by_kind[kind]:.3f}" if kind in item.by_kind else "" for kind in kinds))
            for rank, item in enumerate(found, 1)
        ],
    )  # fmt: skip
