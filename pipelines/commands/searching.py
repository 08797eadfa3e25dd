"""Commands that search: search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from operators.errors import HilbertflowError
from pipelines import console
from pipelines.commands.options import Json, Tier, Url, level

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from cluster.results import Results
    from operators.encode import TextEncoder
    from storage.collection import CollectionArchive

LINE_COLUMNS = ("first_line", "text", "text_", "title", "name", "path")
"""Metadata columns that say in words what a row is, best first."""


def search(
    url: Url,
    text: Annotated[str | None, typer.Option(help="Like this text; the collection's own model embeds it.")] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Like this picture.")] = None,
    vector: Annotated[
        str | None, typer.Option(metavar="FILE.npy", help="Near this vector (d,), or these (q, d).")
    ] = None,
    row_id: Annotated[str | None, typer.Option("--id", help="Like the row with this id, itself left out.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many rows a query.")] = 10,
    tier: Annotated[Tier, typer.Option(help="Where to look; auto leaves it to the planner.")] = Tier.auto,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="Only rows such as package == 'numpy' or `my col` > 3."),
    ] = None,
    radius: Annotated[
        float | None, typer.Option(help="Only rows within this squared distance, or of at least this similarity.")
    ] = None,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Lists read; tiers cold, ivfpq.")] = None,
    refine: Annotated[int | None, typer.Option(min=1, help="Candidates re-ranked, times k; tiers cold, ivfpq.")] = None,
    ef: Annotated[int | None, typer.Option(min=1, help="Width of the graph search; tier hnsw.")] = None,
    finest: Annotated[
        str | None, typer.Option("--level", metavar="N|exact", help="Finest level read; tiers cold, exact.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="What the search read and took.")] = False,
    as_json: Json = False,
) -> None:
    """Find the rows nearest to a query."""
    if sum(given is not None for given in (text, image, vector, row_id)) != 1:
        raise typer.BadParameter("give one of --text, --image, --vector and --id")
    from cluster.engine import SearchEngine
    from storage import archive

    handle = archive.open(url)
    if handle.manifest.kind != "collection":
        raise HilbertflowError("is a model, not a collection", where=handle.url, remedy="search a collection")
    settings: dict[str, float | None] = {
        "radius": radius,
        "nprobe": nprobe,
        "refine": refine,
        "ef": ef,
        "level": _level(finest, handle),
    }
    asked = {name: value for name, value in settings.items() if value is not None}
    if text is not None:
        found = search_text(handle.url, text, k, tier.value, where, **asked)
    elif image is not None:
        found = search_image(handle.url, image, k, tier.value, where, **asked)
    elif row_id is not None:
        found = search_row(handle.url, row_id, k, tier.value, where, **asked)
    else:
        queries = read_queries(str(vector), handle.dim)
        found = SearchEngine.open(handle.url).search(queries, k, tier=tier.value, filter=where, **asked)
    if as_json:
        console.print_json({"results": answers(found, explain)})
        return
    print_results(handle, found)
    if explain:
        print_explained(found.explain)


def _level(text: str | None, handle: CollectionArchive) -> int | None:
    """What the engine takes for a level: the exact one comes behind the last lossy one."""
    if text is None:
        return None
    wanted = level(text)
    return int(handle.attributes["depth"]) if wanted == "exact" else wanted


def read_queries(path: str, dim: int) -> npt.NDArray[np.float32]:
    """Vectors of a ``.npy`` file as (q, dim) float32; a pickle inside is refused, not opened."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise HilbertflowError("no such file", where=path) from None
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HilbertflowError(
            f"not an array of numbers ({reason})", where=path, remedy="save it with numpy.save"
        ) from None
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu" or loaded.ndim not in (1, 2):
        shape = getattr(loaded, "shape", "")
        raise HilbertflowError(f"{getattr(loaded, 'dtype', 'archive')}{shape} is no vector", where=path,
                               remedy=f"give numbers of shape ({dim},) or (q, {dim})")  # fmt: skip
    queries = np.atleast_2d(loaded).astype(np.float32)
    if queries.shape[1] != dim:
        raise HilbertflowError(f"vectors have {queries.shape[1]} values, the collection's have {dim}", where=path)
    if not np.isfinite(queries).all():
        raise HilbertflowError("holds NaN or infinity", where=path, remedy="leave these rows out")
    return queries


def search_text(url: str, text: str, k: int, tier: str = "auto", where: str | None = None, **asked: Any) -> Results:
    """Rows of a collection nearest to a text, embedded by the model that embedded the rows."""
    return _search_encoded(url, lambda encoder: encoder.encode([text]), k, tier, where, asked)


def search_image(url: str, path: str, k: int, tier: str = "auto", where: str | None = None, **asked: Any) -> Results:
    """Rows of a collection nearest to the picture in a file, embedded by the CLIP model that embedded the rows."""
    from storage.fs import Location

    data = Location(path).read()
    return _search_encoded(url, lambda encoder: encoder.encode_pictures([data], where=[path]), k, tier, where, asked)


def _search_encoded(
    url: str,
    encode: Callable[[TextEncoder], npt.NDArray[np.float32]],
    k: int,
    tier: str,
    where: str | None,
    asked: dict[str, Any],
) -> Results:
    from cluster.engine import SearchEngine
    from operators.encode import open_encoder
    from storage import archive
    from storage.references import local_url

    handle = archive.open(url)
    if not handle.encoder:
        raise HilbertflowError("was made from vectors, no model embeds queries for it", where=handle.url,
                               remedy="search it with --vector or --id")  # fmt: skip
    query = encode(open_encoder(local_url(handle.encoder), handle.encoder_tokens))
    return SearchEngine.open(handle.url).search(query, k, tier=tier, filter=where, **asked)


def search_row(url: str, name: str, k: int, tier: str = "auto", where: str | None = None, **asked: Any) -> Results:
    """Rows nearest to the row with the id ``name``, which is not among them."""
    import dataclasses

    import numpy as np

    from cluster.engine import SearchEngine

    engine = SearchEngine.open(url)
    own = engine.rows([name])
    if own[0] < 0:
        raise HilbertflowError(f"no row has the id {name[:80]!r}", where=engine.collection.url)
    found = engine.search(engine.take(own), min(k + 1, 10_000), tier=tier, filter=where, **asked)
    keep = np.flatnonzero(found.rows[0] != own[0])[:k]
    return dataclasses.replace(
        found, ids=found.ids[:, keep], rows=found.rows[:, keep], scores=found.scores[:, keep]
    )  # fmt: skip


def answers(found: Results, explain: bool = False) -> list[dict[str, Any]]:
    """What ``--json`` prints: one entry a query, best row first; what the search of all of them took, if asked for."""
    told = {"explain": found.explain} if explain else {}
    return [
        {
            "ids": [name for name, row in zip(ids, rows, strict=True) if row >= 0],
            "scores": [score for score, row in zip(scores, rows, strict=True) if row >= 0],
            "partial": bool(found.partial),
            **told,
        }
        for ids, rows, scores in zip(found.ids.tolist(), found.rows.tolist(), found.scores.tolist(), strict=True)
    ]


def print_results(handle: CollectionArchive, found: Results) -> None:
    """Draw a ranked table a query: rank, score, id and the line that says what the row is."""
    import numpy as np

    from storage.rowlog import RowLog

    view, several = RowLog(handle).view, len(found.rows) > 1
    for number, (ids, rows, scores) in enumerate(zip(found.ids, found.rows, found.scores, strict=True)):
        title = f"query {number}" if several else ""
        hit = rows >= 0
        if not hit.any():
            console.say(f"{title}: no row matches".removeprefix(": "))
            continue
        line, words = said(view.table(np.asarray(rows[hit], np.int64)))
        drawn = zip(scores[hit].tolist(), ids[hit].tolist(), words, strict=True)
        console.table(
            ("rank", "score", "id", line),
            [(rank, f"{score:.4f}", name, text) for rank, (score, name, text) in enumerate(drawn, 1)],
            title=title, stretch=line,
        )  # fmt: skip
    if found.partial:
        console.note("partial: some shard did not answer")


def print_explained(told: dict[str, Any]) -> None:
    """What a search did, a line each: where it looked and why, what it read, seconds by step."""
    steps = told.get("seconds", {})
    lines = {name: value for name, value in told.items() if name != "seconds" and value not in ("", 0, None, {})}
    if "settings" in lines:
        lines["settings"] = ", ".join(f"{name} {value}" for name, value in lines["settings"].items())
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value) for name, value in lines.items()
    ]
    rows += [(f"{name}, ms", f"{1000 * value:.1f}") for name, value in steps.items()]
    console.table(("explain", ""), rows, stretch="")


def said(metadata: pa.Table) -> tuple[str, list[str]]:
    """The heading of the column that says in words what rows are, and those words; empty where there is none."""
    line = next((name for name in LINE_COLUMNS if name in metadata.column_names), "")
    return line.replace("_", " ").strip(), metadata.column(line).to_pylist() if line else [""] * metadata.num_rows
