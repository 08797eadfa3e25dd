"""Recipes run for real: a local Ray, files on disk, a process that is killed and comes back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from operators.errors import HilbertflowError
from pipelines.recipe import load
from pipelines.restore import restore
from pipelines.run import run
from storage import archive, catalog
from storage.fs import Location
from storage.verify import verify
from tests.fixtures import write_safetensors

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with every awkward tensor."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("source") / "model.safetensors"

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    arrays: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "embed.weight": ("F32", normal(900, 128)),
        "layer.0.attn.weight": ("BF16", normal(300, 257).astype(ml_dtypes.bfloat16)),
        "layer.0.mlp.weight": ("F16", normal(64, 2048).astype(np.float16)),
        "layer.0.wide": ("F32", normal(1, 50_000)),
        "layer.0.norm": ("F32", normal(128)),
        "scalar": ("F32", np.float32(3.5).reshape(())),
        "nothing": ("F32", np.empty((0, 7), np.float32)),
        "one": ("BF16", np.ones((1, 1, 1), ml_dtypes.bfloat16)),
        "ids": ("I64", np.arange(20_000, dtype=np.int64)),
        "mask": ("BOOL", rng.integers(0, 2, 999).astype(bool)),
    }
    special = arrays["embed.weight"][1].reshape(-1).view(np.uint32)
    special[:6] = [0x7FC00001, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x807FFFFF]  # NaN, ±Inf, -0.0, subnormals
    write_safetensors(path, {n: (d, a.shape, a.tobytes()) for n, (d, a) in arrays.items()})
    return path


def settings(source: Path, root: Path, *more: str) -> list[str]:
    return [f"source.path={source}", f"sink.path={root}", "compute.planes_per_unit=2", "operators.1.side=32",
            "operators.4.coder=rans", *more]  # fmt: skip


def digests(place: Path) -> dict[str, str]:
    return {
        str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(place.rglob("*")) if p.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The root of an undisturbed run."""
    root = tmp_path_factory.mktemp("root")
    report = run(load("quickstart-model", settings(checkpoint, root)))
    assert report.written == report.plan.spec.units > 5
    return root


def test_a_checkpoint_restores_byte_for_byte(checkpoint: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "back.safetensors"
    restore(str(finished), str(out))
    from storage.checkpoint import open_checkpoint

    before, after = open_checkpoint(str(checkpoint)), open_checkpoint(str(out))
    assert {t.name for t in before.tensors} == {t.name for t in after.tensors}
    for spec in before.tensors:
        again = after[spec.name]
        assert (again.dtype, again.shape) == (spec.dtype, spec.shape)
        assert after.read(again) == before.read(spec), spec.name


def test_every_prefix_of_levels_reads_and_its_error_falls(finished: Path) -> None:
    handle = archive.open(str(finished))
    exact = handle["layer.0.wide"].read("exact")
    errors = [float(np.square(handle["layer.0.wide"].read(level) - exact).sum()) for level in (0, 1)]
    assert errors[0] > 10 * errors[1] > 0
    rows = handle["embed.weight"].read("exact", rows=slice(100, 200))
    np.testing.assert_array_equal(rows, handle["embed.weight"].read("exact")[100:200])


def test_heavy_tails_reach_what_is_asked_and_are_exact_at_the_end(tmp_path: Path, ray_session: None) -> None:
    values = np.random.default_rng(3).laplace(size=(256, 512)).astype(np.float32)
    source, errors = tmp_path / "heavy.safetensors", {}
    write_safetensors(source, {"weight": ("F32", values.shape, values.tobytes())})
    for tails in ("gaussian", "laplace"):
        root = tmp_path / tails
        heavy = ("operators.1.side=256", "operators.2.sqnr_db=3", f"operators.2.tails={tails}")
        run(load("quickstart-model", settings(source, root, *heavy)))
        handle = archive.open(str(root))
        base = handle["weight"].read(0)
        errors[tails] = 10 * np.log10(np.square(values).sum() / np.square(base - values).sum())
        np.testing.assert_array_equal(handle["weight"].read("exact"), values)
    assert errors["laplace"] == pytest.approx(3.0, abs=0.2)
    assert digests(tmp_path / "gaussian") != digests(tmp_path / "laplace")


def test_a_preview_reads_only_its_own_level(finished: Path) -> None:
    coarse, fine = archive.open(str(finished)), archive.open(str(finished))
    coarse["layer.0.wide"].read(0)
    fine["layer.0.wide"].read("exact")
    assert coarse.bytes_read < 0.5 * fine.bytes_read


def test_a_second_run_does_nothing(checkpoint: Path, finished: Path) -> None:
    before = digests(finished)
    report = run(load("quickstart-model", settings(checkpoint, finished)))
    assert report.written == 0 and report.skipped == report.plan.spec.units
    assert digests(finished) == before


def test_another_recipe_may_not_take_the_name(checkpoint: Path, finished: Path) -> None:
    with pytest.raises(HilbertflowError, match=r"sink\.name"):
        run(load("quickstart-model", settings(checkpoint, finished, "operators.2.sqnr_db=30")))


def test_killed_runs_resume_to_the_same_bytes(checkpoint: Path, finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "quickstart-model", "--json"]
    for setting in settings(checkpoint, tmp_path, "compute.actors=1"):
        command += ["--set", setting]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    place = tmp_path / "models" / "minilm"
    while process.poll() is None and not any((place / "journal").glob("0*.json")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "manifest.json").exists()
    with pytest.raises(HilbertflowError, match="half-written"):
        archive.open(str(place))
    assert catalog.ls(str(tmp_path)) == []
    journalled = len(list((place / "journal").glob("0*.json")))
    report = run(load("quickstart-model", settings(checkpoint, tmp_path)))
    assert report.skipped >= journalled >= 1  # workers outlive the driver by a moment
    assert report.written + report.skipped == report.plan.spec.units
    assert digests(place) == digests(finished / "models" / "minilm")


def test_a_flipped_bit_is_found_named_and_never_returned(checkpoint: Path, tmp_path: Path, ray_session: None) -> None:
    run(load("quickstart-model", settings(checkpoint, tmp_path)))
    place = tmp_path / "models" / "minilm"
    victim = sorted(p for p in (place / "exact").rglob("*") if p.is_file() and p.name != "zarr.json")[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    verdict = verify(Location(str(place)))
    assert [damage.key for damage in verdict.damaged] == [str(victim.relative_to(place))]
    handle = archive.open(str(place))
    with pytest.raises(HilbertflowError, match=r"/exact: damaged .*hilbertflow verify"):
        for name in handle:
            handle[name].read("exact")


def test_an_archive_of_another_format_is_refused(checkpoint: Path, tmp_path: Path, ray_session: None) -> None:
    run(load("quickstart-model", settings(checkpoint, tmp_path)))
    path = tmp_path / "models" / "minilm" / "manifest.json"
    body = json.loads(path.read_text())
    for number, what in ((99, "newer"), (1, "older")):
        path.write_text(json.dumps(body | {"format": number}))
        with pytest.raises(HilbertflowError, match=what):
            archive.open(str(tmp_path))
