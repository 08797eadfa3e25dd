"""Commands on what is archived: ls, info, restore, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from operators.amounts import in_order
from pipelines import console
from pipelines.commands.options import Json, Root, Url, level
from pipelines.commands.tuned import recall_told

if TYPE_CHECKING:
    from storage.handle import Archive


def ls(root: Root, as_json: Json = False) -> None:
    """List the archives under a root."""
    from storage import archive, catalog
    from storage.fs import Location

    rows = catalog.ls(root)
    if as_json:
        # The code of a signature is for those who search the catalog: some kilobytes that tell a reader nothing.
        console.print_json([{key: value for key, value in row.items() if key != "code"} for row in rows])
        return
    if left := archive.half_written(Location(root)):
        console.note(
            f"half-written: {', '.join(left)}; the run or the copy goes on when started again, `rm` removes it"
        )
    if not rows:
        console.say("no archives here; `hilbertflow run RECIPE` makes one")
        return
    names = in_order({name: 0 for row in rows for name in row["levels"]})
    levels = [name for name in names if name.startswith("level") or name == "exact"]  # `info` tells of what is beside
    console.table(
        ("archive", "source", "archived", *levels),
        [
            (row["path"], console.size(row["source_bytes"]), console.size(sum(row["levels"].values())),
             *(console.size(row["levels"][name]) if name in row["levels"] else "" for name in levels))
            for row in rows
        ],
    )  # fmt: skip


def info(
    url: Url,
    tensors: Annotated[bool, typer.Option("--tensors", help="List a model's tensors as well.")] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure a model's levels: SQNR, largest error, PSNR, SSIM.")
    ] = False,
    source: Annotated[
        str, typer.Option(metavar="URL", help="Checkpoint to compare with where there is no exact level.")
    ] = "",
    recall: Annotated[
        bool,
        typer.Option("--recall", help="Estimate a collection's recall@10 as it is now, by tier: one exact scan each."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what an archive holds, by level."""
    from operators.errors import HilbertflowError
    from storage import archive

    handle = archive.open(url)
    described = describe(handle)
    if tensors and described["kind"] != "model":
        raise HilbertflowError("a collection has no tensors", where=handle.url, remedy="leave --tensors out")
    listed = handle.layout.table().to_pylist() if tensors else []
    if tensors:
        described["tensor_list"] = [{key: row[key] for key in ("name", "kind", "dtype", "shape")} for row in listed]
    if quality:
        described["measured"] = _measured(handle, source)
    if recall:
        described["recall"] = _recalls(handle)
    if as_json:
        console.print_json(described)
        return
    source, rows = described["source_bytes"], described.get("rows")
    nested = ("levels", "quality", "recipe", "level_names", "indexes", "tensor_list", "measured", "trials", "chosen",
              "recall")  # fmt: skip
    console.facts(
        (name.replace("_", " "), value) for name, value in described.items() if name not in nested and value != ""
    )
    told = described["quality"]
    heads, cells = ["level", "bytes", "of the source", "SQNR dB"], []
    for name, count in described["levels"].items():
        share = f"{100 * count / source:.1f} %" if source else ""
        cells.append([name, count, share, _figure(told.get(f"sqnr_db_{name}"), 2)])
        if rows:
            cells[-1][2:3] = [share, f"{count / rows:.1f}"]
            cells[-1].append(_figure(told.get(f"cosine_{name}"), 4))
    if rows:
        heads = ["level", "bytes", "of the source", "bytes a vector", "SQNR dB", "mean cosine"]
    console.table(tuple(heads), [tuple(row) for row in cells])
    if described.get("trials"):
        console.say(_chosen(described["trials"]))
    if quality:
        console.table(
            ("level", "SQNR dB", "largest error", "PSNR dB", "SSIM"),
            [
                (f"level{m['level']}", _figure(m["sqnr_db"], 2), f"{m['max_error']:.3g}", _figure(m["psnr_db"], 2),
                 f"{m['ssim']:.4f}")
                for m in described["measured"]
            ],
        )  # fmt: skip
    if listed:
        shapes = [("×".join(map(str, row["shape"])) or "scalar") for row in listed]
        console.table(
            ("tensor", "kind", "type", "shape"),
            [(row["name"], row["kind"], row["dtype"], shape) for row, shape in zip(listed, shapes, strict=True)],
        )
    for kind, index in described.get("indexes", {}).items():
        found = recall_told(index["recall"], index["target_recall"])
        size = f"{console.count(index['shards'], 'shard')}, {console.size(index['bytes'])}"
        console.say(f"{kind}: {size}{f'; {found}' if found else ''}")
    if described.get("chosen"):
        _tried(described["chosen"])
    if recall:
        console.table(
            ("tier", "recall@10", "95 % interval", "rows asked"),
            [(tier, f"{r['recall']:.4f}", f"{r['low']:.3f} to {r['high']:.3f}", r["queries"])
             for tier, r in described["recall"].items()],
            title="recall as the collection is now: its own rows ask for their nearest others",
        )  # fmt: skip


def _recalls(handle: Archive) -> dict[str, dict[str, Any]]:
    """What each tier that approximates finds of the true ten, upserted and deleted rows counted in."""
    from dataclasses import asdict

    from cluster.engine import SearchEngine
    from operators.errors import HilbertflowError
    from storage.collection import CollectionArchive

    if not isinstance(handle, CollectionArchive):
        raise HilbertflowError("a model is not searched", where=handle.url, remedy="leave --recall out")
    engine = SearchEngine.open(handle.url)
    return {tier: asdict(engine.estimate_recall(tier)) for tier in engine.tiers if tier != "exact"}


def _tried(chosen: dict[str, Any]) -> None:
    """What `index: {kind: auto}` tried, the chosen one marked."""
    budget = f" in {console.size(chosen['memory'])}" if chosen["memory"] else ""
    rows = []
    for trial in chosen["trials"]:
        setting = " ".join(f"{key}={trial[key]}" for key in ("nprobe", "ef", "refine", "level") if key in trial)
        said = "chosen" if trial.get("chosen") else "" if trial["fits"] else "too large"
        rows.append((trial["tier"], trial["kept"], console.size(trial["bytes"]) if trial["bytes"] else None, setting,
                     _figure(trial.get("recall"), 4), said))  # fmt: skip
    console.table(
        ("tier", "re-ranked by", "memory", "setting", "recall@10", ""), rows,
        title=f"tried for recall@10 of {chosen['target_recall']:g}{budget}, on held-out rows",
    )  # fmt: skip


def _measured(handle: Any, source: str) -> list[dict[str, Any]]:
    from operators.errors import HilbertflowError
    from storage.quality import measure

    if handle.manifest.kind != "model":
        what = "is a collection; its quality is its recall"
        raise HilbertflowError(what, where=handle.url, remedy="`hilbertflow bench embeddings` measures that")
    with console.progress("measuring") as tick:
        return [found.as_dict() for found in measure(handle, source, tick)]


def _chosen(trials: dict[str, Any]) -> str:
    """What ``auto`` compared, in one line: bytes of each choice on the sampled planes, best first."""
    totals: dict[str, int] = {}
    best: dict[tuple[str, str], int] = {}
    for name, size in trials["bytes"].items():
        layout, level, _ = name.split("/")
        best[layout, level] = min(size, best.get((layout, level), size))
    for (layout, _), size in best.items():
        totals[layout] = totals.get(layout, 0) + size
    first = min(totals, key=lambda layout: totals[layout])
    coders: dict[str, int] = {}
    for name, size in trials["bytes"].items():
        layout, level, coder = name.split("/")
        if layout == first and level == "level0":
            coders[coder] = size
    said = ", ".join(f"{name} {console.size(size)}" for name, size in sorted(totals.items(), key=lambda i: i[1]))
    tried = ", ".join(f"{name} {console.size(size)}" for name, size in sorted(coders.items(), key=lambda i: i[1]))
    return f"auto, on {trials['planes']} sampled planes: {said}; level0 by coder: {tried}"


def describe(handle: Any) -> dict[str, Any]:
    """What ``info --json`` prints of a model or a collection."""
    manifest = handle.manifest
    told: dict[str, Any] = {"url": handle.url, "kind": manifest.kind, "name": manifest.name, "format": manifest.format}
    if manifest.kind == "model":
        table = handle.layout.table()
        counts = [_product(shape) for shape in table.column("shape").to_pylist()]
        told |= {
            "tensors": table.num_rows, "parameters": sum(counts),
            "dtypes": ", ".join(sorted(set(table.column("dtype").to_pylist()))),
        }  # fmt: skip
        if handle.link is not None:
            told |= {"parent": handle.link.url, "chain": handle.link.depth}
    else:
        from cluster.index_store import current_builds, current_choice, indexes_of
        from storage.rowlog import RowLog

        builds = current_builds(indexes_of(handle))
        told |= {
            "rows": handle.count,
            "live_rows": RowLog(handle).view.count,
            "dim": handle.dim,
            "metric": handle.metric,
            "encoder": handle.encoder,
        }
        told |= {"order": handle.attributes["order"], "lists": handle.attributes["lists"]}
        told["indexes"] = {
            kind: {"bytes": build.bytes, "shards": len(build.shards), "recall": build.reached,
                   "target_recall": build.kind.target_recall}
            for kind, build in builds.items()
        }  # fmt: skip
        told["chosen"] = current_choice(indexes_of(handle)) or {}
    return told | {
        "units": manifest.units, "source_bytes": manifest.source_bytes,
        "archive_bytes": sum(manifest.levels.values()), "fingerprint": manifest.fingerprint,
        "recipe_hash": manifest.recipe_hash, "levels": in_order(manifest.levels), "level_names": list(handle.levels),
        "quality": manifest.quality, "trials": handle.attributes.get("trials", {}), "recipe": manifest.recipe,
    }  # fmt: skip


def restore(
    url: Url,
    out: Annotated[
        str, typer.Argument(help="A .safetensors file for a model; a .npy or .parquet file for a collection.")
    ],
    at: Annotated[
        str, typer.Option("--level", metavar="N|exact", help="Fidelity: a level's number from 0, or exact.")
    ] = "exact",
    tensor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this tensor, as .npy or .safetensors.")
    ] = None,
) -> None:
    """Write an archive back as a file.

    Streamed, tensor by tensor or batch by batch; level exact gives the source's values bit for bit.
    """
    from pipelines.restore import restore as write

    chosen = level(at)
    with console.progress("restoring") as tick:
        written = write(url, out, level=chosen, tensor=tensor, tick=tick)
    console.say(f"{out}: {console.size(written)} at level {chosen}")


def export(
    url: Url,
    tensor: Annotated[str, typer.Argument(help="Name of the tensor, or codebook for the tree of a vq archive.")],
    out: Annotated[
        str, typer.Argument(help="OUT.png: planes side by side; OUT.mp4: one plane a frame; OUT.svg: the codebook.")
    ],
    at: Annotated[str, typer.Option("--level", help="A level's number, or exact.")] = "exact",
    chain: Annotated[bool, typer.Option("--chain", help="A frame for each checkpoint of the archive's chain.")] = False,
) -> None:
    """Look at a tensor's planes: its values along the Hilbert curve, grey is zero.

    With --chain, its first plane in every checkpoint from the first parent on: values left, what changed right.
    """
    from pipelines.export import export as write

    pictures = write(url, tensor, out, level(at), chain=chain)
    console.say(f"{out}: {pictures} picture{'s' if pictures != 1 else ''}")


def _figure(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
