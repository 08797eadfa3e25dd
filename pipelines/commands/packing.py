"""Commands that pack a matrix of vectors in one file: compress, decompress."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from pipelines import console
from pipelines.commands.options import Json


class Metric(str, Enum):  # noqa: UP042 - typer shows a str enum by value
    """How vectors are compared."""

    l2 = "l2"
    ip = "ip"
    cosine = "cosine"


def compress(
    source: Annotated[str, typer.Argument(metavar="VECTORS.npy", help="Vectors: .npy, .fvecs, .parquet, .hdf5, ….")],
    target: Annotated[str, typer.Argument(metavar="OUT.hfz", help="The packed file.")],
    size: Annotated[
        float | None, typer.Option("--bytes", metavar="N", help="Bytes a vector at most, all told.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option("--recall", metavar="R", help="Recall@10 at least: see below.")
    ] = None,
    metric: Annotated[Metric, typer.Option("--metric", help="What recall is measured by.")] = Metric.l2,
    as_json: Json = False,
) -> None:
    """Pack vectors in one self-contained file.

    Exact unless --bytes or --recall is given, or where exact is smaller; says what the packed vectors are worth.

    Recall is measured: up to 1,000 of the vectors, as they were, ask for their 10 nearest others among all; it is the
    share of these that a scan of the packed vectors finds. A vector never counts as found by itself.
    """
    from dataclasses import asdict

    from storage.hfz import compress_file

    packed = compress_file(source, target, size=size, recall=recall, metric=metric.value)
    if as_json:
        console.print_json(asdict(packed))
        return
    console.facts(
        (
            ("vectors", f"{packed.rows:,} of {packed.dim} {packed.dtype}"),
            (
                "file",
                f"{console.size(packed.bytes)}, {packed.bytes_a_vector:.4g} bytes a vector, {packed.ratio:.4g} to 1",
            ),
            ("fidelity", "exact" if packed.exact else f"cosine {packed.cosine:.4f}, recall@10 {packed.recall:.4f}"),
        )
    )


def decompress(
    source: Annotated[str, typer.Argument(metavar="IN.hfz", help="A packed file.")],
    target: Annotated[str, typer.Argument(metavar="OUT.npy", help="The vectors, in the dtype that they had.")],
    limit: Annotated[int, typer.Option("--limit", metavar="MB", help="Memory that vectors may take.")] = 65536,
) -> None:
    """Unpack a file that compress wrote."""
    from storage.hfz import decompress_file

    rows, dim = decompress_file(source, target, limit << 20)
    console.say(f"{rows:,} vectors of {dim} values")
