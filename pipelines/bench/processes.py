"""Processes below this one: what they are called, what they took, and the cores that they may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def below(root: int) -> dict[int, str]:
    """Names of all processes that descend from one, by number: Ray's workers call themselves ``ray::…``."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):  # gone meanwhile
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
    return {pid: name for pid, name in names.items() if pid != root and root in _ancestors(pid, parents)}


def taken(name: str) -> float:
    """Seconds of processor time that the processes of this name below this one have taken."""
    total = 0
    for pid, path in below(os.getpid()).items():
        if Path(path).name == name:
            with contextlib.suppress(OSError):
                total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def held_to(cores: set[int]) -> Iterator[None]:
    """Let this process and all below it, with those that they start, use these cores only while the block runs."""
    before = os.sched_getaffinity(0)
    _allow(cores)
    try:
        yield
    finally:
        _allow(before)


def _allow(cores: set[int]) -> None:
    for pid in (os.getpid(), *below(os.getpid())):
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cores)


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found | {pid}
