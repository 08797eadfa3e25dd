"""Commands that serve and that measure: serve, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import console

BENCHES = "weights, lineage, embeddings, search, build, cold, serve, soak, pipeline, memory, models, or all"


def serve(
    config: Annotated[str, typer.Argument(help="A YAML file that names the collections and where to listen.")],
) -> None:
    """Serve collections over HTTP.

    Runs until it is interrupted.
    """
    from cluster.running import run_forever

    run_forever(config)


def bench(
    name: Annotated[str, typer.Argument(help=f"Which: {BENCHES}.")],
    quick: Annotated[bool, typer.Option("--quick", help="Less data, fewer settings.")] = False,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the tables there too.")] = None,
    plots: Annotated[str | None, typer.Option("--plots", metavar="DIR", help="Draw what can be drawn there.")] = None,
) -> None:
    """Measure, beside controls and those peers that are installed: pip install 'hilbertflow[bench]'."""
    if name not in BENCHES.replace("or ", "").split(", "):
        raise typer.BadParameter(f"'{name}' is none of {BENCHES}")
    import json
    from importlib import import_module
    from inspect import signature
    from pathlib import Path

    from pipelines.bench import MODULES

    chosen = list(MODULES) if name == "all" else [name]
    from pipelines.bench.chart import draw
    from pipelines.bench.report import as_json, show

    said = {}
    for bench in chosen:
        run = import_module(MODULES[bench]).run
        tables = []
        for table in run(quick, plots=Path(plots)) if plots and "plots" in signature(run).parameters else run(quick):
            show([table])  # as soon as it is there: the next one may take minutes
            tables.append(table)
        said[bench] = as_json(tables)
        if plots is not None:
            for path in draw(tables, Path(plots)):
                console.say(str(path))
    if json_file is not None:
        Path(json_file).write_text(json.dumps(said, indent=1) + "\n")
