"""The HDF5 library in a process of its own, with limits of time and memory: a damaged file can make it loop or crash.

Run as a script by `storage.vectors_hdf5`; it needs NumPy and h5py alone. A request is a line of JSON on standard input
with ``path``, ``seconds`` of processor time, and for rows ``name``, ``start`` and ``stop``; without ``name`` it asks
what is there. An answer is a line of JSON on standard output, then as many raw bytes as its ``bytes`` says.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

_MEMORY = 2 << 30
_MAX_MEMBERS = 10_000


def main(out: BinaryIO) -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    files: dict[tuple[str, int, int], Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(float(request["seconds"]))
        try:
            file = _opened(request["path"], files)
            head, body = _read(file, request) if "name" in request else _list(file)
        except Exception as error:  # the answer names it; the caller decides
            head, body = {"error": " ".join(str(error).split())[:160] or type(error).__name__}, b""
        out.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body)
        out.flush()


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _opened(path: str, files: dict[tuple[str, int, int], Any]) -> Any:
    """The file as it is now; one is kept open."""
    import h5py

    status = os.stat(path)
    key = path, status.st_mtime_ns, status.st_size
    if key not in files:
        for file in files.values():
            file.close()
        files.clear()
        files[key] = h5py.File(path, "r")
    return files[key]


def _list(file: Any) -> tuple[dict[str, Any], bytes]:
    """Datasets of the root: name -> [shape, kind]; kind is NumPy's letter, or S for any text."""
    import h5py

    found: dict[str, Any] = {}
    for number, name in enumerate(file):
        if number > _MAX_MEMBERS:
            raise ValueError(f"more than {_MAX_MEMBERS:,} members")
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            continue  # a link into another file could be into any file
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            continue
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} keeps its values in other files")
        kind = dataset.dtype.kind
        if kind == "O":
            kind = "S" if h5py.check_string_dtype(dataset.dtype) is not None else ""
        found[name] = [[int(side) for side in dataset.shape], kind]
    return {"datasets": found}, b""


def _read(file: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    import numpy as np

    values = file[request["name"]][request["start"] : request["stop"]]
    if values.dtype.kind in "OSU":
        texts = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.tolist()]
        return {"texts": len(texts)}, json.dumps(texts).encode()
    values = np.ascontiguousarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape)}, values.tobytes()


if __name__ == "__main__":
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not stand among the answers
    main(answers)
