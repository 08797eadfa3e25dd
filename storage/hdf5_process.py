"""The HDF5 library in a process of its own, with limits of time and memory: a damaged file can make it loop or crash.

Run as a script by `storage.vectors_hdf5`; it needs NumPy and h5py alone. A request is a line of JSON on standard input
with ``path``, ``seconds`` of processor time, and for rows ``name``, ``start`` and ``stop``; without ``name`` it asks
what is there, with ``row`` and ``value`` where that value lies. An answer is a line of JSON on standard output, then as
many raw bytes as its ``bytes`` says. An ``error`` comes with its ``place``, in parts for `operators.errors.at`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

_MEMORY = 2 << 30
_MAX_MEMBERS = 10_000
Place = list[str | int]


def main(out: BinaryIO) -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    files: dict[tuple[str, int, int], Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(float(request["seconds"]))
        place: Place = [0]
        try:
            file = _opened(request["path"], files)
            if "name" not in request:
                head, body = _list(file, place)
            elif "row" in request:
                head, body = {"place": _place(file[request["name"]], request["row"], request["value"])}, b""
            else:
                head, body = _read(file, request, place)
        except Exception as error:  # the answer names it; the caller decides
            head, body = {"error": " ".join(str(error).split())[:160] or type(error).__name__, "place": place}, b""
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


def _list(file: Any, place: Place) -> tuple[dict[str, Any], bytes]:
    """Datasets of the root: name -> [shape, kind]; kind is NumPy's letter, or S for any text."""
    import h5py

    found: dict[str, Any] = {}
    place[:] = ["root group"]
    for number, name in enumerate(file):
        if number > _MAX_MEMBERS:
            raise ValueError(f"more than {_MAX_MEMBERS:,} members")
        place[:] = ["root group", f"member {name[:80]!r}"]
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            continue  # a link into another file could be into any file
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            continue
        if dataset.external or dataset.is_virtual:
            raise ValueError("it keeps its values in other files")
        kind = dataset.dtype.kind
        if kind == "O":
            kind = "S" if h5py.check_string_dtype(dataset.dtype) is not None else ""
        found[name] = [[int(side) for side in dataset.shape], kind]
    return {"datasets": found}, b""


def _read(file: Any, request: dict[str, Any], place: Place) -> tuple[dict[str, Any], bytes]:
    import numpy as np

    start, stop = request["start"], request["stop"]
    place[:] = [f"dataset {request['name'][:80]!r}", f"row {start}"]
    dataset = file[request["name"]]
    try:
        values = dataset[start:stop]
    except Exception:
        place[:] = _place(dataset, *_unreadable(dataset, start, stop))
        raise
    if values.dtype.kind in "OSU":
        texts = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.tolist()]
        return {"texts": len(texts)}, json.dumps(texts).encode()
    values = np.ascontiguousarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape)}, values.tobytes()


def _unreadable(dataset: Any, start: int, stop: int) -> tuple[int, int]:
    """Row and column of the first value that cannot be read among rows that cannot be."""
    steps = dataset.chunks or (1 << 62, 1 << 62)
    for row in (start, *range((start // steps[0] + 1) * steps[0], stop, steps[0])):
        for column in range(0, dataset.shape[1], steps[1]) if dataset.ndim > 1 else (0,):
            try:
                dataset[(row, column)[: dataset.ndim]]
            except Exception:
                return row, column
    return start, 0


def _place(dataset: Any, row: int, value: int) -> Place:
    """Dataset, chunk if it has chunks, row, and the byte of the file: of the value, or at which its chunk begins."""
    name, chunks = f"dataset {dataset.name.lstrip('/')[:80]!r}", dataset.chunks
    if chunks is None:
        begin = dataset.id.get_offset()
        index = row * (dataset.shape[1] if dataset.ndim > 1 else 1) + value
        return [name, f"row {row}", *([] if begin is None else [begin + index * dataset.dtype.itemsize])]
    number = tuple(at // side for at, side in zip((row, value), chunks, strict=False))
    corner = tuple(at * side for at, side in zip(number, chunks, strict=True))
    begin = dataset.id.get_chunk_info_by_coord(corner).byte_offset
    return [name, f"chunk {number}{'' if begin is None else f' at byte {begin}'}", f"row {row}"]


if __name__ == "__main__":
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not stand among the answers
    main(answers)
