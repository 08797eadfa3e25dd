"""The standard codec of neural networks (NNC) as a peer, in a Python of its own: `nncodec` pins NumPy below 2."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.bench.http_field import script
from pipelines.bench.serve_peers import PEERS

F32 = npt.NDArray[np.float32]
MISSING = (
    "not compared: NNC. To have it: python -m venv nnc && nnc/bin/pip install nncodec (it brings Torch), "
    f"then {PEERS}=nnc/bin/python"
)


def installed() -> bool:
    """Whether the Python of the peers has `nncodec`."""
    asking = [_python(), "-c", "from importlib.metadata import version; version('nncodec')"]
    return subprocess.run(asking, capture_output=True).returncode == 0


def coded(values: F32, parameters: tuple[int, ...]) -> Iterator[tuple[float, F32]]:
    """Bits a value and what comes back of a matrix (rows, columns), at each quantization parameter."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "values.npy"), values)
        command = script("nnc_peer.py", Path(folder, "values.npy"), folder, *parameters, python=_python())
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"nncodec failed: {done.stderr[-300:]}")
        for line in done.stdout.splitlines():
            parameter, size = line.split()
            yield 8 * int(size) / values.size, np.load(Path(folder, f"{parameter}.npy"))


def _python() -> str:
    return os.environ.get(PEERS, sys.executable)
