"""Run a recipe: plan it, stream what is missing, seal the archive, build its indexes."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.ray_start import ray_starts
from operators.amounts import in_order
from operators.errors import HilbertflowError
from pipelines import flow_limits
from pipelines.compile import make_plan, prepare
from pipelines.pending import Pending
from pipelines.plan import Pass, Plan
from pipelines.progress import Reporter, emit, job_id
from pipelines.recipe import CollectionSource, Recipe
from pipelines.tally import Watched
from pipelines.update import bring_up_to_date, changes_of, is_folder
from storage import archive, catalog, s3_meter
from storage import manifest as manifests
from storage.folder_changes import FolderChanges
from storage.fs import Location
from storage.generations import publish, unfinished
from storage.lease import Lease, held
from storage.manifest import Manifest
from storage.rowlog import GENERATIONS, home_of
from storage.s3_meter import Used
from storage.spec import claim, open_for_writing
from storage.under_way import tell
from storage.writer import clear, finish


@dataclass(frozen=True)
class Seen:
    """What was seen of a run on Ray: of its workers, how long indexes took, machines and CPUs of the cluster."""

    watched: Watched
    index_seconds: float
    nodes: int
    cpus: int


@dataclass(frozen=True)
class Report:
    """What a run did.

    Parameters
    ----------
    url: the archive.
    manifest: its manifest; None after a dry run.
    plan: what was planned.
    written, skipped: units of the archive by this run and by earlier ones.
    seconds: of streaming.
    indexes: kinds of the indexes that were built by this run.
    peak_memory: bytes of the largest worker of each stage, by its first operator.
    changes: what a finished collection of a folder was brought up to date with; None where it was made by this run.
    s3: what planning, streaming and finishing asked of S3, in all processes; indexes not counted. Empty
        where a part of it is not known: what counted it was killed.
    job: id of the run among Ray's jobs; empty without Ray.
    seen: what was seen of its workers; None when nothing was to do, or without Ray.
    page: URL of the page that tells how the run went; empty when nothing was to do, or without Ray.
    """

    url: str
    manifest: Manifest | None
    plan: Plan
    written: int = 0
    skipped: int = 0
    seconds: float = 0.0
    indexes: tuple[str, ...] = ()
    peak_memory: dict[str, int] = field(default_factory=dict)
    changes: FolderChanges | None = None
    s3: Used = field(default_factory=Used)
    job: str = ""
    seen: Seen | None = None
    page: str = ""


def run(recipe: Recipe, *, address: str | None = None, json_log: bool = False, dry_run: bool = False) -> Report:
    """Run a recipe to the end, or on from where an earlier run of it stopped.

    Raises :class:`HilbertflowError` for whatever can be told before Ray starts: the source, the sink, the operators.
    """
    s3_meter.watch(recipe.source.path)
    before = s3_meter.used()
    _find_gpu(recipe)
    plan = make_plan(resumed(recipe))
    if dry_run:
        return Report(plan.spec.url, None, plan)
    with _writing(plan) as lease:
        if lease is None:
            return _brought_up_to_date(plan, address, json_log)
        store = flow_limits.object_store(plan.recipe.compute, plan.source.unit_bytes, os.cpu_count() or 1)
        with local_ray(address, store), _goes_on(plan.spec.url):
            report = _archived(plan, lease, json_log)
    clear(Location(report.url))
    _publish(report.plan)
    if report.seen and report.seen.watched.whole:  # the lease is renewed until here, while Ray ends too
        report = replace(report, s3=report.s3 + (s3_meter.used() - before))
    return replace(report, page=_page(report))


def _archived(plan: Plan, lease: Lease, json_log: bool) -> Report:
    """Stream what is missing, seal the archive, build its indexes. The report's `s3` lacks what this process asked."""
    from pipelines.graph import execute

    spec, compute = plan.spec, plan.recipe.compute
    with Reporter(spec.name, json_log) as reporter:

        def carry_out(step: Pass) -> None:
            tell(Location(spec.url), step.name, step.source.units, step.writer.folder)
            done = step.writer.written()
            reporter.begin(step.name, step.source.units, len(done))
            if pending := Pending.missing(step.source.units, done):
                execute(step, compute, pending, reporter.tally, plan.recipe.source.path, spec.name)

        plan = prepare(plan, carry_out)
        open_for_writing(plan.spec)
        carry_out(plan.last)
    lease.check()
    manifest = finish(plan.spec, plan.extra)
    catalog.add(Location(plan.recipe.sink.path), manifest)
    if json_log:
        emit("archived", job=reporter.job, archive=spec.name, url=spec.url, levels=manifest.levels,
             source_bytes=manifest.source_bytes)  # fmt: skip
    began, streamed = time.monotonic(), s3_meter.used()
    indexes = _index(plan, json_log)
    workers = reporter.watched.s3 - (s3_meter.used() - streamed) if reporter.watched.whole else Used()
    seen = Seen(reporter.watched, time.monotonic() - began, *_cluster())
    return Report(
        spec.url, manifest, plan, manifest.units - reporter.found, reporter.found, reporter.seconds, indexes,
        reporter.watched.peaks, s3=workers, job=reporter.job, seen=seen,
    )  # fmt: skip


def _cluster() -> tuple[int, int]:
    return sum(node["Alive"] for node in ray.nodes()), int(ray.cluster_resources().get("CPU", 1))


def _page(report: Report) -> str:
    """Write the page of a run; a run that is through does not fail for want of it."""
    from pipelines import run_page

    manifest, recipe, seen = report.manifest, report.plan.recipe, report.seen
    assert manifest is not None and seen is not None
    told = run_page.Run(
        report.url, manifest.kind, manifest.name, report.job, report.seconds, manifest.units, report.written,
        report.skipped, manifest.source_bytes, in_order(manifest.levels), manifest.quality, seen.watched,
        recipe.compute.memory, seen.nodes, seen.cpus, recipe.model_dump(mode="json"), report.s3, report.indexes,
        seen.index_seconds, report.plan.parent,
    )  # fmt: skip
    try:
        return run_page.write(told, Location(recipe.sink.path))
    except HilbertflowError as error:
        print(f"the run is finished, its page could not be written: {error}", file=sys.stderr, flush=True)
        return ""


def _brought_up_to_date(plan: Plan, address: str | None, json_log: bool) -> Report:
    """What is left to do for a finished archive: what has changed in its folder, indexes."""
    from pipelines.graph import execute

    manifest = _finished(plan)
    assert manifest is not None
    clear(Location(plan.spec.url))  # left over when a run died between the manifest and its end
    changes = changes_of(plan)
    with nullcontext() if _indexed(plan) and not changes else local_ray(address):
        if changes:
            with Reporter(plan.spec.name, json_log) as reporter:

                def update(step: Pass) -> None:
                    reporter.begin(step.name, step.source.units, 0)
                    units, compute = Pending.all(step.source.units), plan.recipe.compute
                    execute(step, compute, units, reporter.tally, archive=plan.spec.name)

                bring_up_to_date(plan, changes, update)
        indexes = _index(plan, json_log)
    _publish(plan)
    return Report(plan.spec.url, manifest, plan, skipped=manifest.units, indexes=indexes, changes=changes)


def run_here(recipe: Recipe, *, indexes: bool = False) -> Report:
    """The same in this process, without Ray or progress, and without the recipe's indexes unless asked for: for small
    things.
    """
    s3_meter.watch(recipe.source.path)
    before = s3_meter.used()
    _find_gpu(recipe)
    plan = make_plan(resumed(recipe))

    def carry_out(step: Pass) -> None:
        tell(Location(plan.spec.url), step.name, step.source.units, step.writer.folder)
        _carry_out_here(step)

    with _writing(plan) as lease:
        if lease is not None:
            plan = prepare(plan, carry_out)
            open_for_writing(plan.spec)
            found = len(plan.last.writer.written())
            carry_out(plan.last)
            lease.check()
            manifest = finish(plan.spec, plan.extra)
            catalog.add(Location(recipe.sink.path), manifest)
    clear(Location(plan.spec.url))
    asked = s3_meter.used() - before
    built = _index(plan, False) if indexes else ()
    _publish(plan)
    if lease is None:
        finished = _finished(plan)
        assert finished is not None
        if changes := changes_of(plan):
            bring_up_to_date(plan, changes, _carry_out_here)
        return Report(plan.spec.url, finished, plan, skipped=finished.units, indexes=built, changes=changes)
    return Report(plan.spec.url, manifest, plan, manifest.units - found, found, indexes=built, s3=asked)


def _find_gpu(recipe: Recipe) -> None:
    """Refuse what the index cannot be made with, before the archive is."""
    if recipe.index is not None and recipe.index.device == "cuda":
        from cluster.device import runs_on_gpu

        runs_on_gpu("cuda", "index.device")


def resumed(recipe: Recipe) -> Recipe:
    """The recipe; a compaction that an earlier run began goes on at the version where that one was."""
    source = recipe.source
    if not isinstance(source, CollectionSource) or source.version is not None:
        return recipe
    home = home_of(archive.open(source.path))
    if home.url != Location(recipe.sink.path).join("collections", recipe.archive_name).url:
        return recipe
    for version, identity in unfinished(home):
        pinned = recipe.model_copy(update={"source": source.model_copy(update={"version": version})})
        if make_plan(pinned).spec.identity.startswith(identity):
            return pinned
    return recipe


@contextmanager
def _writing(plan: Plan) -> Iterator[Lease | None]:
    """The lease of the archive while it is written, its name taken; None where it is finished."""
    if _finished(plan) is not None:
        yield None
        return
    claim(plan.spec)
    with held(Location(plan.spec.url), lambda text: print(text, file=sys.stderr, flush=True)) as lease:
        yield lease if _finished(plan) is None else None  # another run may just have ended


def _publish(plan: Plan) -> None:
    """Let a compaction's archive take the place of the one it was made of, now that it is whole."""
    if f"/{GENERATIONS}/" in plan.spec.url and not publish(Location(plan.spec.url)):
        raise HilbertflowError("another compaction was faster", where=plan.spec.url, remedy="nothing is left to do")


def _carry_out_here(step: Pass) -> None:
    here(step, Pending.missing(step.source.units, step.writer.written()))


def here(step: Pass, pending: Pending) -> None:
    """Stream units of a pass in this process."""
    for unit in pending:
        batch = step.source.read(unit)
        for operator in step.operators:
            batch = operator.apply(batch)
        step.writer.write(batch)


def _finished(plan: Plan) -> Manifest | None:
    """The manifest when this recipe has archived this source already, be it a folder that has changed since."""
    place = Location(plan.spec.url)
    if not place.exists(manifests.NAME):
        return None
    manifest = manifests.load(place)
    same_source = manifest.fingerprint == plan.spec.fingerprint or is_folder(plan)
    if not same_source or manifest.recipe_hash != plan.spec.recipe_hash:
        raise HilbertflowError(
            "an archive of another source or recipe has this name", where=place.url,
            remedy=f"set sink.name to another one, or remove it with `hilbertflow rm {place.url}`",
        )  # fmt: skip
    catalog.add(Location(plan.recipe.sink.path), manifest)
    return manifest


def _indexed(plan: Plan) -> bool:
    """Whether the recipe asks for no index that is not there."""
    index = plan.recipe.index
    if index is None:
        return True
    from cluster.autotune import is_chosen
    from cluster.build import are_current, open_collection

    if index.kind == "auto":
        return is_chosen(open_collection(plan.spec.url), index.target_recall, index.memory, index.shards, index.device)
    return are_current(
        plan.spec.url, index.kinds, shards=index.shards, target_recall=index.target_recall, device=index.device
    )


def _index(plan: Plan, json_log: bool) -> tuple[str, ...]:
    index = plan.recipe.index
    if index is None:
        return ()
    from cluster.autotune import choose_index
    from cluster.build import build_indexes

    url, shards, target, device = plan.spec.url, index.shards, index.target_recall, index.device
    if index.kind == "auto":
        built = choose_index(url, shards=shards, target_recall=target, memory=index.memory, device=device)
    else:
        built = build_indexes(url, index.kinds, shards=shards, target_recall=target, device=device)
    if json_log:
        emit("indexed", job=job_id(), archive=plan.spec.name, url=plan.spec.url, kinds=list(built))
    return tuple(built)


@contextmanager
def local_ray(address: str | None, object_store: int = flow_limits.MOST_OBJECT_STORE) -> Iterator[None]:
    """A Ray to run on: the one at ``address``, the one this process has, or a local one that ends with the run.

    ``object_store`` is the shared memory, in bytes, of one that is started here.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the core's own notes are not for the terminal
    try:
        with ray_starts(address), _quiet_start():
            if address:
                ray.init(address=address, logging_level=logging.ERROR)
            else:
                ray.init(
                    address="local", include_dashboard=False, object_store_memory=object_store,
                    logging_level=logging.ERROR, log_to_driver=False,
                )  # fmt: skip
        yield
    finally:
        ray.shutdown()


@contextmanager
def _goes_on(url: str) -> Iterator[None]:
    """Say in one line that Ray itself came to an end; what an operator raised passes."""
    try:
        yield
    except RayError as error:
        if isinstance(error, RayTaskError):
            raise
        raise HilbertflowError(
            f"Ray does not answer any more ({type(error).__name__})", where=url,
            remedy="run the recipe again: it goes on after the units that are written",
        ) from error  # fmt: skip


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Ray's core writes to the process's standard error as it starts, past Python; show it only if the start fails."""
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
