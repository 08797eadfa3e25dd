"""The page that a run leaves beside its archive: one HTML file without scripts or other hosts, light and dark."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from operators.amounts import size
from pipelines import run_svg
from pipelines.tally import Watched
from storage.archive import RUNS
from storage.fs import Location
from storage.s3_meter import Used

COLOURS = 8
EARLIER = 20


@dataclass(frozen=True)
class Run:
    """What the page tells.

    Parameters
    ----------
    url, kind, name: of the archive; kind is ``model`` or ``collection``.
    job: id of the run among Ray's jobs.
    seconds: of streaming; index_seconds: of building ``indexes`` after it.
    units, written, skipped: of the archive; by this run, by earlier ones.
    source_bytes, levels, quality: as the manifest has them.
    watched: what was seen of the workers.
    s3: what the whole run asked of S3.
    memory: bytes that the recipe allows a worker.
    nodes, cpus: machines and CPUs of the cluster it ran on.
    recipe: for the record.
    parent: what is told of a parent that was chosen; empty where none was to be.
    """

    url: str
    kind: str
    name: str
    job: str
    seconds: float
    units: int
    written: int
    skipped: int
    source_bytes: int
    levels: dict[str, int]
    quality: dict[str, Any]
    watched: Watched
    memory: int
    nodes: int
    cpus: int
    recipe: dict[str, Any]
    s3: Used = field(default_factory=Used)
    indexes: tuple[str, ...] = ()
    index_seconds: float = 0.0
    parent: dict[str, Any] = field(default_factory=dict)

    @property
    def started(self) -> datetime:
        """When streaming began."""
        return datetime.fromtimestamp(self.watched.ledger.began, UTC)


def write(run: Run, root: Location) -> str:
    """Put the page under the root, as ``runs/models/NAME/TIME.html``; returns its URL.

    It belongs to no archive: ``verify``, ``cp`` and ``gc`` do not look at it, ``rm`` takes it along.
    """
    place = root.join(folder(run.kind, run.name))
    earlier = [name for name in place.children() if name.endswith(".html")]
    key = f"{run.started:%Y%m%dT%H%M%S}{run.started.microsecond // 1000:03d}Z.html"
    place.write_atomic(key, page(run, [name for name in earlier if name != key]).encode(), durable=False)
    return place.join(key).url


def folder(kind: str, name: str) -> str:
    """Where under a root the pages of an archive's runs lie."""
    return f"{RUNS}/{kind}s/{name}"


def page(run: Run, earlier: list[str] | None = None) -> str:
    """The HTML; ``earlier`` are names of pages that lie beside it."""
    whole = max(run.seconds, 1e-3)
    colours = _colours(run)
    return _environment().get_template("run_page.html").render(
        run=run, facts=_facts(run), ticks=run_svg.time_ticks(whole), most=_most_at_once(run),
        lanes=_lanes(run, whole, colours), flow=_throughput(run, whole), levels=_levels(run),
        slowest=_slowest(run, colours), memory=_memory(run),
        s3=_s3(run), recipe=json.dumps(run.recipe, indent=1, ensure_ascii=False),
        earlier=sorted(earlier or [])[::-1][:EARLIER],
    )  # fmt: skip


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """Name, figure and a remark of each headline."""
    done = run.source_bytes * run.written / max(1, run.units)
    archived = sum(run.levels.values())
    busy = sum(total.seconds for total in run.watched.ledger.totals.values())
    largest = max(run.watched.peaks.values(), default=0)
    rate = done / 1e6 / max(run.seconds, 1e-9)
    before = f"{run.skipped:,} of {run.units:,} by earlier runs" if run.skipped else f"of {run.units:,}"
    cluster = f"{_count(run.cpus, 'CPU')}, {_count(run.nodes, 'machine')}"
    facts = [
        ("throughput", f"{rate:.1f} MB/s", f"of source, {size(done)} in {_time(run.seconds)}"),
        ("units written", f"{run.written:,}", before),
        ("archive", size(archived), f"{100 * archived / max(1, run.source_bytes):.1f} % of {size(run.source_bytes)}"),
        ("operators at work", f"{busy / max(run.seconds, 1e-9):.2f}", f"on average; {cluster}"),
        ("largest worker", size(largest) if largest else "–", f"of {size(run.memory)} allowed"),
    ]  # fmt: skip
    if run.parent:
        facts.append(("parent", run.parent["name"] or "none", run.parent["why"]))
    if run.indexes:
        facts.append(("indexes", ", ".join(run.indexes), f"built in {_time(run.index_seconds)}"))
    if run.s3.total:
        facts.append(("S3", f"{run.s3.total:,}", f"requests; {size(run.s3.read)} read, {size(run.s3.written)} written"))
    return facts


def _colours(run: Run) -> dict[str, str]:
    """A CSS class an operator, the same in every pass."""
    kinds = dict.fromkeys(kind for stages in run.watched.flows.values() for stage in stages for kind in stage)
    kinds |= dict.fromkeys(kind for _, kind in run.watched.ledger.totals)
    return {kind: f"c{at if at < COLOURS else 'x'}" for at, kind in enumerate(kinds)}


def _lanes(run: Run, whole: float, colours: dict[str, str]) -> list[dict[str, Any]]:
    """A pass with its operators: what each did, and when."""
    ledger, passes, most = run.watched.ledger, [], _most_at_once(run)
    for step in dict.fromkeys(step for step, _ in ledger.totals):
        order = [kind for stage in run.watched.flows.get(step, []) for kind in stage]
        found = [(kind, ledger.totals[step, kind]) for kind in order if (step, kind) in ledger.totals]
        lanes = []
        for kind, total in found:
            said = f"{kind}: {total.seconds:.1f} s of work, {max(total.busy.rates(), default=0):.1f} at once at most"
            lanes.append({
                "kind": kind, "colour": colours[kind], "units": total.units, "seconds": total.seconds,
                "each": 1000 * total.seconds / max(1, total.units), "bytes_in": total.bytes_in,
                "bytes_out": total.bytes_out, "workers": len(total.workers),
                "drawn": run_svg.area(total.busy.rates(), total.busy.slot, whole, most, colours[kind], said),
            })  # fmt: skip
        passes.append({"step": step, "lanes": lanes, "all": sum(total.seconds for _, total in found)})
    return passes


def _most_at_once(run: Run) -> int:
    rates = (rate for total in run.watched.ledger.totals.values() for rate in total.busy.rates())
    return max(1, ceil(max(rates, default=1.0) - 0.01))


def _throughput(run: Run, whole: float) -> dict[str, Any] | None:
    """Source bytes written by time; None where no pass wrote any. Slots are wide enough that a unit is no needle."""
    written = run.watched.ledger.written
    if not sum(written.amounts):
        return None
    group = max(1, round(whole / min(48, max(4, run.written / 2)) / written.slot))
    amounts = [sum(written.amounts[at : at + group]) for at in range(0, len(written.amounts), group)]
    slot = group * written.slot
    rates = [amount / slot / 1e6 for amount in amounts]
    most = max(rates)
    said = f"up to {most:.1f} MB/s"
    return {"drawn": run_svg.area(rates, slot, whole, most, "c0", said), "most": most, "slot": slot}


def _levels(run: Run) -> list[dict[str, Any]]:
    most = max(run.levels.values(), default=1)
    rows = []
    for name, count in run.levels.items():
        told = run.quality.get(f"sqnr_db_{name}")
        share = count / max(1, run.source_bytes)
        rows.append({
            "name": name, "bytes": count, "share": share,
            "quality": "bit-exact" if name == "exact" else f"{told:.1f} dB" if told is not None else "",
            "drawn": run_svg.bar([("c0", count / max(1, most))], f"{name}: {size(count)}"),
        })  # fmt: skip
    return rows


def _slowest(run: Run, colours: dict[str, str]) -> list[dict[str, Any]]:
    units = run.watched.ledger.slowest
    most = max((unit.seconds for unit in units), default=1.0)
    rows = []
    for unit in units:
        parts = [(colours[kind], seconds / max(most, 1e-9)) for kind, seconds in unit.operators.items()]
        longest = max(unit.operators, key=lambda kind: unit.operators[kind], default="")
        rows.append({"step": unit.step, "unit": unit.unit, "seconds": unit.seconds, "longest": longest,
                     "drawn": run_svg.bar(parts, f"{unit.seconds:.2f} s, most of it {longest}")})  # fmt: skip
    return rows


def _memory(run: Run) -> list[dict[str, Any]]:
    most = max([run.memory, *run.watched.peaks.values()])
    return [
        {"stage": stage, "bytes": peak, "over": peak > run.memory,
         "drawn": run_svg.bar([("over" if peak > run.memory else "c0", peak / most)], f"{stage}: {size(peak)}")}
        for stage, peak in sorted(run.watched.peaks.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def _s3(run: Run) -> list[tuple[str, str]]:
    used = run.s3
    if not used.total:
        return []
    rows = [(f"{kind} requests", f"{count:,}") for kind, count in used.requests.items()]
    rows += [("read", size(used.read)), ("written", size(used.written))]
    if used.source_read:
        rows.append(("of the source", f"{size(used.source_read)} in {used.source_requests:,} requests"))
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else run_svg.clock(seconds)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"size": size, "count": lambda number: f"{number:,}", "time": _time}
    return made
