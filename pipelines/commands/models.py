"""Commands on the models under a root: similar, and those of `models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands.options import Json

if TYPE_CHECKING:
    from cluster.model_root import ModelRoot
    from storage.fs import Location

RootUrl = Annotated[str, typer.Argument(metavar="URL", help="A root of archives: a directory or a URL.")]


def similar(
    url: RootUrl,
    model: Annotated[str, typer.Argument(help="Name of an archived model.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many.")] = 10,
    method: Annotated[
        str,
        typer.Option(
            help="signature; exact, all weights read; features, planes as pictures; temporal, with the models archived "
            "just before and after; or hybrid, signature and features."
        ),
    ] = "signature",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Score by every method; tell how each agrees with the truth, and with exact."),
    ] = False,
    explain: Annotated[
        str, typer.Option(metavar="OTHER", help="Tell in which layers MODEL and this one differ, and how.")
    ] = "",
    picture: Annotated[
        str, typer.Option(metavar="OUT.svg", help="With --explain: draw it, a map of layers and kinds.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Find the models most like one; by their signatures no weights are read.

    The score is about 0 for an unrelated model, and 1 for the same weights in whatever order of neurons. The difference
    is the length of what was changed over the length of the weights, neurons as they lie.
    """
    from cluster.model_root import ModelRoot

    root = ModelRoot(url)
    if picture and not explain:
        raise typer.BadParameter("--picture needs --explain")
    if explain:
        _explain(root, model, explain, picture, as_json)
        return
    if compare:
        _compare(root, model, k, as_json)
        return
    if method != "signature":
        _by_method(root, model, method, k, as_json)
        return
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


def _by_method(root: ModelRoot, model: str, method: str, k: int, as_json: bool) -> None:
    from cluster.model_methods import METHODS, scored

    if method not in METHODS:
        raise typer.BadParameter(f"'{method}' is none of {', '.join(METHODS)}")
    scores = scored(method, root, root.check(model))
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
    if as_json:
        told = [{"name": name, "score": score} for name, score in best]
        console.print_json({"model": model, "method": method, "models": told})
        return
    rows = [(rank, f"{score:.4f}", name) for rank, (name, score) in enumerate(best, 1)]
    console.table(("rank", "score", "model"), rows)


def _compare(root: ModelRoot, model: str, k: int, as_json: bool) -> None:
    from cluster.method_comparison import compare

    told = compare(root, root.check(model))
    for why in told.left_out.values():
        console.note(f"left out: {why}")
    if as_json:
        precision = {name: told.precision(name) for name in told.scores}
        console.print_json(
            {"model": model, "scores": told.scores, "relatives": sorted(told.relatives),
             "strangers": sorted(told.strangers), "precision": precision if told.known else None,
             "agreement": {name: told.agreement(name) for name in told.scores}, "seconds": told.seconds}
        )  # fmt: skip
        return
    console.table(
        ("model", *told.scores),
        [(name, *(f"{scores[name]:.4f}" for scores in told.scores.values())) for name in told.best(k)],
    )
    figures = {name: (told.precision(name), told.agreement(name)) for name in told.scores}
    console.table(
        ("method", "average precision", "rank correlation with exact", "seconds"),
        [
            (name, *("" if figure is None else f"{figure:.3f}" for figure in figures[name]), f"{seconds:.2f}")
            for name, seconds in told.seconds.items()
        ],
    )
    console.say(told.truth)
    console.say("exact compares tensors by name and place: where neurons were moved, signature sees what it cannot")


def _explain(root: ModelRoot, first: str, second: str, picture: str, as_json: bool) -> None:
    from dataclasses import asdict

    from cluster.model_differences import by_layer, differences, heat_map
    from operators.errors import HilbertflowError

    if picture and not picture.endswith(".svg"):
        raise HilbertflowError("is no .svg file", where=picture)
    rows = differences(root.signature(root.check(first)), root.signature(root.check(second)))
    if picture:
        console.write(picture, heat_map(first, second, rows).encode())
    if as_json:
        console.print_json({"first": first, "second": second, "tensors": [asdict(row) for row in rows]})
        return
    console.table(
        ("where", "matrices", "score", "change", "mostly"),
        [
            (name, count, "" if score is None else f"{score:.4f}", "" if change is None else f"{change:.4f}", what)
            for name, count, score, change, what in by_layer(rows)
        ],
        title=f"{first} → {second}",
    )  # fmt: skip
    console.table(
        ("most changed", "score", "change", "what"),
        [
            (row.tensor, "" if row.score is None else f"{row.score:.4f}",
             "" if row.change is None else f"{row.change:.4f}", row.what)
            for row in rows[:10]
        ],
    )  # fmt: skip
    if picture:
        console.say(picture)


models = typer.Typer(
    no_args_is_help=True, help="The models under a root: list, show, tag, note, remove, export, compare."
)
Where = Annotated[
    str,
    typer.Option(metavar="EXPR", help="Only those for which it holds: 'parameters > 1000000 and \"prod\" in tags'."),
]
Model = Annotated[str, typer.Argument(help="Name of an archived model.")]


@models.command("ls")
def ls(url: RootUrl, where: Where = "", as_json: Json = False) -> None:
    """List the models: architecture, values, types, sizes, parent, tags."""
    listed = _listed(url, where)
    if as_json:
        console.print_json(listed)
        return
    if not listed:
        console.say("no models match" if where else "no models here; `hilbertflow run RECIPE` archives one")
        return
    console.table(
        ("model", "architecture", "parameters", "types", "source", "archived", "parent", "tags"),
        [
            (row["name"], row.get("architecture", ""), row.get("parameters"), ",".join(row.get("dtypes", ())),
             console.size(row["source_bytes"]), console.size(row["bytes"]), row.get("parent", ""),
             ",".join(row["tags"]))
            for row in listed
        ],
    )  # fmt: skip


@models.command("show")
def show(url: RootUrl, model: Model, as_json: Json = False) -> None:
    """All that is known of one model."""
    from datetime import UTC, datetime

    from cluster import registry
    from cluster.model_root import ModelRoot

    (row,) = registry.rows(ModelRoot(url), [model])
    if as_json:
        console.print_json(row)
        return
    plain = {key: value for key, value in row.items() if key not in ("notes", "archived", "levels", "kinds", "hyper")}
    plain["quality"] = ", ".join(f"{name} {value:.2f}" for name, value in row["quality"].items() if value is not None)
    plain |= {"dtypes": ", ".join(row.get("dtypes", ())), "tags": ", ".join(row["tags"])}
    if row["archived"] is not None:
        plain["archived"] = datetime.fromtimestamp(row["archived"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    console.facts((key.replace("_", " "), value) for key, value in plain.items())
    for title, table in (("values by kind", row.get("kinds", {})), ("bytes by level", row["levels"])):
        console.table((title, ""), list(table.items()))
    if row.get("hyper"):
        console.table(("hyper-parameter", ""), [(key, str(value)) for key, value in row["hyper"].items()])
    for note in row["notes"]:
        console.say(f"{datetime.fromtimestamp(note['written'], UTC):%Y-%m-%d %H:%M UTC}  {note['text']}")


@models.command("tag")
def tag(
    url: RootUrl,
    model: Model,
    tags: Annotated[list[str], typer.Argument(help="Tags to add.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them away instead.")] = False,
) -> None:
    """Add tags to a model, or take them away."""
    from storage import labels

    place = _place(url, model)
    for name in tags:
        if not remove:
            labels.tag(place, name)
        elif not labels.untag(place, name):
            console.note(f"{model} has no tag {name}")
    console.say(f"{model}: {', '.join(labels.read(place).tags) or 'no tags'}")


@models.command("note")
def note(url: RootUrl, model: Model, text: Annotated[str, typer.Argument(help="What to write down.")]) -> None:
    """Write something down about a model."""
    from storage import labels

    place = _place(url, model)
    labels.note(place, text)
    console.say(f"{model}: {console.count(len(labels.read(place).notes), 'note')}")


@models.command("rm")
def rm(
    url: RootUrl, model: Model, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:  # fmt: skip
    """Remove a model's archive. Refused while others are coded as differences to it."""
    from pipelines.commands.upkeep import rm as remove

    remove(_place(url, model).url, yes)


@models.command("export")
def export(
    url: RootUrl,
    out: Annotated[str, typer.Argument(help="A .csv or .json file.")],
    where: Where = "",
) -> None:
    """Write the list as CSV or JSON."""
    from cluster import registry
    from operators.errors import HilbertflowError

    if not out.endswith((".csv", ".json")):
        raise HilbertflowError("is neither .csv nor .json", where=out)
    listed = _listed(url, where)
    console.write(out, registry.exported(listed, "csv" if out.endswith(".csv") else "json"))
    console.say(f"{out}: {console.count(len(listed), 'model')}")


@models.command("stats")
def stats(url: RootUrl, where: Where = "", as_json: Json = False) -> None:
    """Count: models by architecture and type, values by kind, bytes."""
    from cluster import registry

    told = registry.statistics(_listed(url, where))
    if as_json:
        console.print_json(told)
        return
    console.facts((key.replace("_", " "), value) for key, value in told.items() if not isinstance(value, dict))
    for name, table in told.items():
        if isinstance(table, dict):
            console.table((name, "values" if name == "kinds" else "models"), list(table.items()))


@models.command("verify")
def verify(url: RootUrl, as_json: Json = False) -> None:
    """Recompute every checksum of every model, and see that the parents of children are there."""
    from cluster.integrity import checks
    from cluster.model_root import ModelRoot
    from operators.errors import HilbertflowError

    root, told = ModelRoot(url), []
    for name in root.rows:
        found: tuple[str, ...] = ()
        with console.progress(f"verifying {name}", in_bytes=True) as tick:
            try:
                for step in checks(root.handle(name)):
                    tick(step.done, step.total)
                    found = step.damaged
            except HilbertflowError as error:
                found = (str(error),)
        told.append({"model": name, "sound": not found, "damaged": list(found)})
        if not as_json:
            console.say(f"{name}: {'sound' if not found else 'DAMAGED'}")
            for line in found:
                console.fail(f"  {line}")
    if as_json:
        console.print_json(told)
    if not all(item["sound"] for item in told):
        raise typer.Exit(1)


@models.command("shared")
def shared(url: RootUrl, as_json: Json = False) -> None:
    """Tell which tensors are the same bit for bit in several models, and what storing them once would save."""
    from cluster import registry
    from cluster.model_root import ModelRoot

    root = ModelRoot(url)
    with console.progress("comparing") as tick:
        found = registry.shared({name: root.handle(name) for name in root.rows}, root.signature, tick)
    spare, source = sum(item.spare for item in found), sum(row["source_bytes"] for row in root.rows.values())
    if as_json:
        groups = [
            {"dtype": s.dtype, "shape": s.shape, "bytes": s.nbytes, "where": s.where, "spare": s.spare} for s in found
        ]
        console.print_json({"spare_bytes": spare, "source_bytes": source, "tensors": groups})
        return
    console.table(
        ("tensor", "in models", "type", "bytes", "spare"),
        [
            (item.where[0][1], ", ".join(dict.fromkeys(model for model, _ in item.where)), item.dtype, item.nbytes,
             item.spare)
            for item in found[:40]
        ],
        stretch="in models",
    )  # fmt: skip
    more = f" (the largest 40 of {len(found)} are shown)" if len(found) > 40 else ""
    share = f", {100 * spare / source:.1f} % of the sources" if source else ""
    console.say(f"stored once, they would save {console.size(spare)}{share}{more}")


@models.command("tree")
def tree(url: RootUrl, as_json: Json = False) -> None:
    """Tell who descends from whom, by the signatures alone, and whether recorded parents agree."""
    from cluster.model_root import ModelRoot
    from cluster.recorded_parents import beside, verdict
    from operators.descent import descent

    root = ModelRoot(url)
    edges = descent({name: root.signature(name) for name in root.rows})
    held = beside(edges, {name: row.get("parent") or "" for name, row in root.rows.items()})
    if as_json:
        console.print_json(
            [
                {"parent": e.parent, "others": e.others, "child": e.child, "distance": e.distance, "why": e.why,
                 "recorded": held[e.child].recorded, "agrees": held[e.child].agrees}
                for e in edges
            ]
        )  # fmt: skip
        return
    below: dict[str, list[str]] = {}
    for edge in edges:
        below.setdefault(edge.parent, []).append(edge.child)
    told = {edge.child: edge for edge in edges}

    def draw(name: str, depth: int) -> None:
        edge = told.get(name)
        about = "" if edge is None else f"  {edge.distance:.4f}" + "".join(f"  {why}" for why in edge.why)
        about += f"  with {', '.join(edge.others)}" if edge is not None and edge.others else ""
        if recorded := held[name].recorded:
            about += "  as recorded" if held[name].agrees else f"  but coded by {recorded}"
        console.say(f"{'  ' * depth}{name}{about}")
        for child in below.get(name, ()):
            draw(child, depth + 1)

    for name in root.rows:
        if name not in told:
            draw(name, 0)
    if said := verdict(held.values()):
        console.say(said)


def _listed(url: str, where: str) -> list[dict[str, Any]]:
    from cluster import registry
    from cluster.model_root import ModelRoot

    listed = registry.rows(ModelRoot(url))
    return registry.where(listed, where) if where and listed else listed


def _place(url: str, model: str) -> Location:
    from cluster.model_root import ModelRoot

    root = ModelRoot(url)
    return root.place.join("models", root.check(model))
