"""Memory: checkpoints of growing size through the real pipeline, and the most that any process held resident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from operators.errors import HilbertflowError
from operators.floats import round_to
from pipelines.bench.processes import below
from pipelines.bench.report import Table

SIZES = {False: (0.1, 1.0, 4.0), True: (0.1, 0.4)}  # GB, by `quick`
SHARD = 500_000_000
ROWS, COLUMNS = 4096, 1024
LIMIT = 600_000_000
FLAT = 1.1
POLL_S = 0.1
GROWING = {"worker": "largest worker", "own_worker": "its own", "driver": "driver", "own_driver": "its own"}


@dataclass(frozen=True)
class Peak:
    """The most that a run held resident, in bytes.

    Parameters
    ----------
    driver, worker: the driver and the largest worker, the pages of shared memory that they map included.
    own_driver, own_worker: without those pages, which all of them have in common (sampled).
    store: the shared memory that was touched, counted once (sampled).
    seconds: the run took.
    """

    driver: int
    worker: int
    own_driver: int
    own_worker: int
    store: int
    seconds: float


def run(quick: bool) -> list[Table]:
    """Peak resident memory of the driver and of the largest worker by size of the checkpoint (bfloat16)."""
    rows: list[tuple[str, ...]] = []
    peaks: list[Peak] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES[quick]:
            source = Path(folder, f"{size:g}")
            written = write_checkpoint(source, int(size * 1e9))
            peak, least = pipeline_peak(source, Path(folder, "archives")), peaks[0] if peaks else None
            peaks.append(peak)
            shown = [f"{written / 1e9:.2f} GB"]
            for name in GROWING:
                value = getattr(peak, name)
                shown += [f"{value / 1e6:.0f}", f"{value / getattr(least or peak, name):.2f}"]
            rows.append((*shown, f"{peak.store / 1e6:.0f}", f"{written / 1e6 / peak.seconds:.1f}"))
            for path in source.iterdir():
                path.unlink()
    worst = max(p.worker for p in peaks)
    notes = [f"largest worker {worst / 1e6:.0f} MB of {LIMIT / 1e6:.0f}: {'met' if worst <= LIMIT else 'missed'}"]
    for part in ("worker", "driver"):
        growth, own = (max(getattr(p, n) for p in peaks) / getattr(peaks[0], n) for n in (part, f"own_{part}"))
        told = "met" if growth <= FLAT else "missed"
        notes.append(f"{part}: growth {growth:.2f} of {FLAT}: {told}; of its own memory {own:.2f}")
    notes.append("its own: without the pages of the object store that it maps, which all processes share; sampled")
    heads = [head for label in GROWING.values() for head in (f"{label} MB", "× the first")]
    table = Table(
        "memory: synthetic checkpoints through `hilbertflow run`",
        ("checkpoint", *heads, "object store MB", "MB/s"), tuple(rows), tuple(notes),
    )  # fmt: skip
    return [table]


def write_checkpoint(folder: Path, nbytes: int, rows: int = ROWS) -> int:
    """Write Gaussian bfloat16 matrices as shards with an index, one matrix in memory at a time; bytes of them all."""
    folder.mkdir(parents=True)
    each = 2 * rows * COLUMNS
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(max(1, nbytes // each))]
    a_shard = SHARD // each
    shards = [names[i : i + a_shard] for i in range(0, len(names), a_shard)]
    random, placed = np.random.default_rng(len(names)), {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header = {
            name: {"dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [i * each, (i + 1) * each]}
            for i, name in enumerate(members)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in members:
                values = random.standard_normal(rows * COLUMNS, np.float32) * np.float32(0.02)
                out.write(round_to(values, "BF16").tobytes())
                placed[name] = file
    index = {"metadata": {"total_size": each * len(names)}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return each * len(names)


def pipeline_peak(source: Path, root: Path) -> Peak:
    """Run the recipe of the quickstart on a checkpoint in processes of its own, watched from here."""
    command = [sys.executable, "-m", "pipelines.cli", "run", "quickstart-model", "--json", "--set",
               f"source.path={source}", "--set", f"sink.path={root}", "--set", f"sink.name=m{source.name}"]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    driver = worker = own_driver = own_worker = store = 0
    while process.poll() is None:
        total, own, _ = resident(process.pid)
        driver, own_driver = max(driver, total), max(own_driver, own)
        for pid, name in _of_ray(process.pid).items():
            total, own, shared = resident(pid)
            store = max(store, shared)
            if name.startswith("ray::"):
                worker, own_worker = max(worker, total), max(own_worker, own)
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    if process.returncode:
        said = process.stderr.read().decode().strip().splitlines() if process.stderr else []
        raise HilbertflowError(f"the run failed: {said[-1] if said else process.returncode}", where=str(source))
    return Peak(driver, worker, own_driver, own_worker, store, time.monotonic() - began)


def _of_ray(root: int) -> dict[int, str]:
    """Ray's workers below a process, and the raylet, which holds the object store."""
    return {pid: name for pid, name in below(root).items() if name.startswith("ray::") or name.endswith("/raylet")}


def resident(pid: int) -> tuple[int, int, int]:
    """Bytes of a process: the most that it ever held resident, what it holds alone now, what it maps of shared memory.

    All are 0 when it is gone.
    """
    found = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "RssAnon", "RssFile", "RssShmem"):
                found[name] = 1024 * int(value.split()[0])
    except OSError:
        pass
    return found.get("VmHWM", 0), found.get("RssAnon", 0) + found.get("RssFile", 0), found.get("RssShmem", 0)
