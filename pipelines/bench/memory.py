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
from pipelines.bench.report import Table

SIZES = {False: (0.1, 1.0, 4.0), True: (0.1, 0.4)}  # GB, by `quick`
SHARD = 500_000_000
ROWS, COLUMNS = 4096, 1024
LIMIT = 600_000_000
FLAT = 1.1
POLL_S = 0.1


@dataclass(frozen=True)
class Peak:
    """The largest resident sizes of a run, in bytes; shared memory that a process maps counts as its own."""

    driver: int
    worker: int
    seconds: float


def run(quick: bool) -> list[Table]:
    """Peak resident memory of the driver and of the largest worker by size of the checkpoint (bfloat16)."""
    rows, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES[quick]:
            source = Path(folder, f"{size:g}")
            written = write_checkpoint(source, int(size * 1e9))
            peak = pipeline_peak(source, Path(folder, "archives"))
            peaks.append(peak)
            rows.append((f"{written / 1e9:.2f} GB", f"{peak.worker / 1e6:.0f}", f"{peak.worker / peaks[0].worker:.2f}",
                         f"{peak.driver / 1e6:.0f}", f"{peak.driver / peaks[0].driver:.2f}",
                         f"{written / 1e6 / peak.seconds:.0f}"))  # fmt: skip
            for path in source.iterdir():
                path.unlink()
    worst, least = max(p.worker for p in peaks), peaks[0]
    flat = max(max(p.worker / least.worker, p.driver / least.driver) for p in peaks)
    notes = (
        "resident, shared memory that a process maps included",
        f"largest worker {worst / 1e6:.0f} MB of {LIMIT / 1e6:.0f}: {'met' if worst <= LIMIT else 'missed'}",
        f"growth {flat:.2f} of {FLAT}: {'met' if flat <= FLAT else 'missed'}",
    )
    table = Table(
        "memory: synthetic checkpoints through `hilbertflow run`",
        ("checkpoint", "largest worker MB", "× the smallest", "driver MB", "× the smallest", "MB/s"),
        tuple(rows), notes,
    )  # fmt: skip
    return [table]


def write_checkpoint(folder: Path, nbytes: int) -> int:
    """Write Gaussian bfloat16 matrices as shards with an index, one matrix in memory at a time; bytes of them all."""
    folder.mkdir(parents=True)
    each = 2 * ROWS * COLUMNS
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(max(1, nbytes // each))]
    a_shard = SHARD // each
    shards = [names[i : i + a_shard] for i in range(0, len(names), a_shard)]
    random, placed = np.random.default_rng(len(names)), {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header = {
            name: {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [i * each, (i + 1) * each]}
            for i, name in enumerate(members)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in members:
                values = random.standard_normal(ROWS * COLUMNS, np.float32) * np.float32(0.02)
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
    driver = worker = 0
    while process.poll() is None:
        driver = max(driver, _highest(process.pid))
        worker = max([worker, *map(_highest, _workers(process.pid))])
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    if process.returncode:
        said = process.stderr.read().decode().strip().splitlines() if process.stderr else []
        raise HilbertflowError(f"the run failed: {said[-1] if said else process.returncode}", where=str(source))
    return Peak(driver, worker, time.monotonic() - began)


def _workers(root: int) -> list[int]:
    """Ray's workers below a process: they call themselves ``ray::…``."""
    parents, named = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                    named.append(int(folder.name))
            except OSError:  # gone meanwhile
                continue
    return [pid for pid in named if root in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found | {pid}


def _highest(pid: int) -> int:
    """The most bytes that a process has held resident so far; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0
