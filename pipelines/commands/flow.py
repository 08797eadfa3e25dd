"""Commands that run recipes: run, submit, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from operators.amounts import in_order
from pipelines import console
from pipelines.commands.options import Json, Sets
from pipelines.commands.tuned import built_lines

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from pipelines.run import Report

RecipeFile = Annotated[str, typer.Argument(help="A recipe file, or one that comes along, such as quickstart-model.")]


def run(
    recipe: RecipeFile,
    sets: Sets = None,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; left out, Ray starts on this machine.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the graph, the units and the estimated bytes; write nothing.")
    ] = False,
    json_log: Annotated[
        bool, typer.Option("--json", help="Log one JSON event a line instead of a progress bar.")
    ] = False,
) -> None:
    """Run a pipeline.

    A pipeline streams from its source through its operators into an archive, unit by unit, and builds the indexes
    that the recipe asks for. The archive exists once everything is written. A run that was stopped goes on where it
    stopped; one that is finished does nothing.
    """
    from pipelines.recipe import load

    loaded = load(recipe, sets or [])  # every error of the recipe comes before Ray is as much as imported
    from pipelines.progress import emit
    from pipelines.run import run as run_recipe

    report = run_recipe(loaded, address=address, json_log=json_log, dry_run=dry_run)
    if dry_run:
        _show_plan(report.plan, json_log)
    elif json_log:
        emit("done", archive=report.plan.spec.name, **_summary(report))
    else:
        _show(report)


def submit(
    recipe: RecipeFile,
    address: Annotated[str, typer.Option(help="Of the cluster's job server, such as http://HEAD:8265.")],
    sets: Sets = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and leave.")] = False,
) -> None:
    """Run a pipeline as a Ray job.

    Passes the job's log on, one JSON event a line, and ends with the job's exit code. Paths in the recipe are those
    of the cluster.
    """
    from cluster import jobs
    from pipelines.recipe import load

    load(recipe, sets or [], inputs=False)  # what is wrong with the recipe is said here, not in a job's log
    job = jobs.submit(recipe, address, sets or [])
    if no_wait:
        console.say(job.id)
        return
    console.note(f"job {job.id}")
    try:
        code = job.follow(lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        console.note(f"job {job.id} goes on; `hilbertflow stop {job.id} --address {address}` ends it")
        raise
    raise typer.Exit(1 if code < 0 else code)


JobId = Annotated[str, typer.Argument(help="As `submit --no-wait` printed it.")]
Address = Annotated[str, typer.Option(help="Of the cluster's job server, such as http://HEAD:8265.")]


def status(job: JobId, address: Address, as_json: Json = False) -> None:
    """Tell how a submitted job stands.

    Prints PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, and the last event of its log.
    """
    from cluster import jobs

    asked = jobs.Job(address, job)
    state, last = asked.status(), next(reversed(asked.log().strip().splitlines() or [""]))
    if as_json:
        console.print_json({"job": job, "status": state, "last": last})
        return
    console.say(f"{state}  {last}".rstrip())


def stop(job: JobId, address: Address) -> None:
    """Stop a submitted job.

    What it has written stays; the same recipe goes on from there.
    """
    from cluster import jobs

    console.say("stopped" if jobs.Job(address, job).stop() else "it was not running")


def schema() -> None:
    """Print the JSON schema of recipes."""
    from pipelines.recipe import json_schema

    console.print_json(json_schema())


def _summary(report: Report) -> dict[str, Any]:
    manifest = report.manifest
    assert manifest is not None  # only a dry run has none
    changes = report.changes
    update = {} if changes is None else {
        "changes": {"put_in": changes.source.count, "deleted": len(changes.gone), "kept": changes.kept}
    }  # fmt: skip
    parent = {"parent": report.plan.parent} if report.plan.parent else {}
    return update | parent | _sampled(report.plan) | {
        "url": report.url, "units": manifest.units, "written": report.written, "skipped": report.skipped,
        "seconds": round(report.seconds, 3), "source_bytes": manifest.source_bytes, "levels": in_order(manifest.levels),
        "archive_bytes": sum(manifest.levels.values()), "quality": manifest.quality, "indexes": list(report.indexes),
        "job": report.job, "page": report.page,
    } | _asked_of_s3(report)  # fmt: skip


def _asked_of_s3(report: Report) -> dict[str, Any]:
    """Requests and bytes of a run that touched S3."""
    used = report.s3
    if not used.total:
        return {}
    share = used.source_read / max(1, report.plan.source_bytes)
    return {
        "s3": {
            "requests": dict(used.requests), "bytes_read": used.read, "bytes_written": used.written,
            "source_requests": used.source_requests, "source_bytes_read": used.source_read,
            "source_read_share": round(share, 4),
        }
    }  # fmt: skip


def _show(report: Report) -> None:
    done = _summary(report)
    if report.changes:
        files, rows = len(report.changes.source.files), report.changes.source.count
        console.say(
            f"{report.url}: {rows:,} rows of {files:,} new or changed files put in, {len(report.changes.gone):,} rows "
            f"deleted, {report.changes.kept:,} as they were"
        )
        return
    _show_parent(report.plan)
    if not report.written:
        built = "" if report.indexes else ": nothing to do"
        console.say(f"{report.url} is finished ({console.count(done['units'], 'unit')}){built}")
        for line in built_lines(report.url, report.indexes) if report.indexes else ():
            console.say(line)
        return
    rate = done["source_bytes"] * report.written / done["units"] / 1e6 / max(report.seconds, 1e-9)
    went_on = f", {report.skipped} from an earlier run" if report.skipped else ""
    console.say(
        f"{report.url}: {console.count(report.written, 'unit')} in {report.seconds:.1f} s ({rate:.1f} MB/s){went_on}"
    )
    by_level = ", ".join(f"{name} {console.size(count)}" for name, count in done["levels"].items())
    share = 100 * done["archive_bytes"] / max(1, done["source_bytes"])
    console.say(f"{by_level}; in all {share:.1f} % of {console.size(done['source_bytes'])}")
    if s3 := done.get("s3"):
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in s3["requests"].items())
        source = f"; the source {s3['source_read_share']:.3f} times" if s3["source_bytes_read"] else ""
        console.say(f"S3: {kinds}; {console.size(s3['bytes_read'])} read, "
                    f"{console.size(s3['bytes_written'])} written{source}")  # fmt: skip
    _show_sampled(report.plan)
    if report.indexes:
        for line in built_lines(report.url, report.indexes):
            console.say(line)
    if report.page:
        console.say(f"how it went: {report.page}")


def _show_plan(plan: Plan, as_json: bool) -> None:
    from pipelines.graph import stages

    graph = ["read", *(stage.name for stage in stages(plan.operators)), "write"]
    estimate = estimated_bytes(plan)
    said = {
        "url": plan.spec.url, "graph": graph, "units": plan.spec.units, "source_bytes": plan.source_bytes,
        "estimated_bytes": estimate, "estimated_total": sum(estimate.values()) or None,
        "arrays": {a.name: {"shape": a.shape, "dtype": a.dtype, "coder": a.coder} for a in plan.spec.arrays},
    }  # fmt: skip
    said |= {key: told for key, told in (("codebook", plan.codebook), ("parent", plan.parent)) if told} | _sampled(plan)
    if as_json:
        console.print_json(said)
        return
    console.say("  ⇒  ".join(graph))  # stages are fused inside, streamed between
    console.say(f"{console.count(plan.spec.units, 'unit')} of {console.size(plan.source_bytes)} into {plan.spec.url}")
    _show_parent(plan)
    _show_sampled(plan)
    _show_codebook(plan.codebook)
    if plan.spec.arrays:
        console.table(
            ("array", "shape", "type", "coder", "estimated"),
            [
                (a.name, "×".join(map(str, a.shape)), a.dtype, a.coder,
                 console.size(estimate[a.name]) if a.name in estimate else "")
                for a in plan.spec.arrays
            ],
        )  # fmt: skip
    if estimate:
        console.say(f"estimated from {plan.trials.planes} sampled planes: {console.size(sum(estimate.values()))}")
    elif plan.recipe.collection:
        console.say("the arrays are settled once the order and the code of the rows are trained on a sample")
    else:
        console.say("no estimate: layout and coders are all named, so none was tried on a sample")


def _sampled(plan: Plan) -> dict[str, Any]:
    """What ``sample`` keeps of each kind, where it leaves anything out."""
    if sum(kept for kept, _ in plan.sampled.values()) == sum(there for _, there in plan.sampled.values()):
        return {}
    return {"sampled": {kind: {"kept": kept, "of": there} for kind, (kept, there) in sorted(plan.sampled.items())}}


def _show_sampled(plan: Plan) -> None:
    if kinds := _sampled(plan).get("sampled"):
        rows = [(kind, n["kept"], n["of"], f"{100 * n['kept'] / max(1, n['of']):.1f} %") for kind, n in kinds.items()]
        console.table(("sampled parameters", "kept", "of", "share"), rows)


def _show_parent(plan: Plan) -> None:
    """Which parent was chosen and why, or why none, where the recipe left it to us."""
    if plan.parent:
        console.say(f"parent: {plan.parent['why']}")


def _show_codebook(told: dict[str, Any]) -> None:
    """Of ``vq``: where its points are from, how many cells each layer has, how well the points fit."""
    if told:
        origin = f"of {told['path']} (SHA-256 {told['sha256'][:12]}…)" if told["path"] else "trained on sampled planes"
        fit = "" if told["sqnr_db"] is None else f"; {told['sqnr_db']:.1f} dB signal to noise on sampled planes"
        console.say(
            f"codebook: {told['codes']:,} points of {console.count(told['dim'], 'value')}, {origin}, "
            f"in layers of {', '.join(f'{cells:,}' for cells in told['layers'])}{fit}"
        )


def estimated_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of each level array, scaled up from the planes on which ``auto`` was resolved; empty without a trial."""
    if not plan.trials.planes:
        return {}
    layout = next((o.layout for o in plan.operators if hasattr(o, "layout")), "raster")
    values = sum(placed.words for placed in plan.source.layout.placements)  # type: ignore[attr-defined]
    estimate = {}
    for array in plan.spec.arrays:
        sampled = plan.trials.bytes.get(f"{layout}/{array.name}/{array.coder}")
        if sampled is not None:
            estimate[array.name] = round(sampled * values / max(1, plan.trials.values))
    return estimate
