"""Commands that serve and that measure: serve, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Json, later

BENCHES = "weights, lineage, embeddings, search, cold, serve, pipeline, models, or all"


def serve(
    config: Annotated[str, typer.Argument(help="A YAML file that names the collections and where to listen.")],
) -> None:
    """Serve collections over HTTP.

    Runs until it is interrupted.
    """
    from cluster.serve_app import run_forever

    run_forever(config)


def bench(
    name: Annotated[str, typer.Argument(help=f"Which: {BENCHES}.")],
    quick: Annotated[bool, typer.Option("--quick", help="Less data, the same figures.")] = False,
    as_json: Json = False,
) -> None:
    """Measure, beside peers and controls."""
    if name not in BENCHES.replace("or ", "").split(", "):
        raise typer.BadParameter(f"'{name}' is none of {BENCHES}")
    raise later(f"bench {name}", "this benchmark")
