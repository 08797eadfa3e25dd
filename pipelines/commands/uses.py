"""What a collection is used for beside search: duplicates, clusters, outliers, recommend."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines import console
from pipelines.commands.options import Json, Tier, Url
from pipelines.commands.searching import said

Shown = Annotated[int, typer.Option("--show", min=1, help="Groups in the table; --json tells all of them.")]


def duplicates(
    url: Url,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least cosine similarity of a pair, 0.95 unless given; for l2 the largest squared distance."),
    ] = None,
    probes: Annotated[
        int, typer.Option(min=0, help="Lists that a row is compared with at most; 0 misses no pair and takes longer.")
    ] = 32,
    show: Shown = 20,
    as_json: Json = False,
) -> None:
    """Group near-duplicates.

    Rows that hang together by pairs within the threshold are a group; its first row stands for it, and scores are to
    that row. Needs no index; vectors pass through a scratch file in TMPDIR.
    """
    from pipelines.uses.duplicates import find_duplicates
    from pipelines.uses.live_rows import LiveRows

    live = LiveRows.of(url)
    found = find_duplicates(live, threshold, probes=probes)
    if as_json:
        groups = [{"ids": group.ids, "scores": group.scores.tolist()} for group in found.groups]
        console.print_json(
            {"threshold": found.threshold, "rows": found.rows, "spare": found.spare, "pairs": found.pairs,
             "compared": found.compared, "cut": found.cut, "groups": groups}
        )  # fmt: skip
        return
    rows, line = [], ""
    for number, group in enumerate(found.groups[:show], 1):
        line, words = said(live.table(group.positions))
        rows += [
            (number if at == 0 else "", f"{score:.4f}", name, text)
            for at, (score, name, text) in enumerate(zip(group.scores, group.ids, words, strict=True))
        ]
    if rows:
        console.table(("group", "score", "id", line), rows, stretch=line)
    more = f", {show} shown" if len(found.groups) > show else ""
    console.say(f"{len(found.groups):,} groups{more}; {found.spare:,} of {found.rows:,} rows are spare")
    if found.cut:
        console.note(f"{found.cut:,} rows might have more beyond {probes} lists; --probes 0 misses none")


def clusters(
    url: Url,
    k: Annotated[int, typer.Option("-k", min=1, help="How many clusters.")] = 10,
    representatives: Annotated[int, typer.Option(min=1, max=1000, help="Rows that stand for a cluster.")] = 3,
    out: Annotated[
        str | None, typer.Option(metavar="FILE.parquet", help="Write id, cluster and score of every row.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut a collection into clusters and show the rows that stand for each."""
    from pipelines.uses.clusters import find_clusters
    from pipelines.uses.live_rows import LiveRows

    live = LiveRows.of(url)
    found = find_clusters(live, k, representatives=representatives, out=out)
    if as_json:
        console.print_json(
            {"rows": live.count, "clusters": [
                {"cluster": c.number, "rows": c.size, "score": c.score,
                 "representatives": {"ids": c.ids, "scores": c.scores.tolist()}} for c in found
            ]}
        )  # fmt: skip
        return
    rows: list[tuple[Any, ...]] = []
    line = ""
    for c in found:
        line, words = said(live.table(c.positions))
        for at, (name, score, text) in enumerate(zip(c.ids, c.scores, words, strict=True)):
            about = (c.number, c.size, f"{100 * c.size / live.count:.1f} %") if at == 0 else ("", "", "")
            rows.append((*about, f"{score:.4f}", name, text))
        if not c.size:
            rows.append((c.number, 0, "0.0 %", "", "", ""))
    console.table(("cluster", "rows", "share", "score", "id", line), rows, stretch=line)
    if out is not None:
        console.say(f"{out}: the cluster of every row")


def outliers(
    url: Url,
    count: Annotated[int, typer.Option("-n", min=1, max=8192, help="How many rows.")] = 20,
    neighbours: Annotated[int, typer.Option(min=1, max=1000, help="Nearest rows that the score is a mean of.")] = 10,
    as_json: Json = False,
) -> None:
    """Show the rows that are farthest from their nearest neighbours.

    The score is the mean cosine similarity to them, the lower the more remote; in an l2 collection the mean squared
    distance, the higher the more remote. Needs no index; vectors pass through a scratch file in TMPDIR.
    """
    from pipelines.uses.live_rows import LiveRows
    from pipelines.uses.outliers import find_outliers

    live = LiveRows.of(url)
    found = find_outliers(live, count, neighbours=neighbours)
    if as_json:
        console.print_json(
            {"ids": found.ids, "scores": found.scores.tolist(), "nearest": found.nearest, "exact": found.exact,
             "candidates": found.candidates}
        )  # fmt: skip
        return
    line, words = said(live.table(found.positions))
    ranked = enumerate(zip(found.scores, found.ids, found.nearest, words, strict=True), 1)
    console.table(
        ("rank", "score", "id", "nearest", line),
        [(rank, f"{score:.4f}", name, near, text) for rank, (score, name, near, text) in ranked], stretch=line,
    )  # fmt: skip
    if not found.exact:
        console.note(f"only the {found.candidates:,} most likely rows were compared with all others")


def recommend(
    url: Url,
    like: Annotated[list[str], typer.Option(metavar="ID", help="A row that is liked. Repeatable.")],
    unlike: Annotated[list[str] | None, typer.Option(metavar="ID", help="One that is not. Repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many rows.")] = 10,
    tier: Annotated[Tier, typer.Option(help="Where to look; auto leaves it to the planner.")] = Tier.auto,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="Only rows such as package == 'numpy' or `my col` > 3."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find rows like those that are liked and unlike those that are not.

    Each row is listed with the liked one that it is nearest to; rows nearer to a disliked one are left out.
    """
    from pipelines.uses.recommend import recommend as find

    found = find(url, like, unlike or (), k, tier=tier.value, filter=where)
    if as_json:
        console.print_json(
            {"ids": found.ids, "scores": found.scores.tolist(), "because": found.because, "partial": found.partial}
        )
        return
    if not found.ids:
        console.say("no row matches")
        return
    line, words = said(found.metadata)
    ranked = enumerate(zip(found.scores, found.ids, found.because, words, strict=True), 1)
    console.table(
        ("rank", "score", "id", "because", line),
        [(rank, f"{score:.4f}", name, reason, text) for rank, (score, name, reason, text) in ranked], stretch=line,
    )  # fmt: skip
