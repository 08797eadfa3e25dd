"""Tables of ``bench models`` over two small families that are made here: what they say is what was done."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from operators.relation import relate
from operators.signature import Signature
from pipelines.bench import zoo_derive as derive
from pipelines.bench.models_methods import judged_methods, learned
from pipelines.bench.models_order import coherence, difference_bytes, order_tables
from pipelines.bench.report import Table
from pipelines.bench.zoo import Member, folder
from pipelines.bench.zoo_make import save
from storage import signatures
from storage.checkpoint import open_checkpoint
from tests.unit.test_signature import state

HOWS = ("scratch", "noised", "more", "pruned")


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Member], list[Signature]]]:
    """Two families of four, in a cache of their own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    members = []
    for number, final in ((1, False), (2, False), (3, True)):
        first = {name: np.tile(value, (4, 4)) if value.ndim > 1 else value for name, value in state(number).items()}
        made = (first, derive.noised(first, 0.05), derive.noised(first, 0.2, 7), derive.pruned(first, 0.3))
        for how, values in zip(HOWS, made, strict=True):
            parents = () if how == "scratch" else (f"{number}-scratch",)
            members.append(Member(f"{number}-{how}", f"family-{number}", parents, how, final))
            save(members[-1].path, values, "F32")
    yield members, [signatures.of_checkpoint(open_checkpoint(str(member.path))) for member in members]
    patch.undo()


def column(table: Table, name: str) -> dict[str, float]:
    return {str(row[0]): float(row[table.columns.index(name)]) for row in table.rows}


def test_methods_are_judged_by_the_truth(bed: tuple[list[Member], list[Signature]]) -> None:
    pytest.importorskip("skimage", reason="compares pictures")
    members, held = bed
    scores = np.array([[relate(a, b).score for b in held] for a in held])
    told = judged_methods(members, held, scores, np.zeros_like(scores))
    final = column(told, "final families")
    assert final["signature"] == final["hybrid"] == 1.0 and final["features: mean of the five"] == 1.0
    assert any("weights" in note for note in told.notes) and list(folder().glob("features-*.npz"))
    inputs = np.stack([scores, np.random.default_rng(1).random(scores.shape)], axis=-1)
    weights = learned(inputs, members)
    assert weights[0] > 5 * abs(weights[1])


def test_the_order_of_a_family_is_worth_what_it_saves(bed: tuple[list[Member], list[Signature]]) -> None:
    orders, insertions = order_tables("family-1", *bed)
    bits = column(orders, "exact differences")
    assert set(bits) >= {"tour through the signatures", "name", "time"} and max(bits.values()) < 32
    new = column(insertions, "bits a value")
    best = new["behind the best of all"]
    assert best <= new["behind that of the least difference"] < new["alone"]
    assert all(best <= value for value in new.values())


def test_coherence_and_differences() -> None:
    frame = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    assert coherence(np.stack([frame, 2 * frame, frame])) == pytest.approx(1)
    assert coherence(np.stack([frame, -frame])) == pytest.approx(-1)
    near = frame + np.float32(1e-4) * frame[::-1]
    assert difference_bytes(frame, frame) < 2000 < difference_bytes(near, frame) < 0.7 * difference_bytes(near, None)
