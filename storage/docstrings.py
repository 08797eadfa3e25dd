"""Docstrings of installed packages, or of a directory of Python files, as a source of texts."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from operators.errors import HilbertflowError
from storage import python_scan
from storage.fs import Location
from storage.python_names import Documented, documented, gather
from storage.python_scan import Facts
from storage.rows import check_range

_FORMAT = 4  # of the cache; a change of what is found changes it
_CALL = re.compile(r"^[\w.]+\(")
LONGEST = 24
"""Lines of a signature."""
_SIGNATURE = re.compile(r"^[\w.]+\(.*(\)|->.*|,)$")
_SKIPPED = frozenset({"tests", "test", "conftest", "__main__", "setup", "__pycache__"})
_SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("package", pa.string()), ("module", pa.string()),
     ("kind", pa.string()), ("first_line", pa.string()), ("lines", pa.int32())]
)  # fmt: skip


@dataclass(frozen=True)
class DocstringRows:
    """Docstrings of public functions, classes and methods, read with `ast` from source files; nothing is imported.

    A row is ``id`` (the shortest public qualified name), ``text`` (the docstring, indentation removed), ``package``,
    ``module`` (where it is defined), ``kind`` (function, class or method), ``first_line``, ``lines``. Packages come in
    the order given, inside one the rows are sorted by id. A `RowSource`.

    Parameters
    ----------
    packages: names of installed distributions or import packages.
    directory: in place of packages, a directory with packages or modules of one's own.
    limit: at most this many rows; None takes all. The first package is taken whole if it fits into three quarters of
        the limit, the others share the rest evenly; of a package that has more than its share, functions and classes
        go before methods, short names before long ones.
    """

    packages: tuple[str, ...] = ()
    directory: str = ""
    limit: int | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all ids and texts."""
        return self._content[1]

    @property
    def count(self) -> int:
        """Number of docstrings."""
        return int(self._content[0].num_rows)

    @property
    def dim(self) -> None:
        """None: these are texts."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """The metadata columns."""
        return tuple(_SCHEMA.names[2:])

    @property
    def skipped(self) -> int:
        """Files that could not be read as Python; they are left out."""
        return self._content[2]

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop``."""
        check_range(start, stop, self.count, self._where)
        # take, not slice: a slice drags the whole memory-mapped table along when it is pickled.
        return self._content[0].take(pa.array(range(start, stop), pa.int64()))

    def check(self) -> None:
        """Raise when a package is missing or nothing is documented."""
        if not self.count:
            raise HilbertflowError("no public docstring found", where=self._where, remedy="name packages with sources")

    @property
    def _where(self) -> str:
        return self.directory or f"docstrings of {', '.join(self.packages)}"

    @property
    def _content(self) -> tuple[pa.Table, str, int]:
        return _content(self.packages, self.directory, self.limit)


@functools.lru_cache(maxsize=4)
def _content(packages: tuple[str, ...], directory: str, limit: int | None) -> tuple[pa.Table, str, int]:
    if directory:
        parts = [_scanned(name, {name: roots}) for name, roots in sorted(_directory_roots(directory).items())]
    else:
        parts = [_scanned(name, _package_roots(name)) for name in dict.fromkeys(packages)]
    table = pa.concat_tables([_SCHEMA.empty_table(), *(part for part, _ in parts)])
    ids = table.column("id").to_pylist()
    if len(set(ids)) != len(ids):  # two names of one package, as `scikit-learn` and `sklearn`
        first = {name: at for at, name in reversed(list(enumerate(ids)))}
        table = table.take(pa.array(sorted(first.values()), pa.int64()))
    if limit is not None and limit < table.num_rows:
        table = table.take(pa.array(_spread(table, limit), pa.int64()))
    digest = hashlib.sha256(b"hilbertflow docstrings 1\n")
    for batch in table.to_batches():
        for column in ("id", "text"):
            for value in batch.column(column):
                data = value.as_buffer()
                digest.update(len(data).to_bytes(4, "little"))
                digest.update(data)
    return table, digest.hexdigest(), sum(skipped for _, skipped in parts)


def _spread(table: pa.Table, limit: int) -> list[int]:
    """Rows kept under a limit, in their order."""
    packages = table.column("package").to_pylist()
    order = list(dict.fromkeys(packages))
    members = {name: [at for at, package in enumerate(packages) if package == name] for name in order}
    share = dict.fromkeys(order, 0)
    if len(members[order[0]]) * 4 <= limit * 3:
        share[order[0]] = len(members[order[0]])
    while (left := limit - sum(share.values())) > 0:
        hungry = [name for name in order if share[name] < len(members[name])]
        each, more = divmod(left, len(hungry))
        for at, name in enumerate(hungry):
            share[name] = min(len(members[name]), share[name] + each + (at < more))
    ids, kinds = table.column("id").to_pylist(), table.column("kind").to_pylist()

    def fame(at: int) -> tuple[bool, int, str]:
        # Past the number of parts a hash decides: the alphabet would take all that begins with A.
        return kinds[at] == "method", ids[at].count("."), hashlib.sha256(ids[at].encode()).hexdigest()

    return sorted(at for name in order for at in sorted(members[name], key=fame)[: share[name]])


def _package_roots(name: str) -> dict[str, list[Path]]:
    """Top-level import names of an installed package, and where their files are."""
    if name.isidentifier() and (roots := _spec_roots(name)):
        return {name: roots}
    try:
        files = importlib.metadata.distribution(name).files or ()
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise HilbertflowError(
            f"the package {name!r} is not installed", where="docstrings",
            remedy=f"pip install {name}, or remove it from source.path",
        ) from error  # fmt: skip
    tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py" and ".." not in file.parts}
    found = {top: _spec_roots(top) for top in sorted(tops) if top.isidentifier()}
    if not any(found.values()):
        raise HilbertflowError(f"the package {name!r} has no Python sources", where="docstrings")
    return found


def _spec_roots(top: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: nothing is imported
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _directory_roots(directory: str) -> dict[str, list[Path]]:
    root = Path(directory).expanduser().resolve()
    if not root.is_dir():
        raise HilbertflowError("is not a directory of Python files", where=directory)
    if (root / "__init__.py").is_file():
        return {root.name: [root]}
    entries = [path for path in sorted(root.iterdir()) if path.suffix == ".py" or path.is_dir()]
    return {path.name.removesuffix(".py"): [path] for path in entries if path.name.removesuffix(".py").isidentifier()}


def _modules(top: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Module names and files below the roots; only packages are entered, tests are left out."""
    for root in roots:
        if root.is_file():
            yield top, root
            continue
        for folder, folders, files in os.walk(root):
            parts = [top, *Path(folder).relative_to(root).parts]
            inside = [name for name in folders if name.isidentifier() and name not in _SKIPPED]
            folders[:] = sorted(name for name in inside if (Path(folder, name) / "__init__.py").is_file())
            for file in sorted(files):
                name = file.removesuffix(".py")
                if file == "__init__.py":
                    yield ".".join(parts), Path(folder, file)
                elif file.endswith(".py") and name.isidentifier() and name not in _SKIPPED:
                    yield ".".join([*parts, name]), Path(folder, file)


def _scanned(package: str, tops: Mapping[str, Sequence[Path]]) -> tuple[pa.Table, int]:
    """Docstrings of one package and the number of files left out; from the cache when no file has changed."""
    files = {module: str(path) for top, roots in tops.items() for module, path in _modules(top, roots)}
    key = hashlib.sha256(f"{_FORMAT} {sys.version_info[:2]} {package}\n".encode())
    for module, path in sorted(files.items()):
        status = os.stat(path)
        key.update(f"{module} {status.st_size} {status.st_mtime_ns}\n".encode())
    cache = _cache() / f"{package}-{key.hexdigest()[:32]}.arrow"
    with suppress(OSError, pa.ArrowInvalid, KeyError, ValueError):
        table = pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
        return table.replace_schema_metadata(None), int(table.schema.metadata[b"skipped"])
    facts = gather(files, _scan)
    skipped = sum(bool(fact["error"]) for fact in facts.values())
    table = _table(package, documented(facts))
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({"skipped": str(skipped)})
    with pa.ipc.new_file(sink, marked.schema) as writer:
        writer.write_table(marked)
    with suppress(HilbertflowError):  # a read-only home costs the next run some seconds, not this one its life
        Location(str(cache)).write_atomic("", sink.getvalue())
    return table, skipped


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hilbertflow" / "docstrings"


def _table(package: str, found: Sequence[Documented]) -> pa.Table:
    texts = [row.text for row in found]
    columns = {
        "id": [row.id for row in found], "text": texts, "package": [package] * len(found),
        "module": [row.module for row in found], "kind": [row.kind for row in found],
        "first_line": [_first_line(text) for text in texts],
        "lines": np.array([text.count("\n") + 1 for text in texts], np.int32),
    }  # fmt: skip
    return pa.table(columns, _SCHEMA)


def _first_line(text: str) -> str:
    """The first line that says something: docstrings of compiled functions begin with their signature."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "--" in lines[:LONGEST] and _CALL.match(lines[0]):  # as CPython ends a signature, over however many lines
        lines = lines[lines.index("--") + 1 :] or lines
    return next((line for line in lines if not _SIGNATURE.match(line)), lines[0])


def _scan(files: Mapping[str, str]) -> dict[str, Facts]:
    """Facts of the named files, read by two processes of their own: a tree takes 100 times its source's memory."""
    jobs = [json.dumps([path, module]) for module, path in files.items()]
    if len(jobs) < 16:
        return {module: python_scan.scan_file(path, module) for module, path in files.items()}
    with ThreadPoolExecutor(2) as pool:
        lines = [line for part in pool.map(_scan_process, (jobs[::2], jobs[1::2])) for line in part.splitlines()]
    found: dict[str, Facts] = {fact["module"]: fact for fact in map(json.loads, lines)}
    return {module: found[module] for module in files if module in found}


def _scan_process(jobs: Sequence[str]) -> str:
    # As a script and not by multiprocessing, which would run the caller's own main module again.
    command = [sys.executable, "-I", python_scan.__file__]
    done = subprocess.run(command, input="\n".join(jobs), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        what = f"the process that reads Python files ended with {done.returncode}: {reason}"
        raise HilbertflowError(what, where="docstrings")
    return done.stdout
