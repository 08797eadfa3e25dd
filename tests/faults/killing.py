"""Runs in processes of their own, and hands that kill a part of them at a moment seen by a proxy."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANDS = ("server", "worker", "actor", "raylet", "driver")
PHASES = ("planning", "first", "middle", "last", "sealing")
BUSY = ("ray::MapWorker", "ray::Tally")
NAMES = {"worker": BUSY[:1], "actor": BUSY[1:], "raylet": ("raylet",)}
CHECKOUT = Path(__file__).parents[2]
_COMMIT = re.compile(r"(?:journal|scratch/sorted)/\d{8}-[0-9a-f]+\.json")
_UNIT = re.compile(r"(journal|scratch/sorted)/(\d{8})-[0-9a-f]+\.(?:json|arrow)")


class Session:
    """A process of a fresh interpreter in a session of its own, and what it starts."""

    def __init__(self, arguments: list[str], said: Path) -> None:
        environment = dict(os.environ, RAY_AUTH_MODE="disabled")  # two processes that no token came to share
        with said.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], cwd=CHECKOUT, env=environment, start_new_session=True,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.pid = self._process.pid

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode

    def processes(self) -> dict[int, str]:
        """Names of the living processes of the session, by number."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    command = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")[0].decode()
                    found[int(name)] = command if "::" in command else command.rsplit("/", 1)[-1]
        return found

    def end(self) -> None:
        """See that nothing of it lives on."""
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait(20)
        assert not left, left


class Cluster(Session):
    """A Ray of one core, for many runs: one worker that reads, codes and writes."""

    def __init__(self, folder: Path) -> None:
        at = folder / f"address-{time.monotonic_ns()}"
        super().__init__(["-m", "tests.faults.keep_ray", str(at)], at.with_suffix(".log"))
        deadline = time.monotonic() + 120
        while not at.exists():
            assert self.wait(0.05) is None and time.monotonic() < deadline, "Ray does not start"
        self.address = at.read_text()

    def busy(self, seconds: float) -> dict[int, str]:
        """What still works for a run that is over, after so many seconds at most."""
        deadline = time.monotonic() + seconds
        while (left := named(self.processes(), BUSY)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


class Run(Session):
    """`hilbertflow run` on a cluster."""

    def __init__(self, arguments: list[str], cluster: Cluster, log: Path, hand: Hand | None = None) -> None:
        self._log = log
        command = ["-m", "pipelines.cli", "run", *arguments, "--json", "--address", cluster.address]
        super().__init__(command, log)
        if hand is not None:
            hand.may_strike(self, cluster)

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text() if self._log.exists() else ""

    def last(self) -> str:
        """The last line of that."""
        return (self.said().strip().splitlines() or [""])[-1]

    def done(self) -> dict[str, Any]:
        """The last event of a run that ended well."""
        told: dict[str, Any] = json.loads(self.last())
        assert told["event"] == "done"
        return told


@dataclass(frozen=True)
class Moment:
    """When a hand strikes.

    Parameters
    ----------
    phase: ``planning``, until the first object of a unit is put; ``first``, ``middle``, ``last`` units; ``sealing``,
        from the last unit on.
    at: the how manieth request of planning or of sealing, or put of a unit, from 0.
    side: ``before`` the store has it, ``after`` it did what was asked and before the client knows, or ``later``.
    delay: seconds of ``later``.
    """

    phase: str
    at: int
    side: str
    delay: float

    @classmethod
    def choose(cls, phase: str, calm: Calm, chance: random.Random) -> Moment:
        """Any one of a phase, as an undisturbed run had it."""
        third = {"first": (0, 0.25), "middle": (0.25, 0.75), "last": (0.75, 1)}
        low, high = third.get(phase, (0, 1))
        requests = {"planning": calm.planning, "sealing": calm.sealing}.get(phase, calm.puts)
        at = min(requests - 1, int(chance.uniform(low, high) * requests))
        sides = ("before", "after") if phase == "sealing" else ("before", "after", "later")
        return cls(phase, at, chance.choice(sides), chance.random() * 0.5)


@dataclass(frozen=True)
class Calm:
    """What an undisturbed run made.

    Parameters
    ----------
    objects: of the archive, by key.
    units, total: by key, the unit that an object is of; how many there are.
    planning, sealing: requests before the first put of a unit, and after the last.
    puts: of objects of units and of their journal.
    """

    objects: dict[str, bytes]
    units: dict[str, int]
    total: int
    planning: int
    puts: int
    sealing: int


class Hand:
    """Kills one process of a run, or the S3 server, by SIGKILL; `struck` is its name from then on.

    Where there is no such process yet it waits for one: a driver plans for a while before it has workers.
    """

    def __init__(self, kind: str, server: Callable[[], int], chance: random.Random) -> None:
        self.kind, self.struck = kind, ""
        self._server, self._chance = server, chance
        self._victims: Callable[[], dict[int, str]] = dict

    def may_strike(self, run: Run, cluster: Cluster) -> None:
        """From now on there is somebody to strike."""
        if self.kind == "driver":
            self._victims = lambda: {run.pid: "driver"}
        elif self.kind == "server":
            self._victims = lambda: {self._server(): "S3 server"}
        else:
            self._victims = lambda: named(cluster.processes(), NAMES[self.kind])

    def strike(self, delay: float) -> None:
        """At once where that can be, else from a thread of its own."""
        if delay or not self._kill():
            threading.Thread(target=self._wait, args=(delay,), daemon=True).start()

    def _wait(self, delay: float) -> None:
        time.sleep(delay)
        deadline = time.monotonic() + 60
        while not self._kill() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _kill(self) -> bool:
        victims = self._victims()
        if not victims:
            return False
        pid = self._chance.choice(sorted(victims))
        os.kill(pid, signal.SIGKILL)
        self.struck = victims[pid]
        return True


def named(processes: Mapping[int, str], names: tuple[str, ...]) -> dict[int, str]:
    """Those whose name begins so."""
    return {pid: name for pid, name in processes.items() if name.startswith(names)}


@dataclass
class Watch:
    """Follows the requests of runs of one archive, and lets a hand strike when its moment comes.

    Parameters
    ----------
    place: of the archive, as bucket and key.
    units: by key, the unit that an object is of.
    total: how many units there are.
    moment, hand: None where nobody strikes.

    Attributes
    ----------
    requests, puts, sealing: before the first put of a unit, of units, after the last.
    committed: units that the journal holds, of the archive and of the passes before it.
    twice: puts of committed units by the run that committed them.
    again: those by a later run.
    """

    place: str
    units: Mapping[str, int]
    total: int
    moment: Moment | None = None
    hand: Hand | None = None
    requests: int = 0
    puts: int = 0
    sealing: int = 0
    committed: set[str] = field(default_factory=set)
    twice: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    _settled: set[str] = field(default_factory=set)
    _marked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, method: str, key: str, status: int) -> None:
        """A request goes to the store (status 0), or its answer comes back."""
        name = key.removeprefix(f"{self.place}/")
        with self._lock:
            due = self._answered(method, name, status) if status else self._asked(method, name)
        if due and self.hand is not None and self.moment is not None:
            self.hand.strike(self.moment.delay if self.moment.side == "later" else 0.0)

    def next_run(self) -> int:
        """Another run begins: what is committed by now must not be put again. How many units of the archive that is."""
        with self._lock:
            self.moment = None
            self._settled |= self.committed
            return self._whole()

    def _asked(self, method: str, name: str) -> bool:
        unit = self._unit(name) if method == "PUT" else ""
        before = self._counter()
        self.sealing += self._whole() == self.total
        self.puts += unit.startswith("unit")
        self.requests += self.puts == 0
        if unit in self.committed:
            (self.again if unit in self._settled else self.twice).append(name)
        if self.moment is None or before != self.moment.at or self._counter() == before:
            return False
        if self.moment.side == "after":
            self._marked = threading.get_ident()
        return self.moment.side != "after"

    def _answered(self, method: str, name: str, status: int) -> bool:
        if method == "PUT" and status < 300 and _COMMIT.fullmatch(name):
            self.committed.add(self._unit(name))
        due = self._marked == threading.get_ident()
        self._marked = 0 if due else self._marked
        return due

    def _counter(self) -> int:
        phase = self.moment.phase if self.moment is not None else ""
        return {"planning": self.requests, "sealing": self.sealing}.get(phase, self.puts)

    def _whole(self) -> int:
        return sum(unit.startswith("unit") for unit in self.committed)

    def _unit(self, name: str) -> str:
        """The unit that an object is of: of the archive, or of the pass that sorts rows; empty for other objects."""
        if found := _UNIT.fullmatch(name):
            return f"{'unit' if found[1] == 'journal' else 'sorted'} {found[2]}"
        return f"unit {self.units[name]:08d}" if name in self.units else ""
