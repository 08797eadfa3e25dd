"""Commands that change the rows of a collection: upsert, delete, compact."""

from __future__ import annotations

from typing import Annotated

import typer

from operators.errors import HilbertflowError
from pipelines import console
from pipelines.commands.options import GRACE_HOURS, Json, Url
from pipelines.commands.tuned import built_lines

Key = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Idempotency key: sent again with the same rows it changes nothing.")
]

SMALL = 256 << 20
"""Vectors, in bytes, that are compacted in this process: a Ray takes longer to start."""


def upsert(
    url: Url,
    rows: Annotated[str, typer.Argument(help="Vectors: Parquet, npy, HDF5, JSONL, … with ids and metadata columns.")],
    column: Annotated[str, typer.Option(help="Column, array or dataset of vectors.")] = "vector",
    id_column: Annotated[
        str | None, typer.Option(help="Column of ids; left out, `id` if there is one, else row numbers.")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Refuse ids that exist instead of replacing.")] = False,
    key: Key = None,
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="Rows a batch; each batch is taken whole.")] = 8192,
    as_json: Json = False,
) -> None:
    """Put rows into a collection; a row whose id exists is replaced whole, and columns that ROWS lacks are null.

    On storage when the command ends, and seen by the next search; no index is built again. Safe beside other writers.
    """
    from cluster.build import open_collection
    from storage.references import local_url
    from storage.rowlog import RowLog
    from storage.vectors import open_vectors

    source = open_vectors(local_url(rows), column, id_column)
    source.check()
    log = RowLog(open_collection(url))
    known = set(log.view.base.table(0, 0).schema.names)
    if unknown := [name for name in source.columns if name not in known]:
        raise HilbertflowError(
            f"has columns that the collection has not: {', '.join(unknown)[:200]}", where=rows,
            remedy=f"leave them out; it has {', '.join(sorted(known - {'id'})) or 'no metadata'}",
        )  # fmt: skip
    absent = sorted(known - {"id", *source.columns})
    change, version, repeated = (log.append if only_new else log.upsert), log.version, 0
    with console.progress("writing") as tick:
        for number, start in enumerate(range(0, source.count, batch)):
            table = source.read(start, min(source.count, start + batch))
            vectors = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            receipt = change(
                table.column("id"), vectors.reshape(table.num_rows, -1), table.drop_columns(["id", "vector"]),
                None if key is None else f"{key}-{number}",
            )  # fmt: skip
            version, repeated = max(version, receipt.version), repeated + receipt.repeated * receipt.rows
            tick(start + table.num_rows, source.count)
    if as_json:
        console.print_json(
            {"url": log.home.url, "rows": source.count, "repeated": repeated, "version": version,
             "count": log.view.count, "null_columns": absent}
        )  # fmt: skip
        return
    again = f", {repeated:,} of them before" if repeated else ""
    console.say(f"{source.count:,} rows taken{again}; version {version}, {log.view.count:,} rows")
    if absent:
        console.note(f"{rows} has no {', '.join(absent)[:200]}: null in these rows, also where they replaced others")


def delete(
    url: Url,
    row_id: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="A row's id. Repeatable.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="FILE", help="A text file with an id a line.")] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Delete rows of a collection by id; an id that does not exist is no error."""
    from cluster.build import open_collection
    from storage.fs import Location
    from storage.rowlog import RowLog

    names = list(row_id or ())
    if ids is not None:
        try:
            names += [line for line in Location(ids).read().decode().split("\n") if line]
        except UnicodeDecodeError:
            raise HilbertflowError("is not UTF-8", where=ids, remedy="give a text file with an id a line") from None
    if not names:
        raise typer.BadParameter("give --id or --ids")
    log = RowLog(open_collection(url))
    before = log.view.count
    receipt = log.delete(list(dict.fromkeys(names)), key)
    told = {
        "url": log.home.url, "deleted": before - log.view.count, "asked": receipt.rows, "repeated": receipt.repeated,
        "version": receipt.version, "count": log.view.count,
    }  # fmt: skip
    if as_json:
        console.print_json(told)
    else:
        console.say(f"{told['deleted']:,} of {receipt.rows:,} ids deleted; version {receipt.version}, "
                    f"{log.view.count:,} rows")  # fmt: skip


def compact(
    url: Url,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; left out, Ray starts on this machine.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the archive anew though no row changed.")] = False,
    as_json: Json = False,
) -> None:
    """Take the changes of a collection into a new archive with new indexes, which takes the old one's place.

    Searches go on meanwhile, and see one version or the other. A compaction that was stopped goes on where it stopped.
    The old archive's bytes stay until `gc`. The long form is a recipe with source.kind: collection.
    """
    from cluster.build import open_collection
    from pipelines.compact import compact_recipe
    from pipelines.run import run, run_here
    from storage.generations import unfinished
    from storage.rowlog import RowLog

    handle = open_collection(url)
    log = RowLog(handle)
    before, home = log.view, log.home
    if not before.changed and not unfinished(home) and not force:
        if as_json:
            console.print_json({"url": home.url, "version": before.version, "count": before.count, "compacted": False})
        else:
            console.say(f"{home.url}: no row changed since it was archived; nothing to do")
        return
    recipe = compact_recipe(handle, home)
    small = address is None and 4 * before.count * handle.dim <= SMALL
    report = run_here(recipe, indexes=True) if small else run(recipe, address=address)
    log.refresh()
    told = {
        "url": home.url, "version": log.version, "count": log.view.count, "compacted": True, "archive": report.url,
        "gone": len(before.gone), "put_in": len(before.live), "indexes": list(report.indexes),
        "seconds": round(report.seconds, 3),
    }  # fmt: skip
    if as_json:
        console.print_json(told)
        return
    console.say(f"{home.url}: {len(before.gone):,} rows out, {len(before.live):,} in; {log.view.count:,} rows")
    for line in built_lines(home.url, report.indexes) if report.indexes else ("indexes: none",):
        console.say(line)
    console.say(
        f"the old archive may still be read: `hilbertflow gc {home.url}` removes it once {GRACE_HOURS:g} h have "
        "passed, with `--grace HOURS` sooner"
    )
