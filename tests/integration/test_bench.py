"""Benchmarks run, count every byte, and hold what the project claims where that does not depend on the clock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from operators.layerize import Layerize
from operators.quantize import Quantize
from pipelines.bench import block_formats, chart, fidelity, rate, weights
from pipelines.bench.material import gaussian, model_planes, shuffled


@pytest.mark.parametrize("decibels", [3.0, 15.0, 29.5])
@pytest.mark.parametrize(("states", "side", "most"), [(8, 256, 0.08), (256, 256, 0.042)])
def test_the_trellis_lies_close_to_the_bound_on_a_gaussian(
    states: int, side: int, most: float, decibels: float
) -> None:
    material, base = gaussian("F32", 16), Layerize(levels=("base",))
    coded = rate.encode(material, Quantize(states=states, sqnr_db=decibels), base, side=side)  # type: ignore[arg-type]
    bits = 8 * coded.bytes / material.count
    assert 0 < bits - coded.sqnr_db / 6.0206 < most


def test_pooled_rows_at_low_rate_take_fewer_bits_with_heavy_tails() -> None:
    """The shuffled weights at an error where the standard codec of neural networks takes .386 bit."""
    material, base, bits = shuffled(model_planes("F32", 16)), Layerize(levels=("base",)), {}
    for tails in rate.TAILS:
        coded = rate.encode(material, Quantize(sqnr_db=2.19, tails=tails), base)
        bits[tails] = 8 * coded.bytes / material.count + (2.19 - coded.sqnr_db) / 6.0206
    assert bits["laplace"] < 0.38 < bits["gaussian"]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_all_levels_cost_little_more_than_one_lossless_copy(dtype: str) -> None:
    material = model_planes(dtype, 4)
    layers = Layerize(levels=("base", "fine", "exact"))
    coded = rate.encode(material, Quantize(sqnr_db=20.2), layers)
    alone = weights.single_bytes(material)
    assert coded.bytes <= 1.02 * alone
    base = 8 * (coded.levels["level0"] + coded.levels["scales"]) / material.count
    assert base <= 4.0 and coded.sqnr_db >= 20.0


def test_block_formats_reach_what_is_published_of_them() -> None:
    values = gaussian("F32", 2).values
    reached = {name: rate.row_sqnr(values, coder(values).values) for name, coder in block_formats.FORMATS.items()}
    assert 20 < reached["NF4, blocks of 64"] < 21.5
    assert 19.5 < reached["Q4_0"] < 22 and 44 < reached["Q8_0"] < 46.5


def test_sentences_are_whole_and_quoted_in_wordnet(tmp_path: Path) -> None:
    glosses = {
        "noun": 'a trip; "The whole class went there by bus"; "a bus full of people"; "Nobody came"',
        "verb": 'go; "Are you going to the market?"; "The whole class went there by bus"',
        "adj": "red", "adv": 'so; "It was so; he left at once"',
    }  # fmt: skip
    for part, gloss in glosses.items():
        licence = '  1 This software | "Words of the licence are no sentences here"'
        (tmp_path / f"data.{part}").write_text(f"{licence}\n00001740 03 n 01 word 0 000 | {gloss}  \n")
    assert fidelity.examples(tmp_path) == [
        "The whole class went there by bus", "Are you going to the market?", "It was so; he left at once",
    ]  # fmt: skip


def test_the_same_2000_sentences_every_time() -> None:
    texts = fidelity.sentences(2000)
    assert len(set(texts)) == 2000 and texts == fidelity.sentences(2000) and texts[:300] == fidelity.sentences(300)
    assert all(text[0].isupper() and len(text.split()) >= 5 and '"' not in text for text in texts)


def test_without_wordnet_the_error_says_what_to_install(tmp_path: Path) -> None:
    """Where neither the system nor the cache has the files and no package can be fetched."""
    if Path("/usr/share/wordnet").exists():
        pytest.skip("WordNet is installed on this machine")
    code = "from pipelines.bench.fidelity import sentences\nsentences(5)"
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stderr
    assert "the Debian package wordnet-base is not installed and cannot be downloaded; apt-get install" in said


def test_shuffling_keeps_the_values() -> None:
    material = model_planes("BF16", 1)
    np.testing.assert_array_equal(np.sort(shuffled(material).words, None), np.sort(material.words, None))


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws")
    table = rate.rate_distortion(gaussian("F32", 4), (10.0,), quick=True)
    verdicts = {row[0]: row[-1] for row in table.rows}
    assert verdicts["NF4, blocks of 64"] == "beaten" and "NOT BEATEN" not in verdicts.values()
    (path,) = chart.draw([table, rate.order(model_planes("F32", 1), Quantize())], tmp_path)
    assert path.name == "rate-against-distortion-gaussian-as-f32.png" and path.read_bytes().startswith(b"\x89PNG")
