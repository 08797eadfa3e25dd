"""What became of a model, layer by layer, in words and as a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cluster.model_differences import MOVED, by_layer, differences, heat_map
from operators.signature import Signature
from pipelines.bench import zoo_derive as derive
from tests.unit.test_signature import CHANGES, LAYERS, signature, state


@pytest.fixture
def own(tmp_path: Path) -> Signature:
    return signature(tmp_path, state(1))


def test_only_the_layer_that_was_trained_differs(own: Signature, tmp_path: Path) -> None:
    tuned = {n: v + np.float32(0.03) * v.std() * (n.startswith("layers.2.")) for n, v in state(1).items()}
    tuned["layers.2.up_proj.weight"] = derive.noised(state(1), 0.02)["layers.2.up_proj.weight"]
    lines = {
        name: (change, what) for name, _, _, change, what in by_layer(differences(own, signature(tmp_path, tuned)))
    }
    assert lines["layer 0"] == (0.0, "the same") == lines["layer 1"]
    assert 0 < (lines["layer 2"][0] or 0) < 0.05 and lines["layer 2"][1] == "changed a little"


@pytest.mark.parametrize(
    ("how", "expected"),
    [("permuted", MOVED), ("pruned", "50 % zeros, 0 % before"), ("nf4", "quantized"), ("short", "the same")],
)
def test_what_was_done_is_said(own: Signature, tmp_path: Path, how: str, expected: str) -> None:
    rows = differences(own, signature(tmp_path, CHANGES[how](state(1))))
    assert sum(row.what == expected for row in rows if row.layer >= 0) >= 2 * LAYERS
    gone = {row.layer for row in rows if row.what == "only in the first"}
    assert gone == ({1} if how == "short" else set())


def test_the_map_has_a_cell_a_matrix(own: Signature, tmp_path: Path) -> None:
    rows = differences(own, signature(tmp_path, CHANGES["noised"](state(1))))
    drawn = ElementTree.fromstring(heat_map("a <b>", "c", rows))
    cells = [cell for cell in drawn.iter("{http://www.w3.org/2000/svg}rect") if len(cell)]
    assert len(cells) == len(own.tensors)


def test_layers_of_the_second_alone_stand_apart(own: Signature, tmp_path: Path) -> None:
    rows = differences(signature(tmp_path, CHANGES["short"](state(1))), own)
    (extra,) = [line for line in by_layer(rows) if line[4] == "only in the second"]
    assert extra[0] == "layer 1 of the second" and ("layer 1", extra[1]) in [line[:2] for line in by_layer(rows)]
    drawn = ElementTree.fromstring(heat_map("a", "b", rows))
    cells = [cell for cell in drawn.iter("{http://www.w3.org/2000/svg}rect") if len(cell)]
    assert len(cells) == len(rows) and "+1" in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
