"""Ways to compare models, judged where the truth is known: signature, features of pictures, both blended, weights."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

import cluster.model_features
import operators.plane_features
from cluster.model_features import PLANES, feature_scores, features_along, sampled
from cluster.model_methods import HYBRID
from cluster.tours import along, tour
from operators.blend import blend, learn
from operators.floats import dtype_info, to_float32
from operators.plane_features import NAMES, PlaneFeatures
from operators.signature import Signature
from pipelines.bench.report import Table
from pipelines.bench.zoo import Member, folder
from pipelines.compile import make_plan
from pipelines.recipe import load
from storage.planes import PlaneUnits

F64 = npt.NDArray[np.float64]
TOLERANCE = 0.05
"""By how much a weight in use may differ from one that is learnt anew, of the largest."""


def judged_methods(chosen: Sequence[Member], held: Sequence[Signature], scores: F64, cosine: F64) -> Table:
    """Mean average precision of every method; ``held`` are the models' signatures, (n, n) by these and by weights."""
    features, taken = pair_features(chosen)
    inputs = np.concatenate([scores[..., None], features], axis=-1)
    final = np.array([member.final for member in chosen])
    weights = learned(inputs, chosen)
    tours = tour(np.stack([signature.code for signature in held]))
    mean = features.mean(axis=-1)
    methods = {
        "signature": scores, "features: mean of the five": mean,
        **{f"features: {name}": features[..., at] for at, name in enumerate(NAMES)},
        "hybrid": blend(inputs, HYBRID), "60 parts of features to 40 of signature": 0.6 * mean + 0.4 * scores,
        "temporal": np.stack([along(row, range(len(chosen))) for row in scores]),
        "the same along a tour of signatures": np.stack([along(row, tours) for row in scores]),
        "exact: cosine of the weights": cosine,
    }  # fmt: skip
    rows = []
    for name, measure in methods.items():
        found = precisions(measure, chosen)
        rows.append((name, f"{np.nanmean(found[~final]):.4f}", f"{np.nanmean(found[final]):.4f}"))
    told = ", ".join(f"{name} {w:.3f}" for name, w in zip(("signature", *NAMES, "constant"), weights, strict=True))
    same = np.abs(weights - HYBRID).max() <= TOLERANCE * np.abs(weights).max()
    return Table(
        f"Methods compared with the truth: mean average precision over {len(chosen)} models",
        ("method", "families chosen on", "final families"), tuple(rows), (
            f"{'met' if same else 'MISSED'}: the hybrid's weights in use are those learnt now ({told})",
            "Temporal takes the models in the order in which they were made.",
            f"Features look at {PLANES} planes of a model and took {1000 * taken:.0f} ms of a core a pair.",
        ),
    )  # fmt: skip


def precisions(scores: F64, chosen: Sequence[Member]) -> npt.NDArray[np.float64]:
    """Average precision of each member as a query, its family being what is relevant; NaN without relatives."""
    families = np.array([member.family for member in chosen])
    found = np.full(len(chosen), np.nan)
    for at in range(len(chosen)):
        others = np.arange(len(chosen)) != at
        order = np.argsort(-scores[at][others], kind="stable")
        relevant = (families == families[at])[others][order]
        if relevant.any():
            found[at] = float((np.cumsum(relevant) / np.arange(1, len(relevant) + 1))[relevant].mean())
    return found


def learned(inputs: F64, chosen: Sequence[Member]) -> F64:
    """Weights (columns + 1,) from the pairs of the families that are not final; inputs (n, n, columns)."""
    part = [at for at, member in enumerate(chosen) if not member.final]
    pairs = list(combinations(part, 2))
    related = np.array([chosen[i].family == chosen[j].family for i, j in pairs])
    return learn(np.array([inputs[i, j] for i, j in pairs]), related)


def pair_features(chosen: Sequence[Member]) -> tuple[F64, float]:
    """Features (n, n, 5) of all pairs, kept beside the test bed for this version of the code; seconds that one took."""
    names = hashlib.sha256("\n".join(member.name for member in chosen).encode()).hexdigest()[:8]
    path = folder() / f"features-{_version()}-{names}.npz"
    if not path.exists():
        began = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count() or 1, context) as pool:
            seen = list(pool.map(_seen, [str(member.path) for member in chosen]))
            lines = list(pool.map(_line, range(len(chosen)), [seen] * len(chosen), chunksize=4))
        table = np.ones((len(chosen), len(chosen), len(NAMES)))
        for i, line in enumerate(lines):
            table[i, i + 1 :] = table[i + 1 :, i] = line
        count = len(chosen) * (len(chosen) - 1) / 2
        taken = (time.perf_counter() - began) * (os.cpu_count() or 1) / count
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, table=table, taken=taken)
        path.with_suffix(".part").rename(path)
    with np.load(path, allow_pickle=False) as kept:
        return kept["table"], float(kept["taken"])


def _version() -> str:
    files = [module.__file__ for module in (operators.plane_features, cluster.model_features)]
    return hashlib.sha256(b"".join(Path(str(file)).read_bytes() for file in files)).hexdigest()[:12]


def _seen(path: str) -> list[PlaneFeatures]:
    """Features of a checkpoint's planes, as they would be of its archive."""
    with tempfile.TemporaryDirectory() as place:
        sets = [f"source.path={path}", f"sink.path={place}", "operators.4.coder=rans", "operators.1.layout=hilbert"]
        source = make_plan(load("quickstart-model", sets)).source
    assert isinstance(source, PlaneUnits)
    layout, found = source.layout, []
    for plane in sampled(layout):
        unit = next(u for u in range(layout.units) if layout.unit_planes(u)[1] <= plane < layout.unit_planes(u)[2])
        table = source.read_planes(unit, plane, plane + 1)
        dtype = table["dtype"][0].as_py()
        words = np.frombuffer(table["bits"][0].as_py(), f"<u{min(dtype_info(dtype).width, 4)}")
        found.append(features_along(to_float32(words, dtype), layout.side))
    return found


def _line(at: int, seen: Sequence[Sequence[PlaneFeatures]]) -> F64:
    """(n - at - 1, 5) of a model with those after it."""
    return np.array([feature_scores(seen[at], other) for other in seen[at + 1 :]]).reshape(-1, len(NAMES))
