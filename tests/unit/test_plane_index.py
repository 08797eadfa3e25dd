"""The multi-level index: means of runs, in the stream and back from the archive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from operators.hilbert import to_plane
from operators.plane_index import ENTRIES, UNIT, levels, means
from pipelines.bench.local import archive_model, archive_with
from pipelines.recipe import Recipe
from storage import archive
from tests.fixtures import write_safetensors


def test_entries_are_the_means_of_runs_and_of_squares() -> None:
    values = (np.random.default_rng(1).standard_normal(64 * 64) * 3 + np.linspace(-2, 4, 64 * 64)).astype(np.float32)
    deviation = np.sqrt(np.square(values.astype(np.float64)).mean())
    found = levels(means(values))
    assert sum(level.size for level in found) == ENTRIES
    for level in found:
        expected = values.reshape(level.size, -1).mean(axis=1) / deviation
        assert np.abs(level - expected).max() <= 0.6 / UNIT
    first_square = to_plane(values, "hilbert")[:8, :8]
    assert abs(found[-1][0] - first_square.mean() / deviation) <= 0.6 / UNIT


def test_scale_does_not_matter_and_what_is_not_finite_counts_as_zero() -> None:
    values = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    np.testing.assert_array_equal(means(values), means(values * np.float32(2**-20)))
    holes = values.copy()
    holes[::7] = np.nan
    zeros = values.copy()
    zeros[::7] = 0
    np.testing.assert_array_equal(means(holes), means(zeros))
    assert not means(np.zeros(4096, np.float32)).any()


def test_an_archive_keeps_it_and_it_is_small(tmp_path: Path) -> None:
    values = (np.random.default_rng(3).standard_normal(6 * 128 * 128) + 0.3).astype(np.float32)
    source = write_safetensors(tmp_path / "m.safetensors", {"w": ("F32", values.shape, values.tobytes())})
    handle = archive_model(source, tmp_path, "operators.1.side=128", "operators.4.coder=rans")
    for plane, part in enumerate(values.reshape(6, -1)):
        for level, stored in zip(levels(means(part)), handle.means(plane, plane + 1), strict=True):
            np.testing.assert_array_equal(level, stored[0])
    sizes = handle.manifest.levels
    assert 0 < sizes["means"] <= 0.01 * sum(sizes.values())


def test_archives_of_every_kind_keep_it(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal((96, 128)).astype(np.float32)
    later = values + np.float32(0.001) * random.standard_normal(values.shape).astype(np.float32)
    urls = {}
    for name, held in (("first", values), ("later", later)):
        source = write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F32", held.shape, held.tobytes())})
        settings = [f"sink.name={name}", "operators.1.side=32", "operators.4.coder=rans", "operators.2.method=uniform"]
        parent = [f"parent={urls['first']}"] if urls else []
        urls[name] = archive_model(source, tmp_path, *settings, *parent).url
    body = {
        "name": "vq", "source": {"kind": "checkpoint", "path": str(tmp_path / "first.safetensors")},
        "operators": [{"kind": "hilbert_map", "side": 32}, {"kind": "vq", "dim": 4, "codes": 16},
                      {"kind": "tree", "widths": [2, 2]}, {"kind": "frame_encode", "coder": "rans"}],
        "sink": {"path": str(tmp_path), "name": "vq"},
    }  # fmt: skip
    vector = archive_with(Recipe.model_validate_json(json.dumps(body)))
    for handle, held in ((archive.open(urls["later"]), later), (vector, values)):
        for plane, part in enumerate(held.reshape(-1, 32 * 32)):
            for level, stored in zip(levels(means(part)), handle.means(plane, plane + 1), strict=True):
                np.testing.assert_array_equal(level, stored[0])
