"""Commands that search: search, similar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from operators.errors import HilbertflowError
from pipelines import console
from pipelines.commands.options import Json, Tier, Url, later

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from storage.collection import CollectionArchive

LINE_COLUMNS = ("first_line", "text", "title", "name")
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
        typer.Option("--filter", metavar="EXPR", help="Only rows such as package == 'numpy'."),
    ] = None,
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
    if image is not None:
        model = handle.encoder or "no model"
        raise HilbertflowError(
            f"pictures need a collection embedded with a CLIP model directory; this one has {model}", where=handle.url
        )
    own = -1
    if row_id is not None:
        import numpy as np

        own = handle.row_of(row_id)
        queries = handle.take(np.array([own], np.int64))
    else:
        queries = _embedded(handle, text) if text is not None else read_queries(str(vector), handle.dim)
    engine = SearchEngine.open(handle.url)
    found = engine.search(queries, k=k + (own >= 0), tier=tier.value, filter=where)
    hits = [
        [(score, row, name) for score, row, name in zip(scores, rows, ids, strict=True) if row >= 0 and row != own][:k]
        for scores, rows, ids in zip(found.scores.tolist(), found.rows.tolist(), found.ids.tolist(), strict=True)
    ]
    if as_json:
        console.print_json(
            {"results": [
                {"ids": [name for *_, name in query], "scores": [score for score, *_ in query],
                 "partial": bool(found.partial)}
                for query in hits
            ]}
        )  # fmt: skip
        return
    for number, query in enumerate(hits):
        _draw(handle, query, f"query {number}" if len(hits) > 1 else "")
    if found.partial:
        console.note("partial: some shard did not answer")


def similar(
    url: Url,
    model: Annotated[str, typer.Argument(help="Name of an archived model.")],
    method: Annotated[str, typer.Option(help="signature, features, hybrid or exact.")] = "signature",
    as_json: Json = False,
) -> None:
    """Find the models most like one."""
    raise later("similar", "comparing models")


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


def _embedded(handle: CollectionArchive, text: str) -> npt.NDArray[np.float32]:
    from operators.encode import TextEncoder
    from storage.references import local_url

    if not handle.encoder:
        raise HilbertflowError("was made from vectors, no model embeds texts for it", where=handle.url,
                               remedy="search it with --vector or --id")  # fmt: skip
    return TextEncoder(local_url(handle.encoder)).encode([text])


def _draw(handle: CollectionArchive, hits: list[tuple[float, int, Any]], title: str) -> None:
    import numpy as np

    if not hits:
        console.say(f"{title}: no row matches" if title else "no row matches")
        return
    metadata = handle.metadata(np.array([row for _, row, _ in hits], np.int64))
    line = next((name for name in LINE_COLUMNS if name in metadata.column_names), None)
    lines = metadata.column(line).to_pylist() if line else [""] * len(hits)
    rows = [
        (rank, f"{score:.4f}", name, words)
        for rank, ((score, _, name), words) in enumerate(zip(hits, lines, strict=True), 1)
    ]
    columns = ("rank", "score", "id", "first line") if line == "first_line" else ("rank", "score", "id", line or "")
    console.table(columns, rows, title=title, stretch=columns[-1])
