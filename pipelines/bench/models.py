"""``bench models``: relatives found among checkpoints whose lineage is known, and who descends from whom.

The test bed is :mod:`pipelines.bench.zoo`. What could be chosen (the least score of relatives, tolerances, weights) was
chosen on half of its families; figures of the other half are given on their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import operators.signature
import operators.sketch
import operators.sketch_sums
import storage.signatures
from cluster.model_index import ModelIndex
from operators.descent import descent
from operators.relation import code_score, relate
from operators.signature import CODE, Signature
from pipelines.bench.material import MODEL, write_model
from pipelines.bench.models_methods import judged_methods, precisions
from pipelines.bench.models_order import order_tables
from pipelines.bench.models_tree import TreeScore, judged, kurtosis_tree, spanning_tree
from pipelines.bench.report import Table, median_seconds
from pipelines.bench.zoo import Member, folder, members
from pipelines.bench.zoo_weights import Weights, read_weights
from pipelines.compile import make_plan
from pipelines.recipe import load
from pipelines.run import run_here
from storage import signatures
from storage.checkpoint import open_checkpoint
from storage.planes import PlaneUnits

F64 = npt.NDArray[np.float64]
LARGE = ("minilm", "minilm-scratch-1", "minilm-scratch-2", "smollm", "crepe-full")
TURNED = ("permuted", "permuted, residual", "rescaled")
MODELS = 100_000


def run(quick: bool) -> Iterator[Table]:
    """All tables; ``quick`` leaves the families of large checkpoints out."""
    chosen = [m for m in members() if not quick or m.family not in LARGE]
    held = [signature_of(member) for member in chosen]
    scores, codes = _scores(held), _codes(held)
    weights = read_weights(chosen)
    yield _retrieval(chosen, held, scores, codes, weights)
    yield _by_change(chosen, scores, weights)
    yield _strangers(chosen, scores)
    yield judged_methods(chosen, held, scores, weights.cosine)
    yield _strain(chosen)
    yield _lineage(chosen, held, weights)
    for family in ("gpt-2", "minilm")[: 1 if quick else 2]:
        yield from order_tables(family, chosen, held)
    yield _speed()


def signature_of(member: Member) -> Signature:
    """The signature of a checkpoint, kept beside the test bed for this version of the code."""
    path = folder() / f"signatures-{_version()}" / f"{member.name}.parquet"
    kept = signatures.load(path.read_bytes(), str(path)) if path.exists() else None
    if kept is not None:
        return kept
    made = signatures.of_checkpoint(open_checkpoint(str(member.path)))
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(signatures.dump(made))
    part.rename(path)
    return made


@lru_cache(maxsize=1)
def _version() -> str:
    files = [
        module.__file__ for module in (operators.sketch, operators.sketch_sums, operators.signature, storage.signatures)
    ]
    return hashlib.sha256(b"".join(Path(str(file)).read_bytes() for file in files)).hexdigest()[:12]


def _scores(held: Sequence[Signature]) -> F64:
    scores = np.ones((len(held), len(held)))
    for i, j in combinations(range(len(held)), 2):
        scores[i, j] = scores[j, i] = relate(held[i], held[j]).score
    return scores


def _codes(held: Sequence[Signature]) -> F64:
    codes = np.stack([signature.code for signature in held])
    return np.stack([code_score(code, codes) for code in codes]).astype(np.float64)


def _retrieval(
    chosen: Sequence[Member], held: Sequence[Signature], scores: F64, codes: F64, weights: Weights
) -> Table:  # fmt: skip
    sizes = [len(signatures.dump(signature)) for signature in held]
    source = sum(member.path.stat().st_size for member in chosen)
    random = np.random.default_rng(0).standard_normal(scores.shape)
    final = np.array([member.final for member in chosen])
    turned = np.array([member.how in TURNED for member in chosen])
    contenders = (
        ("signature", scores, f"{max(sizes):,} at most"), ("its code alone", codes, f"{CODE:,}"),
        ("cosine of the weights, read whole", weights.cosine, f"{source // len(chosen):,}"), ("random", random, "0"),
    )  # fmt: skip
    rows, ours = [], []
    for name, measure, size in contenders:
        found = precisions(measure, chosen)
        told = [np.nanmean(found), np.nanmean(found[final]), np.nanmean(found[turned])]
        ours.append(told)
        rows.append((name, *(f"{value:.4f}" for value in told), size))
    notes = [
        _target("mean average precision, all", ours[0][0], 0.98), _target("permuted and rescaled", ours[0][2], 0.90),
        f"{'met' if max(sizes) <= 64_000 else 'MISSED'}: largest signature {max(sizes):,} bytes (target 64,000)",
    ]  # fmt: skip
    return Table(
        f"Relatives of {len(chosen)} models of {len({m.family for m in chosen})} families: mean average precision",
        ("by", "all", "final families", "permuted or rescaled", "bytes a model"), tuple(rows), tuple(notes),
    )  # fmt: skip


def _by_change(chosen: Sequence[Member], scores: F64, weights: Weights) -> Table:
    ours, plain = precisions(scores, chosen), precisions(weights.cosine, chosen)
    names = {member.name: at for at, member in enumerate(chosen)}
    rows = []
    for how in dict.fromkeys(member.how for member in chosen):
        at = [i for i, member in enumerate(chosen) if member.how == how]
        pairs = [(i, names[p]) for i in at for p in chosen[i].parents[:1] if p in names]
        least = [f"{min(measure[i, j] for i, j in pairs):.3f}" if pairs else "" for measure in (scores, weights.cosine)]
        rows.append((how, len(at), f"{np.nanmean(ours[at]):.4f}", f"{np.nanmean(plain[at]):.4f}", *least))
    return Table(
        "The same by what was done to a model, and the least score to its parent",
        ("change", "models", "signature", "cosine of weights", "least score", "least cosine"), tuple(rows),
    )  # fmt: skip


def _strangers(chosen: Sequence[Member], scores: F64) -> Table:
    """Unrelated models of one architecture must rank below every relative."""
    groups: dict[str, list[int]] = defaultdict(list)
    for at, member in enumerate(chosen):
        groups["minilm" if member.family.startswith("minilm") else member.family.rsplit("-", 1)[0]].append(at)
    rows, wrong = [], 0
    for name, group in groups.items():
        pairs = list(combinations(group, 2))
        related = [scores[i, j] for i, j in pairs if chosen[i].family == chosen[j].family]
        strange = [scores[i, j] for i, j in pairs if chosen[i].family != chosen[j].family]
        outside = [scores[i, j] for i in group for j in range(len(chosen)) if j not in group]
        above = sum(
            any(scores[i, j] >= scores[i, k] for j in group if chosen[j].family != chosen[i].family)
            for i in group for k in group if k != i and chosen[k].family == chosen[i].family
        )  # fmt: skip
        wrong += above
        rows.append((name, len(group), f"{min(related):.3f}", f"{max(strange):.3f}" if strange else "",
                     f"{max(outside):.3f}" if outside else "", above))  # fmt: skip
    verdict = "met" if not wrong else "MISSED"
    return Table(
        "Same architecture, unrelated: scores", ("architecture", "models", "least of relatives",
        "highest of strangers", "highest of other architectures", "relatives below a stranger"), tuple(rows),
        (f"{verdict}: {wrong} relatives rank below a stranger of their architecture (target 0)",),
    )  # fmt: skip


def _strain(chosen: Sequence[Member]) -> Table:
    """How much may be done before relatives are lost: one transformer, more and more noise and pruning."""
    from pipelines.bench import zoo_derive as derive
    from pipelines.bench.zoo_make import read, save

    first = next(member for member in chosen if member.name == "gpt-2")
    stranger = signature_of(next(member for member in chosen if member.name == "gpt-3"))
    own, state = signature_of(first), read(str(first.path))
    rows = []
    changes = [(f"noise of {share:g} deviations", derive.noised(state, share)) for share in (0.5, 1, 2, 4)]
    changes += [(f"{share:.0%} pruned", derive.pruned(state, share)) for share in (0.8, 0.9, 0.95, 0.99)]
    with tempfile.TemporaryDirectory() as place:
        for name, changed in changes:
            save(path := Path(place) / "model.safetensors", changed, "F32")
            other = signatures.of_checkpoint(open_checkpoint(str(path)))
            rows.append((name, f"{relate(own, other).score:.3f}", f"{relate(stranger, other).score:.3f}"))
    return Table("How far it carries: gpt-2 changed, against gpt-3", ("change", "relative", "stranger"), tuple(rows))


def _lineage(chosen: Sequence[Member], held: Sequence[Signature], weights: Weights) -> Table:
    rows, ours = [], TreeScore(0.0, 0.0, 0)
    for what, part in (("chosen on", False), ("final", True)):
        at = [i for i, member in enumerate(chosen) if member.final == part]
        some = [chosen[i] for i in at]
        distance, kurtosis = weights.distance[np.ix_(at, at)], weights.kurtosis[at]
        found = descent({chosen[i].name: held[i] for i in at})
        trees = {
            "signatures": [(edge.parent, edge.child) for edge in found],
            "spanning tree of weight distances, root: most neighbours": spanning_tree(some, distance),
            "MoTHer, kurtosis falls": kurtosis_tree(some, distance, -kurtosis),
            "MoTHer, kurtosis rises": kurtosis_tree(some, distance, kurtosis),
        }
        for name, edges in trees.items():
            score = judged(edges, some)
            ours = score if name == "signatures" else ours
            rows.append((what, name, f"{score.f1:.3f}", f"{score.direction:.3f}", score.edges))
    return Table(
        "Who descends from whom: edges from parent to child", ("families", "by", "edge F1", "direction", "edges"),
        tuple(rows), (
            _target("edge F1, final families", ours.f1, 0.80),
            _target("direction, final families", ours.direction, 0.85),
            "Direction: of the edges between a parent and its child, those that point from the parent.",
            "A merged model has several parents, each of which counts as right. The peers read all weights.",
            "MoTHer: minimum directed spanning tree, with a penalty for edges against the kurtosis; both stages.",
        ),
    )  # fmt: skip


def _speed() -> Table:
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as place:
        write_model(halves := Path(place, "bf16.safetensors"), "BF16")
        own, pipeline = _in_stream(MODEL, place)
        given = _in_stream(str(halves), place, "operators.1.layout=hilbert", "operators.4.coder=rans", "sink.name=half")
    notes = []
    for what, (some, whole) in (("by its recipe", (own, pipeline)), ("as bfloat16, layout and coder given", given)):
        rows += [(f"all-MiniLM-L6-v2 archived {what}, processor time", f"{whole:.2f} s"),
                 ("of this, the signature", f"{1000 * some:.0f} ms, {100 * some / whole:.1f} %")]  # fmt: skip
        met = "met" if some <= 0.05 * whole else "MISSED"
        notes.append(f"{met}: signature {100 * some / whole:.1f} % of archiving {what} (target 5)")
    random = np.random.default_rng(1)
    codes = random.integers(-127, 128, (MODELS, CODE)).astype(np.int8)
    index = ModelIndex()
    index.add([f"model-{i}" for i in range(MODELS)], codes)
    wanted = np.clip(codes[4321] + random.integers(-90, 91, CODE), -127, 127).astype(np.int8)
    assert index.search(wanted, 10)[0][0] == "model-4321"
    search = median_seconds(lambda: index.search(wanted, 10), 15)
    add = median_seconds(lambda: index.add(["one more"], wanted[None]), 15)
    rows += [(f"search of {MODELS:,} models", f"{1000 * search:.1f} ms"),
             ("adding one", f"{1000 * add:.2f} ms")]  # fmt: skip
    return Table(
        "Speed", ("what", "taken"), tuple(rows),
        (*notes, f"{'met' if search <= 0.02 else 'MISSED'}: a search takes {1000 * search:.1f} ms (target 20)"),
    )  # fmt: skip


def _in_stream(source: str, place: str, *settings: str) -> tuple[float, float]:
    """Processor seconds of the signature, and of the whole run in one process."""
    recipe = load("quickstart-model", [f"source.path={source}", f"sink.path={place}", *settings])
    units = make_plan(recipe).source
    assert isinstance(units, PlaneUnits)
    reads = [_processor(lambda some=some: _read_all(some)) for some in (units, dataclasses.replace(units, frame=None))]  # type: ignore[misc]
    sketches = [table.column("sketch")[0].as_py() for table in map(units.read, range(units.units))]
    own = reads[0] - reads[1] + _processor(lambda: signatures.dump(signatures.merged(sketches, 0)))
    return own, _processor(lambda: run_here(recipe), 1)


def _read_all(source: PlaneUnits) -> None:
    for unit in range(source.units):
        source.read(unit)


def _processor(work: Callable[[], Any], repeats: int = 5) -> float:
    """Least processor time of a call, in seconds: other work on the machine only ever adds to it."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def _target(what: str, value: float, least: float) -> str:
    return f"{'met' if value >= least else 'MISSED'}: {what} {value:.3f} (target {least})"
